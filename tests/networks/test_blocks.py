"""How channels are shared out, and the blocks against plain formulas."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from sde_diffusion.networks.attention import Attention
from sde_diffusion.networks.blocks import Downsample, ResidualBlock, Upsample, group_norm, join, parts


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
    block = ResidualBlock(8, outputs, dropout=0.0, groups=2)
    x = torch.randn(2, 8, 5, 3)
    assert torch.equal(block(x, torch.randn(2, outputs)), block.skip(x))


def test_the_shift_is_added_between_the_convolutions() -> None:
    torch.manual_seed(0)
    block = ResidualBlock(8, 8, dropout=0.0, groups=2)
    nn.init.normal_(block.conv2.weight)
    x, shift = torch.randn(2, 8, 5, 3), torch.randn(2, 8)
    hidden = block.conv1(functional.silu(block.norm1(x))) + shift.reshape(2, 8, 1, 1)
    expected = x + block.conv2(functional.silu(block.norm2(hidden)))
    torch.testing.assert_close(block(x, shift), expected)


def test_dropout_acts_in_training_only() -> None:
    torch.manual_seed(0)
    block = ResidualBlock(8, 8, dropout=0.5, groups=2)
    nn.init.normal_(block.conv2.weight)
    x, shift = torch.randn(2, 8, 5, 3), torch.randn(2, 8)
    assert not torch.equal(block(x, shift), block(x, shift))
    block.eval()
    assert torch.equal(block(x, shift), block(x, shift))


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
    attention = Attention(channels, head_channels=width, groups=3).double()
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


def test_attention_starts_as_the_identity() -> None:
    attention = Attention(8, head_channels=4, groups=2)
    x = torch.randn(2, 8, 3, 4)
    assert torch.equal(attention(x), x)
