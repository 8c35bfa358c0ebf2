"""The low-pass filter against SciPy's, and halving and doubling of any side."""

import itertools

import pytest
import torch
from scipy.signal import upfirdn
from torch import Tensor, nn
from torch.nn import functional

from sde_diffusion.networks.score_sde.resample import (
    ConvUp,
    FilterConvDown,
    FilterConvUp,
    FilterDown,
    FilterUp,
    conv_down,
    conv_up,
    down,
    up,
)

TAPS = [1.0, 3.0, 3.0, 1.0]
SIDES = [(8, 6), (7, 4), (1, 5), (2, 1)]


def images(height: int, width: int, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, channels, height, width, generator=generator, dtype=torch.float64)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def along(x: Tensor, dim: int, *, raise_by: int, lower_by: int, first: int, count: int) -> Tensor:
    """SciPy's filter of unit gain along `dim`: `count` outputs from number `first` of zeros, filtered, thinned out."""
    out = torch.from_numpy(upfirdn([tap * raise_by / 8 for tap in TAPS], x.numpy(), raise_by, 1, axis=dim))
    out = torch.cat([out, torch.zeros_like(out)], dim)  # what SciPy leaves out is zero
    return out.index_select(dim, torch.arange(first, first + lower_by * count, lower_by))


@pytest.mark.parametrize(("height", "width"), SIDES)
def test_the_filter_is_scipys(height: int, width: int) -> None:
    x = images(height, width)
    lower, upper = x, x
    for dim, side in ((2, height), (3, width)):
        lower = along(lower, dim, raise_by=1, lower_by=2, first=2, count=-(-side // 2))
        upper = along(upper, dim, raise_by=2, lower_by=1, first=1, count=2 * side)
    close(FilterDown().double()(x), lower)
    close(FilterUp().double()(x), upper)


def test_up_is_four_times_the_transpose_of_down() -> None:
    x, y = images(8, 6), images(4, 3)
    close(4 * (FilterDown().double()(x) * y).sum(), (x * FilterUp().double()(y)).sum())


@pytest.mark.parametrize("fir", [True, False])
def test_constants_stay_inside_and_everywhere_under_boxes(fir: bool) -> None:
    ones = torch.ones(1, 2, 9, 7, dtype=torch.float64)
    inside = (..., slice(1, -1), slice(1, -1)) if fir else (...,)
    for layer in (down(fir=fir), up(fir=fir)):
        out = layer.double()(ones)[inside]
        close(out, torch.ones_like(out))


def test_filter_and_convolution_are_those_one_after_the_other_padded_once() -> None:
    """The image is padded for both at the beginning: what the filter gives outside the image counts."""
    x = images(6, 4)
    wide = functional.pad(x, (4, 4, 4, 4))
    lower, upper = FilterConvDown(3, 5).double(), FilterConvUp(3, 5).double()
    smooth = lower.filtered(wide, stride=1, padding=0)  # at 0 … of 4 + 6 + 4 − 3
    expected = functional.conv2d(smooth[..., 2:-2, 2:-2], lower.conv.weight, stride=2)
    close(lower(x), expected)
    grown = FilterUp().double()(wide)[..., 7:-7, 7:-7]
    close(upper(x), functional.conv2d(grown, upper.conv.weight))


@pytest.mark.parametrize(("height", "width"), SIDES)
@pytest.mark.parametrize("fir", [True, False])
def test_sides_are_halved_upwards_and_doubled(height: int, width: int, fir: bool) -> None:
    x = images(height, width)
    for layer in (down(fir=fir), conv_down(3, 3, fir=fir)):
        assert layer.double()(x).shape == (2, 3, -(-height // 2), -(-width // 2))
    for layer in (up(fir=fir), conv_up(3, 3, fir=fir)):
        assert layer.double()(x).shape == (2, 3, 2 * height, 2 * width)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")  # PyTorch's own, in forward mode
@pytest.mark.parametrize("layer", [FilterDown(), FilterUp(), FilterConvDown(2, 2), ConvUp(2, 2)])
def test_every_mode_of_differentiation(layer: nn.Module) -> None:
    """A linear map: forward mode is the map itself, and so is the derivative of reverse mode."""
    layer = layer.double().requires_grad_(False)
    x, tangent = images(5, 4, channels=2), images(5, 4, channels=2).flip(0)
    shift = layer(torch.zeros_like(x))
    pushed = torch.func.jvp(layer, (x,), (tangent,))[1]
    close(pushed, layer(tangent) - shift)
    torch.autograd.gradgradcheck(layer, x[:1].requires_grad_())


def test_the_taps_are_exact_in_bfloat16() -> None:
    rough, exact = FilterDown().bfloat16(), FilterDown()
    assert torch.equal(rough.kernel.float(), exact.kernel)
    assert list(itertools.chain(rough.state_dict(), exact.state_dict())) == []
