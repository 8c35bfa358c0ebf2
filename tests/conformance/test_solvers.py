"""What every solver must satisfy, for every process.

For Gaussian data the score is affine in x, so a whole run is an affine map x_end = A x + b + Σ_k C_k z_k of the start
and of each draw of noise. One batch reads all coefficients, and the moments of x_end follow with no Monte Carlo.
"""

import math
import pickle
from dataclasses import FrozenInstanceError, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sde_diffusion.oracle import GaussianMixture
from sde_diffusion.rng import generator
from sde_diffusion.sampling import encode, sample
from sde_diffusion.sde import SDE, CosineBeta
from sde_diffusion.solvers import (
    DDIM,
    DEIS,
    SOLVERS,
    AdaptiveODE,
    AdaptiveSDE,
    Ancestral,
    AnnealedLangevin,
    DPMpp2M,
    DPMpp3M,
    DPMppSDE2M,
    EulerMaruyama,
    GridSolver,
    Heun,
    NoiseSource,
    PerSampleODE,
    PredictorCorrector,
    ReverseDiffusion,
    ReverseProcess,
    ScipyODE,
    SeededNoise,
    Solver,
    TorchdiffeqODE,
    UniPC,
)
from sde_diffusion.verify.problems import MEAN, STD, Impulses, exact_moments
from tests.conftest import PROCESSES, assert_mean, f64

# every row of `SOLVERS` with its defaults, and the variants that change formulas
INSTANCES: dict[str, list[Solver]] = {
    "em": [EulerMaruyama(), EulerMaruyama(eta=0.0), EulerMaruyama(eta=0.5)],
    "ancestral": [Ancestral(), Ancestral(variance="large")],
    "reverse_diffusion": [
        ReverseDiffusion(),
        ReverseDiffusion(eta=0.0),
        ReverseDiffusion(eta=0.5),
    ],
    "pc": [PredictorCorrector(), PredictorCorrector(predictor=Ancestral(), corrector=AnnealedLangevin(snr=0.01))],
    "ddim": [DDIM(), DDIM(eta=0.5), DDIM(eta=1.0)],
    "heun": [Heun(), Heun(s_churn=20.0)],
    "dpmpp_2m": [DPMpp2M(), DPMpp2M(rule="heun")],
    "dpmpp_3m": [DPMpp3M(), DPMpp3M(rule="midpoint"), DPMpp3M(rule="heun")],
    "dpmpp_sde_2m": [DPMppSDE2M(), DPMppSDE2M(eta=0.5)],
    "unipc": [UniPC(), UniPC(variant="bh1"), UniPC(p=3)],
    "deis": [DEIS(), DEIS(points=2), DEIS(points=1)],
    "adaptive_sde": [AdaptiveSDE()],
    "ode": [PerSampleODE(), PerSampleODE(method="tsit5"), PerSampleODE(method="dop853")],
    "torchdiffeq": [TorchdiffeqODE(), TorchdiffeqODE(method="dopri8")],
    "scipy": [ScipyODE(), ScipyODE(method="DOP853")],
}
# score evaluations per step of the solvers with a fixed number of them
EVALUATIONS = {
    "em": 1,
    "ancestral": 1,
    "reverse_diffusion": 1,
    "pc": 2,
    "ddim": 1,
    "heun": 2,
    "dpmpp_2m": 1,
    "dpmpp_3m": 1,
    "dpmpp_sde_2m": 1,
    "unipc": 1,
    "deis": 1,
}
ALL = [
    pytest.param(name, solver, id=f"{name}-{i}")
    for name, solvers in INSTANCES.items()
    for i, solver in enumerate(solvers)
]
AFFINE = [  # in x and z; the step of a Langevin corrector depends on both
    parameter
    for parameter in ALL
    if isinstance(parameter.values[1], GridSolver) and parameter.values[1] != PredictorCorrector()
]


@pytest.fixture(
    params=[pytest.param(name, marks=[pytest.mark.slow] if name == "ddpm" else []) for name in PROCESSES], ids=str
)
def sde(request: pytest.FixtureRequest) -> SDE:
    """Each process in turn; to a solver ddpm is one more VP, and one is enough for every day."""
    return PROCESSES[request.param]


class Doubled(NoiseSource):
    """The same numbers in float64."""

    def __init__(self, source: NoiseSource) -> None:
        self.source = source

    def prior(self, shape: tuple[int, ...]) -> Tensor:
        return self.source.prior(shape).double()

    def __call__(self, x: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
        return self.source(x.float(), t, t_next).double()


def moments(sde: SDE, solver: GridSolver, t_from: float, t_to: float) -> tuple[float, float]:
    """Mean and standard deviation at `t_to` of a run that starts with those of p at `t_from`."""
    oracle, noise, room = GaussianMixture.gaussian(sde, f64([MEAN]), STD), Impulses(), 2 * solver.steps
    start = torch.zeros(2 + room, 1, dtype=torch.float64)
    start[1] = 1
    end = solver.solve(ReverseProcess(sde, oracle.score, noise=noise), start, t_from, t_to)[:, 0]
    assert noise.drawn <= room
    offset, responses = end[0], end[1:] - end[0]
    mean, std = exact_moments(sde, t_from)
    return float(responses[0] * mean + offset), math.hypot(float(responses[0]) * std, float(responses[1:].norm()))


def mixture(sde: SDE, shape: tuple[int, ...] = (2,)) -> GaussianMixture:
    means = torch.randn(2, *shape, generator=generator(1), dtype=torch.float64)
    return GaussianMixture(sde, f64([0.3, 0.7]), means, f64([0.3, 0.5]))


def short(solver: Solver) -> Solver:
    """The solver with few steps, where accuracy does not matter."""
    return replace(solver, steps=8) if isinstance(solver, GridSolver) else solver


def enough(solver: Solver) -> Solver:
    """The solver with so many steps that its error is well below the sampling error of a thousand samples."""
    if isinstance(solver, PredictorCorrector):
        solver = replace(solver, corrector=replace(solver.corrector, snr=0.03))
    return replace(solver, steps=400 // solver.order) if isinstance(solver, GridSolver) else solver


def test_every_solver_has_instances_here() -> None:
    assert INSTANCES.keys() == SOLVERS.keys(), "a new row of `SOLVERS` needs instances in `INSTANCES`"
    for name, solvers in INSTANCES.items():
        assert all(type(solver) is SOLVERS[name] for solver in solvers)
        assert SOLVERS[name]() in solvers
        assert name in EVALUATIONS or not isinstance(solvers[0], GridSolver)


@pytest.mark.parametrize(("name", "solver"), AFFINE)
def test_order_of_convergence(sde: SDE, name: str, solver: GridSolver) -> None:
    """The error of mean and standard deviation falls as steps^−order."""
    counts, errors = [96, 192, 384], []
    for steps in counts:
        found, exact = moments(sde, replace(solver, steps=steps), 0.4, 0.05), exact_moments(sde, 0.05)
        errors.append(abs(found[0] - exact[0]) + abs(found[1] - exact[1]))
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert abs(slope - solver.order) < 0.25, errors


@pytest.mark.parametrize(("name", "solver"), ALL)
def test_the_mixture_is_sampled(sde: SDE, name: str, solver: Solver) -> None:
    if isinstance(solver, ReverseDiffusion) and solver.eta < 1 and isinstance(getattr(sde, "beta", None), CosineBeta):
        pytest.skip("the first steps at the cosine's cap shrink a by a half, too much for (2 − ρ) x without its noise")
    dims = 64 if solver == PredictorCorrector() else 2  # Langevin steps that depend on x have a bias of order 1/D
    oracle = mixture(sde, (dims,))
    start = oracle.sample(1000, f64(sde.t_max), generator=generator(2))
    noise = SeededNoise(3, dtype=torch.float64)
    x = sample(oracle.score, sde, enough(solver), (1000, dims), noise=noise, x_init=start, denoise=False).x
    exact = oracle.sample(400_000 // dims, f64(sde.t_min), generator=generator(4))
    for label, statistic in {
        "x": lambda x: x[:, 0],
        "y": lambda x: x[:, 1],
        "x²": lambda x: x[:, 0] ** 2,
        "xy": lambda x: x[:, 0] * x[:, 1],
        "log p": lambda x: oracle.log_prob(x, f64(sde.t_min)),
        "share": lambda x: (torch.cdist(x, oracle.means).argmin(1) == 0).double(),
    }.items():
        assert_mean(statistic(x), float(statistic(exact).mean()), label)


@pytest.mark.parametrize(("name", "solver"), ALL)
def test_evaluations_are_counted(sde: SDE, name: str, solver: Solver) -> None:
    oracle, calls = mixture(sde), []

    def score(x: Tensor, t: Tensor) -> Tensor:
        assert t.shape == x.shape[:1]
        calls.append(t)
        return oracle.score(x, t)

    result = sample(score, sde, short(solver), (3, 2), noise=SeededNoise(0, dtype=torch.float64))
    assert result.nfe == len(calls)
    if isinstance(solver, GridSolver):
        assert solver.evaluations == EVALUATIONS[name]
        assert result.nfe == 8 * EVALUATIONS[name] + 1  # and the final denoising
    assert all(sde.t_min <= float(t.min()) <= float(t.max()) <= sde.t_max for t in calls)


@pytest.mark.parametrize(("name", "solver"), ALL)
def test_same_seed_same_sample(sde: SDE, name: str, solver: Solver) -> None:
    oracle = mixture(sde)

    def draw(seed: int) -> Tensor:
        noise = SeededNoise(seed, dtype=torch.float64)
        return sample(oracle.score, sde, short(solver), (3, 2), noise=noise).x

    assert torch.equal(draw(0), draw(0))
    assert (draw(0) - draw(1)).abs().min() > 0


@pytest.mark.parametrize(("name", "solver"), ALL)
def test_a_sample_does_not_depend_on_its_batch(sde: SDE, name: str, solver: Solver) -> None:
    """Bit-equal noise: results differ by rounding alone, and where the step size is shared, within the tolerance."""
    oracle = mixture(sde)

    def draw(start: int, count: int, outlier: float = 0.0) -> Tensor:
        noise = SeededNoise(5, start=start, dtype=torch.float64)
        x = sde.prior_std * noise.prior((count, 2))
        x[-1] += outlier
        return sample(oracle.score, sde, short(solver), (count, 2), noise=noise, x_init=x).x

    whole, alone, mated = draw(0, 100), draw(70, 2), draw(70, 2, outlier=30 * sde.prior_std)
    if isinstance(solver, AdaptiveODE):
        share = 14 if isinstance(solver, ScipyODE) else 1  # the step's error is a mean over the batch: √200 on one
        bound = {"rtol": 100 * share * solver.rtol, "atol": 100 * share * solver.atol}  # a hundred steps or fewer
    elif isinstance(solver, AdaptiveSDE):
        bound = {"rtol": 1e-8, "atol": 1e-8}  # the same hundreds of steps, between modes that part what differs
    else:
        bound = {"rtol": 1e-10, "atol": 1e-10}
    torch.testing.assert_close(whole[70:71], alone[:1], **bound)
    torch.testing.assert_close(mated[:1], alone[:1], **bound)


@pytest.mark.parametrize(("name", "solver"), ALL)
@pytest.mark.parametrize("shape", [(2,), (1, 4, 3)])
def test_float32_in_any_shape(sde: SDE, name: str, solver: Solver, shape: tuple[int, ...]) -> None:
    """Stays float32, and agrees with float64 on the same noise: 8 steps of 8 roundings, or a hundred tolerances.

    Extrapolation through p values multiplies roundings by up to 2^p − 1.
    """
    oracle, results = mixture(sde, shape), []
    for dtype, noise in ((torch.float32, SeededNoise(7)), (torch.float64, Doubled(SeededNoise(7)))):
        seen: list[Tensor] = []
        result = sample(
            oracle.score, sde, short(solver), (3, *shape), noise=noise, observer=lambda x, t, seen=seen: seen.append(x)
        )
        assert {x.dtype for x in [*seen, result.x]} == {dtype}
        assert {x.shape for x in [*seen, result.x]} == {(3, *shape)}
        results.append(result.x.double())
    bound = 100 * solver.atol if isinstance(solver, AdaptiveODE) else 8 * 8 * 2**-23 * 4 * sde.prior_std
    if isinstance(solver, GridSolver):
        bound *= EVALUATIONS[name] * (2**solver.order - 1)
    elif isinstance(solver, AdaptiveSDE):
        bound *= 40  # some hundreds of steps, the same in both
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=bound)


@pytest.mark.parametrize(("name", "solver"), ALL)
def test_the_observer_sees_every_state(sde: SDE, name: str, solver: Solver) -> None:
    oracle, seen = mixture(sde), []
    process = ReverseProcess(
        sde,
        oracle.score,
        noise=SeededNoise(0, dtype=torch.float64),
        observer=lambda x, t: seen.append((x, t)),
    )
    start = oracle.sample(3, f64(sde.t_max), generator=generator(2))
    end = short(solver).solve(process, start, sde.t_max, sde.t_min)
    times = [t for _, t in seen]
    assert times == sorted(set(times), reverse=True)
    assert (times[0], times[-1]) == (sde.t_max, sde.t_min)
    assert torch.equal(seen[0][0], start)
    assert torch.equal(seen[-1][0], end)


@pytest.mark.parametrize(("name", "solver"), [p for p in ALL if not p.values[1].stochastic])
def test_encoding_is_the_inverse(sde: SDE, name: str, solver: Solver) -> None:
    """There and back on the flow of one Gaussian: off by the steps' tolerances, or at the order of the method.

    A step back of even order undoes the leading error of the step there, which leaves a higher order.
    """
    oracle = GaussianMixture.gaussian(sde, f64([MEAN, -MEAN]), STD)
    x0 = oracle.sample(4, f64(sde.t_min), generator=generator(2))

    def error(solver: Solver) -> tuple[float, int]:
        latent = encode(oracle.score, sde, solver, x0)
        assert latent.t_end == sde.t_max
        back = sample(oracle.score, sde, solver, (4, 2), noise=SeededNoise(0), x_init=latent.x, denoise=False)
        return float((back.x - x0).abs().max()), latent.nfe + back.nfe

    if isinstance(solver, AdaptiveODE):
        off, nfe = error(solver)
        assert off < nfe * (solver.atol + solver.rtol)
    else:
        off, fine = (error(replace(solver, steps=steps))[0] for steps in (500 // solver.order, 1000 // solver.order))
        assert math.log2(off / fine) > solver.order - 0.25


@pytest.mark.parametrize(("name", "solver"), ALL)
def test_is_a_value(name: str, solver: Any) -> None:
    assert pickle.loads(pickle.dumps(solver)) == solver
    assert {solver: 1}[replace(solver)] == 1
    assert type(solver).__name__ in repr(solver)
    with pytest.raises(FrozenInstanceError):
        solver.steps = 3
