"""Multistep solvers against their published formulas, written out."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sde_diffusion.oracle import GaussianMixture
from sde_diffusion.rng import generator
from sde_diffusion.sde import SDE, VPSDE
from sde_diffusion.solvers import (
    DDIM,
    DEIS,
    SOLVERS,
    DPMpp2M,
    DPMpp3M,
    DPMppSDE2M,
    GridSolver,
    PredictorCorrector,
    ReverseProcess,
    UniPC,
)
from sde_diffusion.solvers.exponential import SHORT, Multistep
from tests.conftest import f64
from tests.solvers.reference import GivenNoise

TIMES = f64([0.8, 0.65, 0.5, 0.4, 0.3])
CLOSE = {"rtol": 1e-10, "atol": 1e-10}


def first_state(sde: SDE) -> tuple[Tensor, GaussianMixture]:
    means = torch.randn(2, 3, generator=generator(1), dtype=torch.float64)
    oracle = GaussianMixture(sde, f64([0.3, 0.7]), means, f64([0.3, 0.5]))
    return oracle.sample(4, TIMES[0], generator=generator(2)), oracle


def run(solver: GridSolver, process: ReverseProcess, x: Tensor) -> Tensor:
    state = None
    for t, t_next in itertools.pairwise(TIMES):
        x, state = solver.step(process, x, t, t_next, state)
    return x


@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("p", [2, 3])
def test_unipc_as_published(sde: SDE, p: int, variant: str) -> None:
    """Zhao et al. 2023, Algorithms 5–8, for predictions of x̂0: R ρ = b with b_k = k! φ_{k+1}(−h) (−h)^… / B(h)."""
    x, oracle = first_state(sde)
    process = ReverseProcess(sde, oracle.score)
    lam = sde.half_log_snr(TIMES)
    known: list[Tensor] = [process.x0(x, TIMES[0])]

    def update(x: Tensor, i: int, order: int, corrected: Tensor | None) -> Tensor:
        h = lam[i + 1] - lam[i]
        big = -h if variant == "bh1" else torch.expm1(-h)
        ratios = [(lam[i - k] - lam[i]) / h for k in range(1, order)]
        slopes = [(known[i - k] - known[i]) / r for k, r in enumerate(ratios, 1)]
        if corrected is not None:
            ratios, slopes = [*ratios, f64(1.0)], [*slopes, corrected - known[i]]
        phi, factorial, right = torch.expm1(-h) / -h - 1, 1, []
        for k in range(1, len(ratios) + 1):
            right.append(phi * factorial / big)
            factorial *= k + 1
            phi = phi / -h - 1 / factorial
        rho = f64([0.5])
        if len(ratios) > 1:
            powers = torch.stack([torch.stack(ratios) ** k for k in range(len(ratios))])
            rho = torch.linalg.solve(powers, torch.stack(right))
        total = sum((r * d for r, d in zip(rho, slopes, strict=True)), torch.zeros_like(x)) if slopes else 0 * x
        a, ratio = sde.mean_coef(TIMES[i + 1]), sde.std(TIMES[i + 1]) / sde.std(TIMES[i])
        return ratio * x - a * torch.expm1(-h) * known[i] - a * big * total

    current = x
    for i in range(4):
        order = min(p, i + 1)
        predicted = update(current, i, order, None)
        new = process.x0(predicted, TIMES[i + 1])
        current = update(current, i, order, new)
        known.append(new)
    found = run(UniPC(p=p, variant=variant), ReverseProcess(sde, oracle.score), x)
    torch.testing.assert_close(found, predicted, **CLOSE)


def test_sde_dpm_solver_as_published(sde: SDE) -> None:
    """Lu et al. 2022, appendix A: second order, η = 1."""
    x, oracle = first_state(sde)
    draws = list(torch.randn(4, 4, 3, generator=generator(3), dtype=torch.float64))
    process, lam, found = ReverseProcess(sde, oracle.score), sde.half_log_snr(TIMES), x
    before = None
    for i, z in enumerate(draws):
        h, a, std = lam[i + 1] - lam[i], sde.mean_coef(TIMES[i + 1]), sde.std(TIMES[i + 1])
        x0 = process.x0(found, TIMES[i])
        found = std / sde.std(TIMES[i]) * torch.exp(-h) * found + a * (1 - torch.exp(-2 * h)) * x0
        if before is not None:
            r = (lam[i] - lam[i - 1]) / h
            found = found + a * (1 - torch.exp(-2 * h)) / (2 * r) * (x0 - before)
        found, before = found + std * torch.sqrt(1 - torch.exp(-2 * h)) * z, x0
    result = run(DPMppSDE2M(), ReverseProcess(sde, oracle.score, noise=GivenNoise(draws)), x)
    torch.testing.assert_close(result, found, **CLOSE)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: DEIS(points=1), id="deis"),
        pytest.param(lambda: DDIM(eta=0.0), id="ddim"),
    ],
)
def test_first_order_is_ddim(sde: SDE, make: Callable[[], GridSolver]) -> None:
    x, oracle = first_state(sde)
    process, found = ReverseProcess(sde, oracle.score), x
    for t, t_next in itertools.pairwise(TIMES):
        found = sde.mean_coef(t_next) * process.x0(found, t) + sde.std(t_next) * process.eps(found, t)
    torch.testing.assert_close(run(make(), ReverseProcess(sde, oracle.score), x), found, **CLOSE)


def test_a_published_rule_takes_the_first_step_once() -> None:
    """Two steps of order 3: the exact rule takes the first anew, and then the second from another state."""
    sde = VPSDE()
    x, oracle = first_state(sde)
    for published, exact in [(DEIS(rule="published"), DEIS()), (DPMpp3M(rule="heun"), DPMpp3M())]:
        process = ReverseProcess(sde, oracle.score)
        middle, state = published.step(process, x, TIMES[0], TIMES[1], None)
        assert torch.equal(published.step(process, middle, TIMES[1], TIMES[2], state)[1].state.x, middle)
        assert (exact.step(process, middle, TIMES[1], TIMES[2], state)[1].state.x - middle).abs().max() > 1e-6


@pytest.mark.parametrize(
    "solver", [DPMpp2M(rule="heun"), DPMpp3M(), DEIS(points=2), DEIS(points=3), UniPC(p=3)], ids=str
)
def test_polynomials_of_the_order_are_integrated_exactly(solver: GridSolver, sde: SDE) -> None:
    """With x̂0, or ε̂, a polynomial in λ alone, a step with full history is exact whatever its size."""
    power, eps_form = solver.order - 1, isinstance(solver, DEIS)

    def value(t: Tensor) -> Tensor:
        return (sde.half_log_snr(t) + 1) ** power

    def score(x: Tensor, t: Tensor) -> Tensor:
        t = t.reshape(-1, 1)
        return -value(t) / sde.std(t) if eps_form else (sde.mean_coef(t) * value(t) - x) / sde.std(t) ** 2

    x, state, process = torch.ones(1, 1, dtype=torch.float64), None, ReverseProcess(sde, score)
    for t, t_next in itertools.pairwise(TIMES[:-1]):
        x, state = solver.step(process, x, t, t_next, state)
    found, state = solver.step(process, x, TIMES[-2], TIMES[-1], state)
    assert state is not None
    x = state.state.x  # as corrected, if it was
    start, end = sde.half_log_snr(TIMES[-2:])
    points, masses = (torch.from_numpy(values) for values in np.polynomial.legendre.leggauss(40))
    mu = start + 0.5 * (1 + points) * (end - start)
    integrand = 0.5 * (end - start) * masses * (mu + 1) ** power
    if eps_form:
        exact = sde.mean_coef(TIMES[-1]) * (x / sde.mean_coef(TIMES[-2]) - (integrand * torch.exp(-mu)).sum())
    else:
        exact = sde.std(TIMES[-1]) * (x / sde.std(TIMES[-2]) + (integrand * torch.exp(mu)).sum())
    torch.testing.assert_close(found, exact, **CLOSE)


MULTISTEP = [kind() for kind in SOLVERS.values() if issubclass(kind, Multistep)]


def last_steps(solver: Any, sde: SDE, steps: int) -> tuple[Tensor, Tensor]:
    """The end of a run of so many steps, and of one whose last step knows nothing of those before."""
    x, oracle = first_state(sde)
    times, draws = torch.linspace(0.8, 0.3, steps + 1, dtype=torch.float64), [torch.ones_like(x)] * (steps + 1)
    process, state = ReverseProcess(sde, oracle.score, noise=GivenNoise(draws)), None
    for t, t_next in itertools.pairwise(times):
        x, state = replace(solver, steps=steps).step(process, x, t, t_next, state)
    assert state is not None
    if isinstance(solver, UniPC):  # it has x̂0 of the state before its correction
        t, t_next = times[-2:]
        x0, ratio = state.state.predictions[0], sde.std(t_next) / sde.std(t)
        h = sde.half_log_snr(t_next) - sde.half_log_snr(t)
        return x, ratio * state.state.x - sde.mean_coef(t_next) * torch.expm1(-h) * x0
    return x, solver.step(process, state.state.x, times[-2], times[-1], None)[0]


@pytest.mark.parametrize("solver", MULTISTEP, ids=str)
def test_the_last_step_of_a_short_run_is_of_first_order(solver: Any, sde: SDE) -> None:
    """Under 15 steps, or always, or never."""
    for steps, lower_final, lowered in [
        (SHORT - 1, "short", True),
        (SHORT, "short", False),
        (4, "never", False),
        (SHORT, "always", True),
    ]:
        found, alone = last_steps(replace(solver, lower_final=lower_final), sde, steps)
        if lowered:
            torch.testing.assert_close(found, alone, **CLOSE)
        else:
            assert (found - alone).abs().max() > 1e-6


@pytest.mark.parametrize(("lower_final", "used"), [("short", [1, 2, 3, 3, 2, 1]), ("never", [1, 2, 3, 3, 3, 3])])
@pytest.mark.parametrize("solver", [DPMpp3M(), DEIS(), UniPC(p=3)], ids=str)
def test_predictions_that_each_step_uses(solver: Any, lower_final: str, used: list[int]) -> None:
    plan = replace(solver, steps=6, lower_final=lower_final).plan(
        VPSDE(), torch.linspace(0.8, 0.2, 7, dtype=torch.float64)
    )
    assert [len(row.flow.weights) for row in plan] == used


def test_a_predictor_knows_how_many_steps_there_are() -> None:
    """Without that, one that always lowers its last step would lower those after its own default number."""
    solver = PredictorCorrector(predictor=UniPC(lower_final="always"), steps=30)
    plan = solver.plan(VPSDE(), torch.linspace(0.8, 0.2, 31, dtype=torch.float64))
    used = [len(row.own.flow.weights) for row in plan]
    assert used == [1, *[2] * 28, 1]
