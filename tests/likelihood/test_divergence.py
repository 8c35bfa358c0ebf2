"""Traces of Jacobians against the full Jacobian, and where the random directions come from."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from sde_diffusion.errors import InputError
from sde_diffusion.likelihood import DIVERGENCES, Divergence, ExactTrace, Hutchinson
from sde_diffusion.likelihood.divergence import Chunk, Distribution, Mode, Probes, score_and_trace
from sde_diffusion.model import ScoreModel
from sde_diffusion.networks import MLP, UNet
from sde_diffusion.rng import generator
from sde_diffusion.sde import VPSDE
from sde_diffusion.tensors import PerSample
from tests.conftest import assert_mean, f64

MODES: tuple[Mode, ...] = ("reverse", "forward")
ALGEBRA = {"rtol": 1e-10, "atol": 1e-10}
T = f64(0.5)
MATRIX = torch.randn(6, 6, generator=generator(1), dtype=torch.float64)
SYMMETRIC = MATRIX + MATRIX.T


def linear(matrix: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """s(x) = matrix x, whose Jacobian is `matrix` everywhere."""
    return lambda x, t: (x.flatten(1) @ matrix.T).reshape(x.shape)


def curved(x: Tensor, t: Tensor) -> Tensor:
    """A field with a full Jacobian that differs from sample to sample."""
    return (torch.tanh(x.flatten(1) @ MATRIX.T) * t + x.flatten(1) ** 3).reshape(x.shape)


def points(count: int, shape: tuple[int, ...] = (6,)) -> Tensor:
    return torch.randn(count, *shape, generator=generator(2), dtype=torch.float64)


def directions(divergence: Divergence, count: int, *, seed: int = 0, start: int = 0) -> Tensor:
    """The directions themselves up to sign, v² (B, k): the Jacobian of ½ x x is diag(x), here with one dimension."""
    x = points(count, (1,))
    trace = divergence.bind(x, seed=seed, start=start)
    return score_and_trace(lambda x, t: 1.0 * x, trace, x, T)[1]


@pytest.mark.parametrize("chunk", ["auto", 1, 4, 6, 100])
@pytest.mark.parametrize("shape", [(6,), (2, 3), (1, 3, 2)])
def test_exact_trace_is_that_of_the_jacobian(chunk: Chunk, shape: tuple[int, ...]) -> None:
    x = points(3, shape)
    score, trace = score_and_trace(curved, ExactTrace(chunk=chunk).bind(x, seed=0, start=0), x, T)
    expected = [
        torch.autograd.functional.jacobian(lambda v: curved(v[None], T).flatten(), row).reshape(6, 6) for row in x
    ]
    torch.testing.assert_close(trace[:, 0], torch.stack([jacobian.trace() for jacobian in expected]), **ALGEBRA)
    torch.testing.assert_close(score, curved(x, T), **ALGEBRA)


@pytest.mark.parametrize("distribution", ["rademacher", "gaussian"])
def test_hutchinson_has_the_mean_and_variance_it_declares(distribution: Distribution) -> None:
    x = points(1)
    trace = Hutchinson(probes=4000, distribution=distribution).bind(x, seed=3, start=0)
    estimates = score_and_trace(linear(SYMMETRIC), trace, x, T)[1][0]
    diagonal = SYMMETRIC.diagonal()
    off_diagonal = float((SYMMETRIC**2).sum() - (diagonal**2).sum())
    variance = 2 * (off_diagonal + (float((diagonal**2).sum()) if distribution == "gaussian" else 0.0))
    assert_mean(estimates, float(diagonal.sum()), "mean")
    assert_mean((estimates - diagonal.sum()) ** 2, variance, "variance")


def test_rademacher_is_exact_for_a_diagonal_jacobian() -> None:
    x = points(3)
    trace = Hutchinson(probes=2).bind(x, seed=0, start=0)
    estimates = score_and_trace(lambda x, t: x**3, trace, x, T)[1]
    torch.testing.assert_close(estimates, (3 * x**2).sum(1, keepdim=True).expand(3, 2), **ALGEBRA)


def test_directions_belong_to_the_sample_not_to_the_batch() -> None:
    divergence = Hutchinson(probes=2, distribution="gaussian")
    whole = directions(divergence, 100, seed=7)
    assert torch.equal(directions(divergence, 3, seed=7, start=70), whole[70:73])
    assert torch.equal(directions(Hutchinson(probes=5, distribution="gaussian"), 100, seed=7)[:, :2], whole)
    assert not torch.equal(directions(divergence, 100, seed=8), whole)
    assert len(whole.unique()) == whole.numel()


def test_directions_stay_fixed_along_the_solve() -> None:
    x = points(3)
    trace = Hutchinson(distribution="gaussian").bind(x, seed=0, start=0)
    first, again = (score_and_trace(curved, trace, x, T)[1] for _ in range(2))
    assert torch.equal(first, again)


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_dtype_and_no_graph_left(name: str, dtype: torch.dtype) -> None:
    divergence = DIVERGENCES[name]()
    x = points(3, (2, 3)).to(dtype)
    with torch.no_grad():
        score, trace = score_and_trace(lambda x, t: x**2, divergence.bind(x, seed=0, start=0), x, T)
    assert score.shape == x.shape
    assert trace.shape == (3, divergence.estimates)
    assert score.dtype == trace.dtype == dtype
    assert not score.requires_grad
    assert not trace.requires_grad
    assert not x.requires_grad


@pytest.mark.parametrize("chunk", [1, 5])
def test_trace_runs_through_a_network_with_attention(chunk: int) -> None:
    """Convolution, group norm and fused attention: also under the vectorised reverse pass. float32, 1e-4 relative."""
    torch.manual_seed(0)
    lift, norm, mix = nn.Conv2d(2, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.Conv2d(8, 2, 1)

    def net(x: Tensor, t: Tensor) -> Tensor:
        h = norm(lift(x))
        tokens = h.flatten(2).transpose(1, 2)[:, None]
        attended = nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)[:, 0]
        return mix(h + attended.transpose(1, 2).reshape(h.shape))

    x = points(2, (2, 3, 3)).float()
    trace = score_and_trace(net, ExactTrace(chunk=chunk).bind(x, seed=0, start=0), x, T)[1]
    jacobians = torch.autograd.functional.jacobian(lambda v: net(v, T).sum(0).flatten(), x)
    expected = jacobians.transpose(0, 1).flatten(2).diagonal(dim1=1, dim2=2).sum(1, keepdim=True)
    torch.testing.assert_close(trace, expected, rtol=1e-4, atol=1e-4)
    assert lift.weight.grad is None


@pytest.mark.parametrize("mode", ["reverse", "forward"])
@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_modes_and_chunks_give_the_same_probes(mode: Mode, chunk: int) -> None:
    x = points(4, (2, 3))
    usual = score_and_trace(curved, Hutchinson(probes=5).bind(x, seed=1, start=0), x, T)
    trace = Hutchinson(probes=5, mode=mode, chunk=chunk).bind(x, seed=1, start=0)
    with torch.no_grad():  # as inside an integrator
        score, estimates = score_and_trace(curved, trace, x, T)
    torch.testing.assert_close(score, usual[0], **ALGEBRA)
    torch.testing.assert_close(estimates, usual[1], **ALGEBRA)
    assert isinstance(trace, PerSample)
    rows = torch.tensor([2, 0])
    torch.testing.assert_close(score_and_trace(curved, trace.select(rows), x[rows], T)[1], usual[1][rows], **ALGEBRA)


@pytest.mark.parametrize("chunk", [1, 3])
def test_forward_mode_runs_through_the_unet(chunk: int) -> None:
    """Convolutions, group norms and attention, whose fused kernels have no forward mode; float32, 1e-3 relative."""
    torch.manual_seed(0)
    net = UNet((1, 8, 8), channels=8, multipliers=(1, 2), blocks=1, attention=(4,))
    model = ScoreModel(net, VPSDE()).requires_grad_(False)
    for parameter in net.parameters():
        parameter.normal_(std=0.1, generator=generator(5))
    x, t = points(3, (1, 8, 8)).float(), torch.full((3,), 0.4)
    traces = [Hutchinson(probes=3, mode=mode, chunk=chunk).bind(x, seed=1, start=0) for mode in MODES]
    (score, reverse), (same, forward) = (score_and_trace(model, trace, x, t) for trace in traces)
    torch.testing.assert_close(same, score, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(forward, reverse, rtol=1e-3, atol=1e-3)


class Backwards(torch.autograd.Function):
    """x², with a reverse mode and no forward mode."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x * gradient


@pytest.mark.parametrize("chunk", [1, 2])
def test_an_operation_without_forward_mode_is_named(chunk: int) -> None:
    x = points(2)
    trace = Hutchinson(probes=2, mode="forward", chunk=chunk).bind(x, seed=0, start=0)
    with pytest.raises(InputError, match=r"cannot be differentiated in forward mode \(.*\); use mode: reverse"):
        score_and_trace(lambda x, t: Backwards.apply(x), trace, x, T)


def test_what_is_wrong_in_the_score_itself_is_not_hidden() -> None:
    def broken(x: Tensor, t: Tensor) -> Tensor:
        return x @ x

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        score_and_trace(broken, Hutchinson(mode="forward").bind(points(2), seed=0, start=0), points(2), T)


def test_errors() -> None:
    x = points(2)
    exact = ExactTrace().bind(x, seed=0, start=0)
    with pytest.raises(InputError, match="`probes` must be > 0, got 0"):
        Hutchinson(probes=0)
    with pytest.raises(InputError, match="`probes` must be ≤ 65536, got 65537"):
        Hutchinson(probes=65537)
    with pytest.raises(InputError, match="`distribution` must be one of rademacher, gaussian, got 'uniform'"):
        Hutchinson(distribution="uniform")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="`mode` must be one of auto, reverse, forward, got 'sideways'"):
        Hutchinson(mode="sideways")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="`chunk` must be > 0, got 0"):
        Hutchinson(chunk=0)
    with pytest.raises(InputError, match="`chunk` must be > 0, got -1"):
        ExactTrace(chunk=-1)
    with pytest.raises(InputError, match="`score_fn` must be differentiable in x"):
        score_and_trace(lambda x, t: -x.detach(), exact, x, T)
    with torch.inference_mode(), pytest.raises(InputError, match="`score_fn` must be differentiable in x"):
        score_and_trace(lambda x, t: -x, exact, x, T)


def test_copies_take_their_labels_along() -> None:
    """A pass of several directions evaluates copies of the batch, each with what the score keeps for its sample."""
    torch.manual_seed(0)
    model = ScoreModel(MLP((3,), width=8, classes=4), VPSDE()).double().requires_grad_(False)
    score_fn, x, t = model.bind(torch.tensor([0, 3])), points(2, (3,)), f64([0.2, 0.7])
    for divergence in (ExactTrace(chunk=3), ExactTrace(chunk=2), Hutchinson(probes=3, chunk=2)):
        one = replace(divergence, chunk=1).bind(x, seed=0, start=0)
        several = divergence.bind(x, seed=0, start=0)
        for found, expected in zip(
            score_and_trace(score_fn, several, x, t), score_and_trace(score_fn, one, x, t), strict=True
        ):
            torch.testing.assert_close(found, expected, **ALGEBRA)


@pytest.mark.parametrize(
    ("divergence", "batch", "rows"),
    [(ExactTrace(), 1, 6), (ExactTrace(), 10, 30), (ExactTrace(), 40, 40), (Hutchinson(probes=3), 4, 8)],
)
def test_auto_fills_the_batch(divergence: Divergence, batch: int, rows: int) -> None:
    """Up to 32 rows for the exact trace and 8 for probes on a CPU, and no more copies than there are directions."""
    seen = []

    def score_fn(x: Tensor, t: Tensor) -> Tensor:
        seen.append(len(x))
        return curved(x, t)

    x = points(batch)
    score_and_trace(score_fn, divergence.bind(x, seed=0, start=0), x, T)
    assert seen == [rows]


def test_copies_shrink_to_the_memory() -> None:
    seen = []

    def score_fn(x: Tensor, t: Tensor) -> Tensor:
        seen.append(len(x))
        if len(x) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return curved(x, t)

    x, trace = points(2), ExactTrace().bind(points(2), seed=0, start=0)
    expected = score_and_trace(curved, ExactTrace(chunk=1).bind(x, seed=0, start=0), x, T)[1]
    for _ in range(2):
        torch.testing.assert_close(score_and_trace(score_fn, trace, x, T)[1], expected, **ALGEBRA)
    assert seen == [12, 6, 2, 2]
    with pytest.raises(torch.OutOfMemoryError):
        score_and_trace(score_fn, ExactTrace().bind(points(6), seed=0, start=0), points(6), T)


class Watch(TorchDispatchMode):
    """What each backward of a convolution is asked for: the gradients by input, weight and bias."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[list[bool]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten.convolution_backward.default:
            self.asked.append(list(args[-1]))
        return function(*args, **(kwargs or {}))


def test_no_gradient_of_a_weight_is_computed() -> None:
    """Though the weights are trainable: one vjp by the input is as much work as the forward pass."""
    net = UNet((1, 8, 8), channels=8, multipliers=(1, 2), blocks=1, attention=(4,))
    x = points(2, (1, 8, 8)).float()
    with Watch() as watch:
        score_and_trace(net, Probes(torch.ones(1, *x.shape)), x, torch.ones(2))
    assert len(watch.asked) > 10
    assert all(asked == [True, False, False] for asked in watch.asked)
