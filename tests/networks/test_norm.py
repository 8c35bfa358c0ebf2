"""GroupNorm with what stands around it: every way of computing it is the plain formula."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from sde_diffusion.networks.norm import GroupNorm, by_sums

CLOSE = {"rtol": 1e-10, "atol": 1e-12}
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def inputs(layout: str, told: str, dtype: torch.dtype = torch.float64) -> tuple[GroupNorm, list[Tensor]]:
    """A norm of 6 channels in 3 groups, and x (5, 6, 3, 4) with what the norm is told, requiring gradients."""
    draws = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draws, dtype=torch.float64).to(dtype)

    norm = GroupNorm(3, 6).to(dtype)
    norm.weight.data, norm.bias.data = normal(6), normal(6)
    x = (2 * normal(5, 6, 3, 4) + 1).contiguous(memory_format=FORMATS[layout])
    more = {"nothing": [], "shift": [normal(5, 6)], "film": [normal(5, 12)]}[told]
    return norm, [part.requires_grad_() for part in (x, *more)]


def plain(norm: GroupNorm, told: str) -> Callable[..., Tensor]:
    """The formula, from PyTorch's own operations."""

    def formula(x: Tensor, *more: Tensor) -> Tensor:
        h = x + more[0][..., None, None] if told == "shift" else x
        h = functional.group_norm(h, norm.num_groups, norm.weight, norm.bias, norm.eps)
        if told == "film":
            scale, offset = more[0][..., None, None].chunk(2, 1)
            h = h * (1 + scale) + offset
        return functional.silu(h)

    return formula


def ours(norm: GroupNorm, told: str) -> Callable[..., Tensor]:
    return lambda x, *more: norm.silu(x, **dict(zip([told], more, strict=False)))


each_way = pytest.mark.parametrize("layout", FORMATS)
each_told = pytest.mark.parametrize("told", ["nothing", "shift", "film"])


@each_way
@each_told
def test_value_and_gradients_are_those_of_the_formula(layout: str, told: str) -> None:
    norm, given = inputs(layout, told)
    assert by_sums(given[0]) == (layout == "channels_last")
    weight = torch.randn(5, 6, 3, 4, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    found, expected = ours(norm, told)(*given), plain(norm, told)(*given)
    torch.testing.assert_close(found, expected, **CLOSE)
    wanted = [*given, norm.weight, norm.bias]
    gradients = [torch.autograd.grad((out * weight).sum(), wanted) for out in (found, expected)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)
    with torch.no_grad():
        torch.testing.assert_close(ours(norm, told)(*given), expected, **CLOSE)


@each_way
@each_told
def test_gradients_can_be_differentiated_and_batched(layout: str, told: str) -> None:
    norm, given = inputs(layout, told)
    wanted, second, batched = [*given, norm.weight, norm.bias], [], []
    directions = torch.randn(2, 5, 6, 3, 4, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    for way in (ours, plain):
        out = way(norm, told)(*given)
        batched.append(torch.autograd.grad(out, wanted, directions, is_grads_batched=True, retain_graph=True))
        first = torch.autograd.grad((out**3).sum(), wanted, create_graph=True)
        second.append(torch.autograd.grad(sum((part**2).sum() for part in first), wanted))
    for pair in (batched, second):
        for one, other in zip(*pair, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@each_way
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")  # of torch's own decompositions
def test_forward_mode_and_vmap_see_the_formula(layout: str) -> None:
    norm, (x, shift) = inputs(layout, "shift")
    x, shift = x.detach(), shift.detach()
    pushed = [
        torch.func.jvp(way(norm, "shift"), (x, shift), (shift[..., None, None] * x, shift)) for way in (ours, plain)
    ]
    for one, other in zip(*pushed, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)
    mapped = torch.func.vmap(ours(norm, "shift"))(x[:, None], shift[:, None])[:, 0]
    torch.testing.assert_close(mapped, plain(norm, "shift")(x, shift), **CLOSE)


@each_way
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 3e-6), (torch.bfloat16, 0.06)])
def test_lower_precision_errs_by_its_rounding(layout: str, dtype: torch.dtype, bound: float) -> None:
    """A few roundings of 2^-24 or 2^-9, of numbers up to about 10; the statistics are float32's."""
    norm, given = inputs(layout, "shift", torch.float32)
    low = [part.to(dtype) for part in given]
    exact = plain(copy.deepcopy(norm).double(), "shift")(*(part.double() for part in low))
    torch.testing.assert_close(ours(norm, "shift")(*low).double(), exact, rtol=bound, atol=bound)
    assert ours(norm, "shift")(*low).dtype == dtype


@each_way
@pytest.mark.parametrize("mean", [10.0, 1000.0])
def test_features_far_from_zero_keep_their_variance(layout: str, mean: float) -> None:
    """All that is lost is the rounding of m and of x − m, a few times 2⁻²⁴ |m|, as in `nn.GroupNorm`: here 16 times."""
    norm, (x,) = inputs(layout, "nothing", torch.float32)
    far = (x.detach() + mean).requires_grad_()
    weight = torch.randn(5, 6, 3, 4, generator=torch.Generator().manual_seed(4))
    found = ours(norm, "nothing")(far)
    gradient = torch.autograd.grad(found, far, weight)[0]
    exact = far.detach().double().requires_grad_()
    expected = plain(copy.deepcopy(norm).double(), "nothing")(exact)
    allowed = {"rtol": 0.0, "atol": 16 * 2**-24 * (mean + 1)}
    torch.testing.assert_close(found.double(), expected, **allowed)
    torch.testing.assert_close(gradient.double(), torch.autograd.grad(expected, exact, weight.double())[0], **allowed)


@each_way
def test_the_norm_alone_is_group_norm(layout: str) -> None:
    norm, (x,) = inputs(layout, "nothing")
    torch.testing.assert_close(norm(x), functional.group_norm(x, 3, norm.weight, norm.bias, norm.eps), **CLOSE)


@each_way
def test_a_batch_mate_changes_no_sample_beyond_rounding(layout: str) -> None:
    norm, (x, shift) = inputs(layout, "shift")
    with torch.no_grad():
        alone = norm.silu(x[1:2].contiguous(memory_format=FORMATS[layout]), shift[1:2])
        torch.testing.assert_close(norm.silu(x, shift)[1:2], alone, **CLOSE)


def test_training_keeps_one_map_for_norm_and_silu() -> None:
    """The convolution before keeps its input and the one after its own; of norm and SiLU, x alone is left."""
    for layout in FORMATS:
        norm, (x,) = inputs(layout, "nothing")
        kept: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t) or t, lambda t: t):
            norm.silu(x)
        assert [part.shape for part in kept if part.ndim == 4] == [x.shape]
