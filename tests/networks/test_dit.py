"""The diffusion transformer: its published sizes, its parts against torch's own, and what it refuses."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sde_diffusion.errors import InputError
from sde_diffusion.likelihood import Hutchinson
from sde_diffusion.likelihood.divergence import score_and_trace
from sde_diffusion.model import ScoreModel
from sde_diffusion.networks.dit import SIZES, Block, DiT, positions
from sde_diffusion.sde import VPSDE
from tests.commands.running import invoke
from tests.conformance.test_networks import awake

PUBLISHED = {"S": 33, "B": 130, "L": 458, "XL": 675}  # table 4 [millions], patches of 2
LARGEST = 675_129_632  # DiT-XL/2 with its table of positions, as its own code counts


def published_count(size: str, patch: int, channels: int = 4, classes: int = 1000, side: int = 32) -> int:
    """Numbers in the published network: every tensor by its shape."""
    w, depth = SIZES[size]["width"], SIZES[size]["depth"]

    def linear(inputs: int, outputs: int) -> int:
        return inputs * outputs + outputs

    patches = (side // patch) ** 2
    embedded = linear(channels * patch**2, w) + patches * w + linear(256, w) + linear(w, w) + (classes + 1) * w
    block = linear(w, 3 * w) + linear(w, w) + linear(w, 4 * w) + linear(4 * w, w) + linear(w, 6 * w)
    final = linear(w, 2 * w) + linear(w, patch**2 * 2 * channels)
    return embedded + depth * block + final


@pytest.mark.parametrize("patch", [2, 4, 8])
@pytest.mark.parametrize("size", SIZES)
def test_published_sizes_have_their_numbers_of_parameters(size: str, patch: int) -> None:
    """With the table of positions, which is fixed there too but counted as a parameter."""
    with torch.device("meta"):
        net = DiT((4, 32, 32), classes=1000, heads=2, patch=patch, **SIZES[size])
    found = sum(parameter.numel() for parameter in net.parameters()) + net.position.numel()
    assert found == published_count(size, patch)
    if patch == 2:
        assert abs(found / 1e6 - PUBLISHED[size]) < 1
    assert published_count("XL", 2) == LARGEST


def test_published_heads() -> None:
    with torch.device("meta"):
        counts = {size: DiT((4, 32, 32), **options).blocks[0].count for size, options in SIZES.items()}
    assert counts == {"S": 6, "B": 12, "L": 16, "XL": 16}


@pytest.mark.parametrize(
    ("shape", "patch"), [((1, 5, 7), 2), ((3, 28, 28), 4), ((2, 9, 16), 3), ((1, 1, 1), 1), ((5, 1, 12), 1)]
)
def test_any_size_and_number_of_channels_works(shape: tuple[int, ...], patch: int) -> None:
    net = DiT(shape, patch=patch, width=8, depth=1)
    assert net(torch.randn(2, *shape), torch.randn(2)).shape == (2, *shape)


def test_a_block_is_that_of_torchs_own_layers() -> None:
    """MultiheadAttention, LayerNorm and GELU, from the same weights."""
    width, count = 24, 3
    block = awake(Block(width, count=count, hidden=40))
    draws = torch.Generator().manual_seed(3)
    h, condition = (torch.randn(*shape, generator=draws, dtype=torch.float64) for shape in ((2, 5, width), (2, width)))

    attention = nn.MultiheadAttention(width, count, batch_first=True).double()
    attention.in_proj_weight.data, attention.in_proj_bias.data = block.qkv.weight.data, block.qkv.bias.data
    attention.out_proj.weight.data, attention.out_proj.bias.data = block.out.weight.data, block.out.bias.data
    norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
    shift, scale, gate, shift2, scale2, gate2 = (part[:, None] for part in block.modulation(condition).split(width, 1))
    inner = norm(h) * (1 + scale) + shift
    middle = h + gate * attention(inner, inner, inner, need_weights=False)[0]
    inner = block.first(norm(middle) * (1 + scale2) + shift2)
    expected = middle + gate2 * block.second(nn.GELU(approximate="tanh")(inner))
    torch.testing.assert_close(block(h, condition), expected, rtol=1e-10, atol=1e-12)


def test_a_block_starts_as_the_identity() -> None:
    h = torch.randn(2, 5, 8)
    assert torch.equal(Block(8, count=2, hidden=16)(h, torch.randn(2, 8)), h)


def test_positions_are_waves_of_column_and_row() -> None:
    found = positions(3, 5, 16)
    assert found.shape == (15, 16)
    for i in range(3):
        for j in range(5):
            waves = [f(place * 10_000 ** (-k / 4)) for place in (j, i) for f in (_sin, _cos) for k in range(4)]
            torch.testing.assert_close(found[5 * i + j], torch.tensor(waves), rtol=0, atol=1e-6)


def _sin(angle: float) -> float:
    return float(torch.tensor(angle, dtype=torch.float64).sin())


def _cos(angle: float) -> float:
    return float(torch.tensor(angle, dtype=torch.float64).cos())


def test_without_attention_a_patch_sees_itself_alone() -> None:
    """So the way from pixels to patches and back is one and the same, on sides that are no multiple of it too."""
    net = awake(DiT((2, 5, 7), patch=3, width=8, depth=2))
    for block in net.blocks:
        block.out.weight.data.zero_()
    x = torch.randn(1, 2, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def summed(x: Tensor) -> Tensor:
        return net(x, torch.zeros(1, dtype=torch.float64)).abs().sum((0, 1))

    jacobian = torch.autograd.functional.jacobian(summed, x).abs().sum((2, 3))
    patch = torch.arange(5)[:, None] // 3 * 3 + torch.arange(7) // 3
    same = patch[:, :, None, None] == patch
    assert bool((jacobian[~same] == 0).all())
    assert float(jacobian[same].min()) > 1e-6


@pytest.mark.parametrize("chunk", [1, 3])
def test_forward_and_reverse_mode_give_one_trace(chunk: int) -> None:
    net = awake(DiT((2, 5, 6), patch=2, width=16, depth=2, fourier=(1,)))
    model = ScoreModel(net, VPSDE()).requires_grad_(False)
    x = torch.randn(3, 2, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = torch.full((3,), 0.4, dtype=torch.float64)
    traces = [Hutchinson(probes=3, mode=mode, chunk=chunk).bind(x, seed=1, start=0) for mode in ("reverse", "forward")]
    (score, reverse), (same, forward) = (score_and_trace(model, trace, x, t) for trace in traces)
    torch.testing.assert_close(same, score, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(forward, reverse, rtol=1e-10, atol=1e-8)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((3, 8), {}, r"`shape` must be \(channels, height, width\) for the network 'dit', got \(3, 8\)"),
        ((1, 6, 9), {"patch": 7}, "`patch` must be at most the smaller side of the image, 6, got 7"),
        ((1, 8, 8), {"patch": 0}, "`patch` must be > 0"),
        ((1, 8, 8), {"width": 30}, "`width` must be a multiple of 4, got 30"),
        ((1, 8, 8), {"width": 0}, "`width` must be a multiple of 4, got 0"),
        ((1, 8, 8), {"depth": 0}, "`depth` must be > 0"),
        ((1, 8, 8), {"head_channels": 0}, "`head_channels` must be > 0"),
        ((1, 8, 8), {"mlp_ratio": 0}, "`mlp_ratio` must be > 0"),
        ((1, 8, 8), {"heads": 0}, "`heads` must be > 0"),
    ],
)
def test_arguments_out_of_range(shape: tuple[int, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        DiT(shape, **options)


def test_a_patch_larger_than_the_image_is_one_line_on_the_command_line(tmp_path: Path) -> None:
    outcome = invoke("train", "--set", "model.network={name: dit, patch: 9}", "--out", tmp_path)
    assert outcome.code == 2
    assert "`patch` must be at most the smaller side of the image, 8, got 9" in outcome.error
