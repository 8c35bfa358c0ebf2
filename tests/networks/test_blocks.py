"""How channels are shared out, and the blocks against plain formulas."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from sde_diffusion.networks import attention as attention_module
from sde_diffusion.networks.attention import Attention, LinearAttention
from sde_diffusion.networks.blocks import Conv, Downsample, Layers, ResidualBlock, Upsample, group_norm, join, parts

TWO = Layers(groups=2)


@pytest.mark.parametrize(
    ("channels", "most", "width", "expected"),
    [(128, 32, 4, 32), (64, 32, 4, 16), (48, 32, 4, 12), (6, 32, 4, 1), (3, 32, 4, 1), (7, 7, 1, 7), (96, 96, 64, 1)],
)
def test_parts_are_equal_and_wide_enough(channels: int, most: int, width: int, expected: int) -> None:
    assert parts(channels, most, width) == expected


@pytest.mark.parametrize(("channels", "groups", "expected"), [(128, 32, 32), (32, 32, 8), (20, 8, 5), (10, 32, 2)])
def test_groups_divide_the_channels(channels: int, groups: int, expected: int) -> None:
    assert group_norm(channels, groups).num_groups == expected


@pytest.mark.parametrize("outputs", [8, 12])
def test_a_residual_block_starts_as_its_skip(outputs: int) -> None:
    torch.manual_seed(0)
    block = ResidualBlock(8, outputs, TWO, dropout=0.0)
    x = torch.randn(2, 8, 5, 3)
    assert torch.equal(block(x, torch.randn(2, outputs)), block.skip(x))


def test_the_shift_is_added_between_the_convolutions() -> None:
    torch.manual_seed(0)
    block = ResidualBlock(8, 8, TWO, dropout=0.0)
    nn.init.normal_(block.conv2.weight)
    x, shift = torch.randn(2, 8, 5, 3), torch.randn(2, 8)
    hidden = block.conv1(functional.silu(block.norm1(x))) + shift.reshape(2, 8, 1, 1)
    expected = x + block.conv2(functional.silu(block.norm2(hidden)))
    torch.testing.assert_close(block(x, shift), expected)


def test_dropout_acts_in_training_only() -> None:
    torch.manual_seed(0)
    block = ResidualBlock(8, 8, TWO, dropout=0.5)
    nn.init.normal_(block.conv2.weight)
    x, shift = torch.randn(2, 8, 5, 3), torch.randn(2, 8)
    assert not torch.equal(block(x, shift), block(x, shift))
    block.eval()
    assert torch.equal(block(x, shift), block(x, shift))


def test_scale_and_shift_act_after_the_second_norm() -> None:
    torch.manual_seed(0)
    block = ResidualBlock(8, 8, TWO, dropout=0.0, time="scale_shift")
    nn.init.normal_(block.conv2.weight)
    x, time = torch.randn(2, 8, 5, 3), torch.randn(2, 16)
    scale, shift = time.reshape(2, 16, 1, 1).chunk(2, 1)
    hidden = block.norm2(block.conv1(functional.silu(block.norm1(x)))) * (1 + scale) + shift
    torch.testing.assert_close(block(x, time), x + block.conv2(functional.silu(hidden)))


@pytest.mark.parametrize("time", ["shift", "scale_shift"])
def test_a_block_may_begin_with_its_convolution(time: Any) -> None:
    torch.manual_seed(0)
    x, told = torch.randn(2, 6, 5), torch.randn(2, 8 if time == "shift" else 16)
    block = ResidualBlock(6, 8, Layers(dims=1, groups=2, standardised=True), dropout=0.0, time=time, order="conv_first")
    hidden = block.conv1(x)
    if time == "shift":
        hidden = block.norm1(hidden + told[..., None])
    else:
        hidden = block.norm1(hidden) * (1 + told[:, :8, None]) + told[:, 8:, None]
    hidden = functional.silu(block.norm2(block.conv2(functional.silu(hidden))))
    torch.testing.assert_close(block(x, told), block.skip(x) + hidden)


@pytest.mark.parametrize(("dims", "reference"), [(1, nn.Conv1d), (2, nn.Conv2d), (3, nn.Conv3d)])
@pytest.mark.parametrize(("size", "stride"), [(1, 1), (3, 1), (3, 2)])
def test_a_convolution_is_that_of_torch_from_the_same_seed(dims: int, reference: Any, size: int, stride: int) -> None:
    torch.manual_seed(0)
    expected = reference(4, 6, size, stride=stride, padding=size // 2)
    torch.manual_seed(0)
    conv = Conv(4, 6, size, dims=dims, stride=stride)
    conv.load_state_dict(expected.state_dict())
    x = torch.randn(2, 4, *(5, 4, 3)[:dims])
    assert torch.equal(conv(x), expected(x))
    torch.manual_seed(0)
    assert torch.equal(Conv(4, 6, size, dims=dims).weight, expected.weight)
    torch.manual_seed(0)
    assert torch.equal(Conv(4, 6, size, dims=dims).bias, expected.bias)


@pytest.mark.parametrize("sides", [(6,), (5,), (6, 7), (1, 2), (4, 3, 6)])
def test_same_padding_puts_the_odd_zero_at_the_far_end(sides: tuple[int, ...]) -> None:
    """Window j covers 2j … 2j + 2 of an even side, and 2j − 1 … 2j + 1 of an odd one."""
    torch.manual_seed(0)
    down = Downsample(3, dims=len(sides), padding="same")
    x = torch.randn(2, 3, *sides)
    padded = torch.zeros(2, 3, *(side + 2 for side in sides))
    padded[(..., *(slice(1, side + 1) for side in sides))] = x
    windows = padded[(..., *(slice(1 - side % 2, None) for side in sides))]
    for axis in range(len(sides)):
        windows = windows.unfold(2 + axis, 3, 2)
    expected = torch.einsum("bi...k,oik->bo...", windows.flatten(2 + len(sides)), down.weight.flatten(2))
    torch.testing.assert_close(down(x), expected + down.bias.reshape(-1, *(1,) * len(sides)))
    assert down(x).shape[2:] == tuple(-(-side // 2) for side in sides)


def test_standardised_filters_have_mean_zero_and_variance_one() -> None:
    """Whatever the weights' scale and offset; the output is that of the standardised filters."""
    torch.manual_seed(0)
    conv = Conv(4, 6, standardised=True).double()
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    weight = conv.weight.detach().flatten(1)
    weight = (weight - weight.mean(1, keepdim=True)) / (weight.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    expected = functional.conv2d(x, weight.reshape(conv.weight.shape), conv.bias, padding=1)
    torch.testing.assert_close(conv(x), expected, rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        conv.weight.mul_(100).add_(7)
    assert (conv(x) - expected).norm() < 1e-3 * expected.norm(), "1e-5 beside a variance of 1/108"


def test_sampling_doubles_and_halves_upwards_and_join_crops() -> None:
    x = torch.randn(1, 4, 7, 10)
    small = Downsample(4)(x)
    assert small.shape == (1, 4, 4, 5)
    large = Upsample(4)(small)
    assert large.shape == (1, 4, 8, 10)
    assert torch.equal(join(large, x), torch.cat([large[:, :, :7], x], 1))


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_attention_is_a_softmax_over_pixels(heads: int, grad: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    channels, width = 12, 12 // heads
    attention = Attention(channels, Layers(groups=3), head_channels=width).double()
    nn.init.normal_(attention.out.weight)
    x = torch.randn(2, channels, 3, 4, dtype=torch.float64)
    normed = attention.norm(x).flatten(2)
    qkv = attention.qkv.weight.flatten(1) @ normed + attention.qkv.bias[:, None]
    q, k, v = (part.reshape(2, heads, width, 12) for part in qkv.split(channels, 1))
    weights = torch.softmax(torch.einsum("bndi,bndj->bnij", q, k) / width**0.5, -1)
    mixed = torch.einsum("bnij,bndj->bndi", weights, v).reshape(2, channels, 12)
    expected = x + (attention.out.weight.flatten(1) @ mixed + attention.out.bias[:, None]).reshape(x.shape)
    with torch.set_grad_enabled(grad):
        out = attention.to(dtype)(x.to(dtype)).double()
    bound = 1e-10 if dtype == torch.float64 else 0.05  # bfloat16: a few roundings of 2⁻⁹
    assert (out - expected).norm() < bound * expected.norm()


@pytest.mark.parametrize("heads", [1, 3])
def test_linear_attention_normalises_keys_over_pixels_and_queries_over_features(heads: int) -> None:
    torch.manual_seed(0)
    channels, width = 12, 12 // heads
    attention = LinearAttention(channels, Layers(dims=1, groups=3), head_channels=width).double()
    nn.init.normal_(attention.out.weight)
    x = torch.randn(2, channels, 7, dtype=torch.float64)
    qkv = attention.qkv(attention.norm(x))
    q, k, v = (part.reshape(2, heads, width, 7) for part in qkv.split(channels, 1))
    context = torch.einsum("bndi,bnei->bnde", k.softmax(-1), v)
    mixed = torch.einsum("bnde,bndi->bnei", context, q.softmax(-2) / width**0.5).reshape(2, channels, 7)
    torch.testing.assert_close(attention(x), x + attention.out(mixed), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("pixels", "dtype", "fused"),
    [
        (100, torch.float32, False),
        (144, torch.float32, True),
        (256, torch.bfloat16, False),
        (289, torch.bfloat16, True),
    ],
)
def test_the_cpu_takes_fused_attention_where_it_is_measured_to_be_faster(
    monkeypatch: pytest.MonkeyPatch, pixels: int, dtype: torch.dtype, fused: bool
) -> None:
    calls = []

    def counted(*qkv: Tensor) -> Tensor:
        calls.append(len(qkv))
        return functional.scaled_dot_product_attention(*qkv)

    monkeypatch.setattr(attention_module, "scaled_dot_product_attention", counted)
    qkv = torch.randn(3, 2, 1, pixels, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    mixed = Attention(4, TWO, head_channels=4).mix(qkv)
    assert calls == [3] * fused
    expected = functional.scaled_dot_product_attention(*qkv.double())
    bound = 8 * torch.finfo(dtype).eps  # each factor, sum and product is rounded; values are means of N(0, 1)
    torch.testing.assert_close(mixed.double(), expected, rtol=bound, atol=bound)


def test_attention_may_go_without_its_norm() -> None:
    bare = Attention(8, TWO, head_channels=4, normed=False)
    assert not any(isinstance(module, nn.GroupNorm) for module in bare.modules())


def test_attention_starts_as_the_identity() -> None:
    attention = Attention(8, TWO, head_channels=4)
    x = torch.randn(2, 8, 3, 4)
    assert torch.equal(attention(x), x)


@pytest.mark.parametrize(
    ("sides", "stride"), [((1,), 2), ((5, 1), 2), ((2, 4, 4), 1), ((2, 2, 2), 1), ((3, 1, 4), 2), ((1, 1, 1), 2)]
)
def test_weights_learn_from_small_maps_in_half_precision(sides: tuple[int, ...], stride: int) -> None:
    """Rounding to 8 digits moves a gradient by far less than 2 %; what torch leaves unwritten moves it by all."""
    conv = Conv(16, 16, dims=len(sides), stride=stride)
    x = torch.randn(4, 16, *sides, generator=torch.Generator().manual_seed(0))
    (exact,) = torch.autograd.grad(conv(x).sum(), conv.weight)
    for _ in range(3):
        stale = [torch.full((conv.weight.numel() * n,), float("nan")) for n in (1, 2, 4)]
        del stale  # memory that the next tensors may get
        with torch.autocast("cpu", torch.bfloat16):
            (found,) = torch.autograd.grad(conv(x).sum(), conv.weight)
        assert (found - exact).norm() < 0.02 * exact.norm()
