"""The pairs by the algebra of rooted trees, and the integrator that steps every sample by itself."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.integrate import solve_ivp
from torch import Tensor

from sde_diffusion.oracle import GaussianMixture
from sde_diffusion.rng import generator
from sde_diffusion.score import reverse_drift
from sde_diffusion.sde import SDE, VESDE, VPSDE
from sde_diffusion.solvers.runge_kutta import Integrator, Path, Rhs, Status, _Live, sample_rms
from sde_diffusion.solvers.tableaux import TABLEAUX, Tableau
from tests.conftest import f64

Tree = tuple[Any, ...]
"""A rooted tree: the trees that hang on its root."""

PAIRS = pytest.mark.parametrize("name", TABLEAUX)
ERROR_ORDERS = {"dopri5": (4,), "tsit5": (4,), "dop853": (5, 3)}  # of the results that y' is compared with
SCIPY = {"dopri5": "RK45", "tsit5": "RK45", "dop853": "DOP853"}
B = 9


@cache
def trees(vertices: int) -> list[Tree]:
    """All rooted trees of so many vertices, each once."""
    found: list[Tree] = []

    def grow(left: int, largest: tuple[int, int], branches: Tree) -> None:
        if left == 0:
            found.append(branches)
        for size in range(1, left + 1):
            for number, branch in enumerate(trees(size)):
                if (size, number) <= largest:
                    grow(left - size, (size, number), (*branches, branch))

    grow(vertices - 1, (vertices, 0), ())
    return found


def vertices(tree: Tree) -> int:
    return 1 + sum(map(vertices, tree))


def density(tree: Tree) -> int:
    """γ of Hairer, Nørsett & Wanner 1993, definition II.2.10."""
    return vertices(tree) * math.prod(map(density, tree))


def stage_weights(tree: Tree, a: NDArray[np.float64]) -> NDArray[np.float64]:
    """Φ_i, definition II.2.9: the product over the branches of Σ_j a_ij Φ_j."""
    weights = np.ones(len(a))
    for branch in tree:
        weights = weights * (a @ stage_weights(branch, a))
    return weights


def matrix(tableau: Tableau) -> NDArray[np.float64]:
    a = np.zeros((len(tableau.nodes),) * 2)
    for i, row in enumerate(tableau.stages):
        assert len(row) == i
        a[i, :i] = row
    return a


def test_there_are_as_many_trees_as_there_should_be() -> None:
    assert [len(trees(n)) for n in range(1, 9)] == [1, 1, 2, 4, 9, 20, 48, 115]


@PAIRS
def test_order_conditions(name: str) -> None:
    """Σ b_i Φ_i = 1/γ for all trees to order p, Σ e_i Φ_i = 0 to the lower order; neither holds one order further.

    Published to 16 digits, with weights to 44: rounding stays below 1e-13.
    """
    tableau = TABLEAUX[name]
    a = matrix(tableau)
    np.testing.assert_allclose(a.sum(1), tableau.nodes, rtol=0, atol=1e-14)
    assert (tableau.nodes[0], tableau.nodes[-1]) == (0, 1)

    def defect(weights: tuple[float, ...], order: int, exact: bool) -> float:
        return max(abs(np.array(weights) @ stage_weights(t, a) - exact / density(t)) for t in trees(order))

    for weights, order, exact in [
        (tableau.weights, tableau.order, True),
        *((e, p, False) for e, p in zip(tableau.errors, ERROR_ORDERS[name], strict=True)),
    ]:
        assert max(defect(weights, p, exact) for p in range(1, order + 1)) < 1e-13
        assert defect(weights, order + 1, exact) > 1e-5


def mixture(sde: SDE) -> GaussianMixture:
    return GaussianMixture(sde, f64([0.3, 0.7]), f64([[1.0, 0.0, -1.0], [-0.5, 0.4, 0.2]]), f64([0.1, 0.3]))


def one_gaussian(sde: SDE) -> GaussianMixture:
    return GaussianMixture.gaussian(sde, f64([0.5, -0.3, 0.1]), 0.6)


def flow(oracle: GaussianMixture) -> Rhs:
    return lambda t, y: reverse_drift(oracle.sde, oracle.score(y, t), y, t, eta=0.0)


def one_by_one(rhs: Rhs) -> Rhs:
    """Evaluated sample by sample, so that no matrix product rounds differently with the batch size."""
    return lambda t, y: torch.cat([rhs(t[i : i + 1], y[i : i + 1]) for i in range(len(y))])


def start(sde: SDE, dtype: torch.dtype = torch.float64) -> Tensor:
    return sde.prior_std * torch.randn(B, 3, generator=generator(0), dtype=torch.float64).to(dtype)


def integrator(name: str = "dopri5", tolerance: float = 1e-5, **options: Any) -> Integrator:
    return Integrator(TABLEAUX[name], tolerance, tolerance, **options)


@dataclass(frozen=True, eq=False)
class EqualSteps(Integrator):
    """Steps of one size, whatever the error."""

    h: float = 0.1

    def _first_step(self, rhs: Rhs, live: Any, ends: Tensor) -> Tensor:
        return torch.full_like(live.t, self.h)

    def _control(self, live: Any, error: Tensor) -> Tensor:
        return torch.ones_like(error)


@PAIRS
def test_order_in_equal_steps(name: str) -> None:
    """Off by h^p on a flow that depends on t: the stages are taken at their times."""
    oracle, tableau, errors = one_gaussian(VPSDE()), TABLEAUX[name], []
    x = start(oracle.sde)
    exact = oracle.flow(x, f64(0.9), f64(0.4))
    counts = [4, 5, 6, 8] if tableau.order == 8 else [32, 48, 64]  # more, and the last reach the rounding of float64
    for count in counts:
        solver = EqualSteps(tableau, 1e9, 1e9, h=0.5 / count)
        result = solver.solve(flow(oracle), x, 0.9, 0.4)
        assert (result.nfe == 1 + 1 + count * (len(tableau.nodes) - 1)).all()
        errors.append(float((result.y - exact).abs().max()))
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert abs(slope - tableau.order) < 0.25, errors


@PAIRS
@pytest.mark.parametrize("sde", [VPSDE(), VESDE()], ids=["vp", "ve"])
@pytest.mark.parametrize("ends", [(1.0, 1e-5), (1e-5, 1.0)])
def test_agrees_with_scipy(name: str, sde: SDE, ends: tuple[float, float]) -> None:
    """Both within n steps of the tolerance."""
    oracle, tolerance, x = mixture(sde), 1e-7, start(sde)[0]
    result = integrator(name, tolerance).solve(flow(oracle), x[None], *ends)

    def rhs(t: float, y: NDArray[np.float64]) -> NDArray[np.float64]:
        slope: NDArray[np.float64] = flow(oracle)(f64([t]), torch.from_numpy(y)[None])[0].numpy()
        return slope

    known = solve_ivp(rhs, ends, x.numpy(), method=SCIPY[name], rtol=tolerance, atol=tolerance)
    size = max(1.0, float(np.abs(known.y).max()))
    bound = (int(result.nfe) + known.nfev) / 6 * tolerance * (1 + size)
    assert (result.y[0] - torch.from_numpy(known.y[:, -1])).abs().max() < bound
    assert int(result.nfe) < 1.5 * known.nfev  # the same order and control, up to its constants


@pytest.mark.parametrize("name", ["dopri5", "dop853"])  # one estimate of the error, and two
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sde", [VPSDE(), VESDE()], ids=["vp", "ve"])
def test_a_sample_is_the_same_to_the_bit_in_any_company(name: str, dtype: torch.dtype, sde: SDE) -> None:
    """Alone, in parts, in another order, beside an outlier and beside a NaN; the count of evaluations too."""
    rhs, x, solver = one_by_one(flow(mixture(sde))), start(sde, dtype), integrator(name, 1e-3)
    whole = solver.solve(rhs, x, 1.0, 1e-5)
    assert whole.y.dtype == dtype
    assert (whole.status == Status.DONE).all()
    assert len(set(whole.nfe.tolist())) > 1, "own steps"
    order = torch.randperm(B, generator=generator(1))
    outlier, nan = x.clone(), x.clone()
    outlier[4] += 30 * sde.prior_std
    nan[4] = math.nan
    others = torch.arange(B) != 4
    for batch, rows, positions in [
        *((x[i : i + 1], slice(i, i + 1), slice(None)) for i in (0, 4, 8)),
        (x[2:7], slice(2, 7), slice(None)),
        (x[order], order, slice(None)),
        (outlier, others, others),
        (nan, others, others),
    ]:
        part = solver.solve(rhs, batch, 1.0, 1e-5)
        assert torch.equal(part.y[positions], whole.y[rows])
        assert torch.equal(part.nfe[positions], whole.nfe[rows])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_elementwise_drift_needs_no_care(dtype: torch.dtype) -> None:
    """The single Gaussian's own score is elementwise, in batches of 1 to 70 and rows of 1 to 17 entries."""
    sde = VPSDE()
    for dims in (1, 17):
        oracle = GaussianMixture.gaussian(sde, torch.linspace(-1, 1, dims, dtype=torch.float64), 0.3)
        x = torch.randn(70, dims, generator=generator(2), dtype=dtype)
        whole = integrator().solve(flow(oracle), x, 1.0, 1e-5)
        for size in (1, 2, 7, 33):
            part = integrator().solve(flow(oracle), x[:size], 1.0, 1e-5)
            assert torch.equal(part.y, whole.y[:size])


def test_the_size_of_one_large_sample_is_that_among_others() -> None:
    """Where a sum over a single row would be cut among threads."""
    y, threads = torch.randn(3, 50_000, generator=generator(4), dtype=torch.float64), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        sizes = [sample_rms(y[i : i + 1]) for i in range(3)]
        assert torch.equal(torch.cat(sizes), sample_rms(y))
    finally:
        torch.set_num_threads(threads)


def test_standing_still_is_leaving() -> None:
    """Without compaction the right-hand side always sees the whole batch, and the results are the same to the bit."""
    sizes: dict[bool, list[int]] = {True: [], False: []}
    results = {}
    for compact, seen in sizes.items():
        rhs = one_by_one(flow(mixture(VPSDE())))

        def counted(t: Tensor, y: Tensor, rhs: Rhs = rhs, seen: list[int] = seen) -> Tensor:
            seen.append(len(y))
            return rhs(t, y)

        x = start(VPSDE())
        x[5] = math.nan
        results[compact] = integrator(compact=compact).solve(counted, x, 1.0, 1e-5)
    assert set(sizes[False]) == {B}
    assert sizes[True] == sorted(sizes[True], reverse=True)
    assert min(sizes[True]) < B
    assert len(sizes[True]) == len(sizes[False]) == int(results[True].nfe.max())
    assert sum(sizes[True]) == int(results[True].nfe.sum())
    for name in ("y", "t", "nfe", "status"):
        one, other = (getattr(results[compact], name) for compact in (True, False))
        assert torch.equal(one.nan_to_num(), other.nan_to_num())


class Bound:
    """A drift with something kept for each sample: its own rate."""

    def __init__(self, rates: Tensor) -> None:
        self.rates = rates

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        return -self.rates[:, None] * y

    def select(self, rows: Tensor) -> "Bound":
        return Bound(self.rates[rows])


def test_what_is_kept_per_sample_follows() -> None:
    rates = torch.linspace(0.1, 30, B, dtype=torch.float64)
    result = integrator(tolerance=1e-8).solve(Bound(rates), torch.ones(B, 2, dtype=torch.float64), 0.0, 1.0)
    assert result.nfe.min() < result.nfe.max()
    error = (result.y - torch.exp(-rates)[:, None]).abs().amax(1)
    assert (error < result.nfe / 6 * 2e-8).all()


@PAIRS
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_sample_that_turns_non_finite_is_reported_where_it_does(name: str, value: float) -> None:
    oracle, marked = one_gaussian(VPSDE()), torch.arange(B) % 3 == 1

    def rhs(t: Tensor, y: Tensor) -> Tensor:
        drift = torch.where((y[:, 3:] > 0) & (t[:, None] < 0.35), value, flow(oracle)(t, y[:, :3]))
        return torch.cat([drift, torch.zeros_like(y[:, 3:])], 1)

    x = start(oracle.sde)
    result = integrator(name).solve(rhs, torch.cat([x, marked[:, None]], 1), 1.0, 1e-5)
    assert torch.equal(result.status, torch.where(marked, Status.NON_FINITE, Status.DONE))
    assert (result.t[~marked] == 1e-5).all()
    assert ((result.t[marked] >= 0.35) & (result.t[marked] < 0.351)).all()
    torch.testing.assert_close(result.y[:, :3], oracle.flow(x, f64(1.0), result.t), rtol=0, atol=1e-3)


def test_never_finite() -> None:
    for x in (start(VPSDE()), start(VPSDE()) * math.nan):
        result = integrator().solve(lambda t, y: y * math.nan, x, 1.0, 1e-5)
        assert (result.status == Status.NON_FINITE).all()
        assert (result.t == 1.0).all()
        assert (result.nfe == 2 + 6).all()
        torch.testing.assert_close(result.y, x, rtol=0, atol=0, equal_nan=True)


@PAIRS
def test_out_of_evaluations(name: str) -> None:
    """The states are those at the times told, some of which are the end."""
    oracle = one_gaussian(VPSDE())
    x = start(oracle.sde)
    full = integrator(name).solve(flow(oracle), x, 1.0, 1e-5)
    limit = int(full.nfe.min())
    result = integrator(name, max_nfe=limit).solve(flow(oracle), x, 1.0, 1e-5)
    done = result.status == Status.DONE
    assert torch.equal(done, full.nfe <= limit)
    assert (result.status[~done] == Status.MAX_NFE).all()
    assert (result.nfe == limit).all()
    assert (result.t[done] == 1e-5).all()
    assert (result.t[~done] > 1e-5).all()
    torch.testing.assert_close(result.y, oracle.flow(x, f64(1.0), result.t), rtol=0, atol=1e-3)


def test_a_jump_too_sharp_for_the_tolerance() -> None:
    """At y → ∞ in finite time the step falls to zero, or the state overflows first; the others go on."""

    def rhs(t: Tensor, y: Tensor) -> Tensor:
        return y**2

    result = integrator().solve(rhs, f64([[2.0], [0.5]]), 0.0, 1.0)
    assert result.status.tolist()[0] in (Status.STEP_TOO_SMALL, Status.NON_FINITE)
    assert float(result.t[0]) == pytest.approx(0.5, abs=1e-3)
    assert result.status.tolist()[1] == Status.DONE
    assert float(result.y[1]) == pytest.approx(1.0, abs=1e-3)


@PAIRS
@pytest.mark.parametrize("ends", [(1.0, 1e-5), (1e-5, 1.0), (0.3, 0.7)])
@pytest.mark.parametrize("size", [0.0, 1e-6, 1.0])
def test_no_evaluation_leaves_the_interval(name: str, ends: tuple[float, float], size: float) -> None:
    times: list[Tensor] = []

    def rhs(t: Tensor, y: Tensor) -> Tensor:
        assert t.dtype == torch.float64
        times.append(t)
        return -size * y

    result = integrator(name).solve(rhs, start(VPSDE()), *ends)
    every = torch.cat(times)
    assert min(ends) <= float(every.min()) <= float(every.max()) <= max(ends)
    assert (times[0] == ends[0]).all()
    assert (result.t == ends[1]).all()


def test_nothing_to_do() -> None:
    def rhs(t: Tensor, y: Tensor) -> Tensor:
        raise AssertionError

    x = start(VPSDE())
    for y, ends in ((x, (0.3, 0.3)), (x[:0], (1.0, 1e-5))):
        result = integrator().solve(rhs, y, *ends)
        assert torch.equal(result.y, y)
        assert result.nfe.sum() == 0
    assert result.y is not x


@pytest.mark.parametrize("ends", [(1.0, 1e-3), (1e-3, 1.0)])
def test_the_path(ends: tuple[float, float]) -> None:
    """Interpolated states are those of the flow to fourth order; watching changes nothing; what is lost is NaN."""
    oracle = one_gaussian(VPSDE())
    x, times = start(oracle.sde), torch.linspace(*ends, 21, dtype=torch.float64)[1:-1]
    errors = []
    for tolerance in (1e-5, 1e-10):
        path = Path(times, x)
        watched = integrator(tolerance=tolerance).solve(flow(oracle), x, *ends, watch=path)
        assert torch.equal(watched.y, integrator(tolerance=tolerance).solve(flow(oracle), x, *ends).y)
        exact = torch.stack([oracle.flow(x, f64(ends[0]), t) for t in times])
        errors.append(float((path.states - exact).abs().max()))
    assert errors[0] < 2e-2
    assert errors[1] < 1e-4 * errors[0] ** 0.5  # steps ten times shorter
    path = Path(times, x)
    short = integrator(max_nfe=20).solve(flow(oracle), x, *ends, watch=path)
    passed = (times[:, None] - ends[0]).abs() <= (short.t - ends[0]).abs()
    assert torch.equal(path.states.isfinite().all(2), passed)


def test_the_norm_is_the_callers() -> None:
    """A norm a thousand times as strict is a tolerance a thousand times as tight."""
    oracle, solver = one_gaussian(VPSDE()), integrator(tolerance=1e-4)
    strict: Callable[[Tensor], Tensor] = lambda y: 1e3 * solver.norm(y)  # noqa: E731
    by_norm = replace(solver, norm=strict).solve(flow(oracle), start(oracle.sde), 1.0, 1e-5)
    by_tolerance = integrator(tolerance=1e-7).solve(flow(oracle), start(oracle.sde), 1.0, 1e-5)
    torch.testing.assert_close(by_norm.y, by_tolerance.y, rtol=1e-10, atol=1e-10)


ORDERS = {"dopri5": (5, 0.04), "tsit5": (5, 0.04), "dop853": (8, 0.0)}  # p and β of the published controls


@PAIRS
def test_the_control_of_the_step(name: str) -> None:
    """h'/h = 0.9 err^(−α) err_last^β of two samples: a rejected error is not remembered, and nothing grows after it."""
    p, beta = ORDERS[name]
    live, integrator = _Live.begin(torch.zeros(2, 1), 0.0), Integrator(TABLEAUX[name], rtol=1e-3, atol=1e-3)
    last = 1e-4
    factors = []
    for error, remembered in (((0.3, 0.3), last), ((4.0, 4.0), 1.0), ((0.9, 0.02), 0.3)):
        factor = integrator._control(live, f64(error))
        expected = 0.9 * f64(error) ** (0.75 * beta - 1 / p) * remembered**beta
        factors.append((factor, expected))
    torch.testing.assert_close(*factors[0])
    torch.testing.assert_close(*factors[1])
    torch.testing.assert_close(factors[2][0][0], factors[2][1][0])
    assert factors[2][1][1] > 1 == factors[2][0][1]
    torch.testing.assert_close(
        integrator._control(live, f64([0.5, 0.5])), 0.9 * 0.5 ** (0.75 * beta - 1 / p) * f64([0.9, 0.02]) ** beta
    )


@PAIRS
def test_the_first_step_is_of_the_order_of_the_pair(name: str) -> None:
    """(1 % of the tolerance / largest derivative)^(1/p), for y' = −y at y = 1, where both derivatives are 1."""
    live, integrator = _Live.begin(f64([[1.0]]), 0.0), Integrator(TABLEAUX[name], rtol=1e-6, atol=1e-6)
    live.slope = -live.y
    h = integrator._first_step(lambda t, y: -y, live, f64([0.0, 1.0]))
    torch.testing.assert_close(h, f64([(0.01 * 2e-6) ** (1 / ORDERS[name][0])]))
