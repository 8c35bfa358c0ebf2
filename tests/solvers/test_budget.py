"""A number of score evaluations is spent as promised, and well."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from sde_diffusion.errors import InputError
from sde_diffusion.oracle import GaussianMixture
from sde_diffusion.rng import generator
from sde_diffusion.sampling import sample
from sde_diffusion.sde import SDE, VPSDE
from sde_diffusion.solvers import (
    DDIM,
    SOLVERS,
    AnnealedLangevin,
    EulerMaruyama,
    GridSolver,
    Heun,
    PerSampleODE,
    Plan,
    PredictorCorrector,
    ReverseProcess,
    SeededNoise,
    for_budget,
    within,
)
from sde_diffusion.solvers.budget import DETERMINISTIC, STOCHASTIC
from tests.conftest import f64

SOLVERS_WITH_STEPS = [
    *(kind() for kind in SOLVERS.values() if issubclass(kind, GridSolver)),
    PredictorCorrector(corrector=AnnealedLangevin(repeats=2)),
]


def counted(plan: Plan, sde: SDE) -> int:
    """The evaluations that a run takes."""
    calls = 0

    def score(x: Tensor, t: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return -x

    noise = SeededNoise(0, dtype=torch.float64)
    result = sample(score, sde, plan.solver, (1, 1), noise=noise, t_end=plan.t_end(sde), denoise=plan.denoise)
    assert result.nfe == calls
    return calls


def spends(solver: GridSolver, denoise: bool | None, budgets: Sequence[int]) -> None:
    """All but what is too little for one more step is spent; what is claimed is what is counted."""
    least = solver.evaluations + bool(denoise)
    for nfe in budgets:
        if nfe < least:
            with pytest.raises(InputError, match=rf"`nfe` must be ≥ {least}, got {nfe}: a step of \w+ takes"):
                within(solver, nfe, denoise=denoise)
            continue
        plan = within(solver, nfe, denoise=denoise)
        assert nfe - solver.evaluations < plan.nfe <= nfe
        assert plan.denoise == (nfe > solver.evaluations if denoise is None else denoise)
        assert counted(plan, VPSDE()) == plan.nfe


@pytest.mark.parametrize("solver", SOLVERS_WITH_STEPS, ids=str)
def test_steps_of_a_named_solver(solver: GridSolver) -> None:
    for denoise, budgets in {None: range(1, 13), False: (1, 2, 3, 20), True: (1, 2, 3, 25)}.items():
        spends(solver, denoise, budgets)


@pytest.mark.slow
@pytest.mark.parametrize("solver", SOLVERS_WITH_STEPS, ids=str)
def test_every_budget_of_a_named_solver(solver: GridSolver) -> None:
    spends(solver, None, range(1, 101))


@pytest.mark.parametrize("stochastic", [False, True])
def test_every_budget_is_spent_to_the_last_evaluation(stochastic: bool) -> None:
    for nfe in range(1, 101):
        plan = for_budget(nfe, stochastic=stochastic)
        assert plan.solver.stochastic == stochastic
        assert plan.nfe == nfe
        if nfe < 20 or nfe in (28, 45, 70, 100):
            assert counted(plan, VPSDE()) == nfe


@pytest.mark.parametrize("nfe", [0, -3])
def test_a_budget_of_nothing_is_refused(nfe: int) -> None:
    with pytest.raises(InputError, match=f"`nfe` must be a whole number > 0, got {nfe}"):
        for_budget(nfe)


def test_what_is_too_little_says_why() -> None:
    with pytest.raises(InputError, match="≥ 3, got 2: a step of Heun takes 2 and the final denoising 1"):
        within(Heun(), 2, denoise=True)
    with pytest.raises(InputError, match="≥ 2, got 1: a step of UniPC takes 1 and the final denoising 1"):
        for_budget(1, denoise=True)


def test_runs_end_at_a_noise_level_that_is_the_same_for_every_process(sde: SDE) -> None:
    for row in (*DETERMINISTIC, *STOCHASTIC):
        plan = within(row.solver, 10, level=row.level)
        t_end = plan.t_end(sde)
        if t_end is None:
            assert torch.exp(-sde.half_log_snr(f64(sde.t_min))) >= row.level
        else:
            assert float(torch.exp(-sde.half_log_snr(f64(t_end)))) == pytest.approx(row.level, rel=1e-9)
    assert within(DDIM(), 10).t_end(sde) is None
    assert for_budget(10, denoise=False).t_end(sde) is None, "without denoising the noise would stay"


def test_tables_are_in_order() -> None:
    for rows in (DETERMINISTIC, STOCHASTIC):
        limits = [row.up_to for row in rows]
        assert limits[-1] is None
        assert limits[:-1] == sorted(limits[:-1])


@pytest.mark.parametrize("nfe", [10, 20])
def test_the_choice_beats_defaults(sde: SDE, nfe: int) -> None:
    """On a mixture in 16 dimensions, DDIM, Heun and Euler with all their defaults, for the median sample.

    A mean would tell which sample fell to another component.
    """
    means = torch.randn(5, 16, generator=generator(1), dtype=torch.float64)
    oracle = GaussianMixture(sde, torch.ones(5), means, torch.full((5,), 0.2))
    start = sde.prior_std * torch.randn(32, 16, generator=generator(2), dtype=torch.float64)
    process = ReverseProcess(sde, oracle.score)
    flow = PerSampleODE(rtol=1e-7, atol=1e-7).solve(process, start, sde.t_max, sde.t_min)
    exact = process.x0(flow, f64(sde.t_min))

    def error(plan: Plan) -> float:
        noise = SeededNoise(0)
        found = sample(
            oracle.score,
            sde,
            plan.solver,
            start.shape,
            noise=noise,
            x_init=start,
            t_end=plan.t_end(sde),
            denoise=plan.denoise,
        )
        return float((found.x - exact).square().mean(1).sqrt().median())

    chosen = error(for_budget(nfe))
    for solver in (DDIM(), Heun(), EulerMaruyama(eta=0.0)):
        assert chosen < error(within(solver, nfe)), solver
