"""The adaptive ODE solver: where it evaluates, whose error it bounds, and how it fails."""

import math
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import torch
import torchdiffeq
from torch import Tensor
from torchdiffeq import odeint
from torchdiffeq._impl.odeint import SOLVERS

from sde_diffusion.errors import InputError
from sde_diffusion.oracle import GaussianMixture
from sde_diffusion.rng import generator
from sde_diffusion.score import reverse_drift
from sde_diffusion.sde import SDE, VESDE, VPSDE
from sde_diffusion.solvers import ReverseProcess, TorchdiffeqODE
from sde_diffusion.solvers.runge_kutta import sample_rms
from sde_diffusion.solvers.torchdiffeq_ode import ADAPTIVE, FIXED
from tests.conftest import f64

METHODS = get_args(get_type_hints(TorchdiffeqODE)["method"])


def start(count: int = 5) -> Tensor:
    return torch.randn(count, 3, generator=generator(0), dtype=torch.float64)


def mixture(sde: SDE) -> GaussianMixture:
    return GaussianMixture(sde, f64([0.3, 0.7]), f64([[1.0, 0.0, -1.0], [-0.5, 0.4, 0.2]]), f64([0.1, 0.3]))


def fix_steps(monkeypatch: pytest.MonkeyPatch, h: float) -> None:
    """Make the integrator take equal steps of h where the tolerance is wide."""

    def fixed(*args: Any, options: dict[str, Any], **kwargs: Any) -> Tensor:
        return odeint(*args, options=options | {"first_step": h, "max_step": h}, **kwargs)

    monkeypatch.setattr(torchdiffeq, "odeint", fixed)


def batch_rms(y: Tensor) -> Tensor:
    """torchdiffeq's own norm."""
    return (y**2).mean().sqrt()


def test_every_method_of_torchdiffeq_has_its_order() -> None:
    known = set(SOLVERS) - {"fixed_adams", "scipy_solver"}  # another name of one, and our `scipy`
    assert set(METHODS) == {*ADAPTIVE, *FIXED} == known
    assert all(TorchdiffeqODE(method=method).order == (ADAPTIVE | FIXED)[method] for method in METHODS)


@pytest.mark.parametrize("method", ADAPTIVE)
def test_every_pair_follows_the_flow(method: str) -> None:
    """n steps within tol each, n < nfe: off by at most nfe tol of a state of order one."""
    oracle, tolerance = GaussianMixture.gaussian(VPSDE(), f64([0.5, -0.3, 0.1]), 0.6), 1e-6
    process = ReverseProcess(oracle.sde, oracle.score)
    x = TorchdiffeqODE(method=method, rtol=tolerance, atol=tolerance).solve(process, start(), 1.0, 1e-5)
    error = (x - oracle.flow(start(), f64(1.0), f64(1e-5))).abs().max()
    assert error < process.nfe * tolerance


@pytest.mark.parametrize(("method", "order"), ADAPTIVE.items())
def test_order_in_equal_steps(monkeypatch: pytest.MonkeyPatch, method: str, order: int) -> None:
    oracle = GaussianMixture.gaussian(VPSDE(), f64([0.5, -0.3, 0.1]), 0.6)
    exact, errors = oracle.flow(start(), f64(0.9), f64(0.4)), []
    counts = [4, 5, 6, 8] if order == 8 else [16, 24, 32]  # more, and the last reach the rounding of float64
    for count in counts:
        fix_steps(monkeypatch, 0.5 / count)
        process = ReverseProcess(oracle.sde, oracle.score)
        x = TorchdiffeqODE(method=method, rtol=1e9, atol=1e9).solve(process, start(), 0.9, 0.4)
        errors.append(float((x - exact).abs().max()))
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert abs(slope - order) < 0.25


@pytest.mark.parametrize(("method", "order"), FIXED.items())
def test_order_on_a_grid(method: str, order: int) -> None:
    oracle = GaussianMixture.gaussian(VPSDE(), f64([0.5, -0.3, 0.1]), 0.6)
    exact, errors, counts = oracle.flow(start(), f64(0.9), f64(0.4)), [], [48, 64, 96]
    for steps in counts:
        process = ReverseProcess(oracle.sde, oracle.score)
        solver = TorchdiffeqODE(method=method, steps=steps, rtol=1e-12, atol=1e-12)
        errors.append(float((solver.solve(process, start(), 0.9, 0.4) - exact).abs().max()))
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert abs(slope - order) < 0.25, errors


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("t_from", "t_to"), [(1.0, 1e-5), (1e-5, 1.0)])
@pytest.mark.parametrize("size", [0.0, 1e-6, 1.0])
def test_no_evaluation_leaves_the_interval(t_from: float, t_to: float, dtype: torch.dtype, size: float) -> None:
    """Neither in the guess of the first step, which a small drift makes huge, nor by a last step that is too long."""
    times: list[float] = []

    def score(x: Tensor, t: Tensor) -> Tensor:
        times.extend(t.double().tolist())
        return -size * x / 2500

    TorchdiffeqODE().solve(ReverseProcess(VESDE(), score), start().to(dtype), t_from, t_to)
    low, high = (float(torch.tensor(t, dtype=dtype)) for t in sorted((t_from, t_to)))
    assert low <= min(times) <= max(times) <= high
    assert times[0] == float(torch.tensor(t_from, dtype=dtype))
    assert times[-1] == pytest.approx(t_to, rel=1e-6)


def test_cost_is_two_and_six_a_step() -> None:
    oracle, seen = mixture(VPSDE()), []
    process = ReverseProcess(oracle.sde, oracle.score, observer=lambda x, t: seen.append((x, t)))
    TorchdiffeqODE(rtol=1e-3, atol=1e-3).solve(process, start(), 1.0, 1e-5)
    accepted = len(seen) - 1  # one for each start of a step, one for the end
    assert process.nfe >= 2 + 6 * accepted
    assert (process.nfe - 2) % 6 == 0


def test_the_observer_sees_both_ends_and_each_step_once() -> None:
    oracle, seen = mixture(VPSDE()), []
    process = ReverseProcess(oracle.sde, oracle.score, observer=lambda x, t: seen.append((x, t)))
    end = TorchdiffeqODE().solve(process, start(), 1.0, 1e-5)
    times = [t for _, t in seen]
    assert times[0] == 1.0
    assert times[-1] == 1e-5
    assert times == sorted(set(times), reverse=True)
    assert torch.equal(seen[0][0], start())
    assert torch.equal(seen[-1][0], end)


def test_the_norm_is_that_of_each_sample() -> None:
    error = torch.zeros(4, 2, 3)
    error[1] = 2.0
    error[2, 0, 0] = 3.0
    torch.testing.assert_close(sample_rms(error), torch.tensor([0.0, 2.0, math.sqrt(1.5), 0.0]))


@pytest.mark.parametrize("sde", [VPSDE(), VESDE()], ids=["vp", "ve"])
def test_a_companion_does_not_loosen_the_tolerance(sde: SDE) -> None:
    """A sample among a thousand that stand still is solved as if alone; by the batch's mean norm it is far off."""
    oracle = GaussianMixture(sde, f64([1, 1]), f64([[-1.0], [1.0]]), f64([0.01, 0.01]))
    alone = f64([[0.02 * sde.prior_std]])
    among = torch.cat([alone, torch.zeros(1000, 1, dtype=torch.float64)])

    def rhs(t: Tensor, x: Tensor) -> Tensor:
        moving = (torch.arange(len(x)) == 0).double()[:, None]
        return moving * reverse_drift(sde, oracle.score(x, t), x, t, eta=0.0)

    def error(x: Tensor, **norm: Any) -> float:
        return float((TorchdiffeqODE(rtol=1e-4, atol=1e-4).integrate(rhs, x, 1.0, 1e-5, **norm) - exact)[0].abs())

    exact = TorchdiffeqODE(rtol=1e-11, atol=1e-11).integrate(rhs, alone, 1.0, 1e-5)
    assert error(among) == pytest.approx(error(alone), rel=1e-6)
    assert error(among, norm=batch_rms) > 5 * error(alone)


def test_nothing_to_do() -> None:
    solver, process = TorchdiffeqODE(), ReverseProcess(VPSDE(), lambda x, t: x)
    assert torch.equal(solver.solve(process, start(), 0.3, 0.3), start())
    assert solver.solve(process, torch.zeros(0, 3), 1.0, 1e-5).shape == (0, 3)
    assert process.nfe == 0


def fails_below(t_bad: float, value: float) -> ReverseProcess:
    return ReverseProcess(VPSDE(), lambda x, t: torch.where(t[:, None] < t_bad, value, -x))


REMEDY = r"; loosen rtol = 1e-05 and atol = 1e-05, or look for non-finite scores there"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_score_that_turns_non_finite_stops_the_solve_there(value: float) -> None:
    with pytest.raises(
        InputError, match=r"the ODE solve by 'dopri5' stopped at t = 0\.35\d*: the step size fell to zero" + REMEDY
    ):
        TorchdiffeqODE().solve(fails_below(0.35, value), start(), 1.0, 1e-5)


def test_a_score_that_is_never_finite_stops_the_solve_at_its_start() -> None:
    with pytest.raises(InputError, match="stopped at t = 1: the step size fell to zero" + REMEDY):
        TorchdiffeqODE().solve(fails_below(2.0, math.nan), start(), 1.0, 1e-5)


def test_too_many_steps() -> None:
    oracle = mixture(VPSDE())
    with pytest.raises(
        InputError, match=r"stopped at t = 0\.\d+: max_steps = 3 were not enough; raise max_steps, loosen rtol"
    ):
        TorchdiffeqODE(max_steps=3).solve(ReverseProcess(oracle.sde, oracle.score), start(), 1.0, 1e-5)


def test_a_state_that_is_not_finite_is_refused() -> None:
    with pytest.raises(InputError, match=r"the state at t = 1 must be finite before it is integrated"):
        TorchdiffeqODE().solve(fails_below(0.0, 0.0), start() * math.nan, 1.0, 1e-5)


def test_an_assertion_of_the_score_is_not_taken_for_a_failed_solve() -> None:
    def score(x: Tensor, t: Tensor) -> Tensor:
        raise AssertionError("a bug in the network")

    with pytest.raises(AssertionError, match="a bug in the network"):
        TorchdiffeqODE().solve(ReverseProcess(VPSDE(), score), start(), 1.0, 1e-5)


@pytest.mark.parametrize("option", ["rtol", "atol", "max_steps"])
@pytest.mark.parametrize("value", [0, -1, math.nan])
def test_bad_options(option: str, value: float) -> None:
    with pytest.raises(InputError, match=f"`{option}` must be > 0, got {value}"):
        TorchdiffeqODE(**{option: value})
