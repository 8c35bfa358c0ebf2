"""Sampling and encoding: where they start and end, and what is done to the result."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from sde_diffusion.errors import InputError, SolveError
from sde_diffusion.grids import LogSNRGrid
from sde_diffusion.oracle import GaussianMixture
from sde_diffusion.rng import generator
from sde_diffusion.sampling import Samples, decode, encode, sample
from sde_diffusion.sde import SDE, VPSDE
from sde_diffusion.solvers import (
    DDIM,
    SOLVERS,
    AdaptiveSDE,
    Ancestral,
    EulerMaruyama,
    GridSolver,
    PerSampleODE,
    ScipyODE,
    SeededNoise,
    Solver,
    TorchdiffeqODE,
)
from tests.conftest import f64

SOLVER = EulerMaruyama(steps=4)
DETERMINISTIC = [name for name, row in SOLVERS.items() if issubclass(row, GridSolver) and not row().stochastic]


def mixture(sde: SDE) -> GaussianMixture:
    return GaussianMixture(sde, f64([0.3, 0.7]), f64([[2.0, -1.0], [-1.5, 0.5]]), f64([0.3, 0.5]))


def noise() -> SeededNoise:
    return SeededNoise(1, dtype=torch.float64)


def test_the_start_is_the_prior(sde: SDE) -> None:
    seen: list[tuple[Tensor, float]] = []
    sample(mixture(sde).score, sde, SOLVER, (3, 2), noise=noise(), observer=lambda x, t: seen.append((x, t)))
    assert torch.equal(seen[0][0], sde.prior_std * noise().prior((3, 2)))
    assert seen[0][1] == sde.t_max


@pytest.mark.parametrize("t_end", [None, 2e-3, 0.25])
@pytest.mark.parametrize("solver", [SOLVER, PerSampleODE()])
def test_the_end_is_t_end(sde: SDE, t_end: float | None, solver: EulerMaruyama | PerSampleODE) -> None:
    times: list[float] = []
    result = sample(
        mixture(sde).score,
        sde,
        solver,
        (3, 2),
        noise=noise(),
        t_end=t_end,
        denoise=False,
        observer=lambda x, t: times.append(t),
    )
    assert result.t_end == times[-1] == (sde.t_min if t_end is None else t_end)


@pytest.mark.parametrize(
    ("t_end", "message"),
    [
        (1e-6, "`t_end` must be ≥ `sde.t_min` = 1e-05, got 1e-06"),
        (0.0, "`t_end` must be ≥ `sde.t_min` = 1e-05, got 0"),
        (math.nan, "`t_end` must be ≥ `sde.t_min` = 1e-05, got nan"),
        (1.0, "`t_end` must be < `sde.t_max` = 1, got 1"),
    ],
)
def test_t_end_must_be_inside(t_end: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        sample(mixture(VPSDE()).score, VPSDE(), SOLVER, (3, 2), noise=noise(), t_end=t_end)


def test_a_given_start_is_used_and_kept(sde: SDE) -> None:
    start = torch.ones(3, 2, dtype=torch.float64)
    seen: list[Tensor] = []
    sample(mixture(sde).score, sde, SOLVER, (3, 2), noise=noise(), x_init=start, observer=lambda x, t: seen.append(x))
    assert torch.equal(seen[0], torch.ones_like(start))
    assert torch.equal(start, torch.ones_like(start))


def test_a_start_of_another_shape_is_refused() -> None:
    with pytest.raises(InputError, match=r"`x_init` must have the shape \(3, 2\), got \(2, 2\)"):
        sample(mixture(VPSDE()).score, VPSDE(), SOLVER, (3, 2), noise=noise(), x_init=torch.zeros(2, 2))


def test_denoising_is_tweedie_for_one_more_evaluation(sde: SDE) -> None:
    oracle = mixture(sde)

    def draw(denoise: bool) -> Samples:
        return sample(oracle.score, sde, SOLVER, (3, 2), noise=noise(), t_end=0.3, denoise=denoise)

    noisy, clean = draw(False), draw(True)
    t = f64(0.3)
    expected = (noisy.x + sde.std(t) ** 2 * oracle.score(noisy.x, t)) / sde.mean_coef(t)
    torch.testing.assert_close(clean.x, expected, rtol=1e-10, atol=1e-12)
    assert (noisy.nfe, clean.nfe) == (4, 5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("solver", [SOLVER, Ancestral(steps=4), PerSampleODE(rtol=1e-3, atol=1e-3)])
def test_projection_holds_every_predicted_x0(
    sde: SDE, solver: EulerMaruyama | Ancestral | PerSampleODE, dtype: torch.dtype
) -> None:
    """The result lies inside exactly; projecting inside the range changes rounding alone."""
    oracle, seen = mixture(sde), []

    def draw(limit: float) -> Samples:
        def clip(x0: Tensor) -> Tensor:
            seen.append(x0)
            return x0.clamp(-limit, limit)

        return sample(oracle.score, sde, solver, (20, 2), noise=SeededNoise(1, dtype=dtype), project=clip)

    tight = draw(0.5)
    assert tight.x.abs().max() <= 0.5
    assert len(seen) == tight.nfe
    if isinstance(solver, PerSampleODE):
        return
    free = sample(oracle.score, sde, solver, (20, 2), noise=SeededNoise(1, dtype=dtype))
    rounding = 64 * torch.finfo(dtype).eps * sde.prior_std / float(sde.mean_coef(f64(1.0)))
    torch.testing.assert_close(draw(math.inf).x, free.x, rtol=64 * torch.finfo(dtype).eps, atol=rounding)


def test_encode_goes_to_t_max_and_back(sde: SDE) -> None:
    oracle = GaussianMixture.gaussian(sde, f64([0.5, -0.3]), 0.6)
    x0 = oracle.sample(5, f64(sde.t_min), generator=generator(0))
    solver = PerSampleODE(method="dop853", rtol=1e-9, atol=1e-9)
    latent = encode(oracle.score, sde, solver, x0)
    bound = latent.nfe * 1e-9 * sde.prior_std
    assert latent.t_end == sde.t_max
    torch.testing.assert_close(latent.x, oracle.flow(x0, f64(sde.t_min), f64(1.0)), rtol=0, atol=bound)
    back = sample(oracle.score, sde, solver, (5, 2), noise=noise(), x_init=latent.x, denoise=False)
    torch.testing.assert_close(back.x, x0, rtol=0, atol=2 * bound)


def test_encode_needs_a_deterministic_solver() -> None:
    oracle = mixture(VPSDE())
    x0 = torch.zeros(2, 2, dtype=torch.float64)
    for name, solver in (("em", EulerMaruyama()), ("ancestral", Ancestral())):
        message = f"`solver` must be deterministic to encode and decode, got '{name}', which draws noise; try 'ode', or"
        for direction in (encode, decode):
            with pytest.raises(InputError, match=message):
                direction(oracle.score, oracle.sde, solver, x0)
    assert encode(oracle.score, oracle.sde, EulerMaruyama(eta=0.0, steps=3), x0).nfe == 3
    with pytest.raises(InputError, match=r"got 'ddim', which draws noise; set `eta` = 0\.0$"):
        encode(oracle.score, oracle.sde, DDIM(eta=0.5), x0)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_decoding_undoes_encoding_to_the_order_of_the_solver(name: str) -> None:
    """The error of there and back falls as the solver's own: at least by its order, a symmetric one by more."""
    sde = VPSDE(t_min=1e-3)
    oracle = GaussianMixture.gaussian(sde, f64([0.5, -0.3]), 0.6)
    x0 = oracle.sample(5, f64(sde.t_min), generator=generator(0))
    counts, errors, row = [80, 160, 320], [], SOLVERS[name]
    order = row().order
    for steps in counts:
        solver = row(steps=steps, grid=LogSNRGrid())  # type: ignore[call-arg]
        latent = encode(oracle.score, sde, solver, x0)
        back = decode(oracle.score, sde, solver, latent.x)
        assert (latent.nfe, latent.t_end, back.t_end) == (back.nfe, sde.t_max, sde.t_min)
        errors.append(float((back.x - x0).abs().max()))
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert slope > order - 0.25


def test_decoding_is_sampling_from_a_given_start(sde: SDE) -> None:
    oracle, z = mixture(sde), torch.ones(3, 2, dtype=torch.float64)
    solver = DDIM(steps=4)
    for options in ({}, {"t_end": 0.2, "denoise": True}, {"project": lambda x0: x0.clamp(-1, 1)}):
        expected = sample(oracle.score, sde, solver, (3, 2), noise=noise(), x_init=z, **({"denoise": False} | options))
        assert torch.equal(decode(oracle.score, sde, solver, z, **options).x, expected.x)


def test_no_graph_is_kept() -> None:
    weight = torch.ones((), requires_grad=True)
    result = sample(lambda x, t: -weight * x, VPSDE(), SOLVER, (3, 2), noise=noise())
    assert not result.x.requires_grad
    assert not encode(lambda x, t: -weight * x, VPSDE(), PerSampleODE(), torch.ones(3, 2)).x.requires_grad


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    sample(mixture(VPSDE()).score, VPSDE(), SOLVER, (3, 2), noise=noise())
    assert torch.equal(torch.get_rng_state(), before)


# --- a network that fails


class Failing:
    """A score that is not finite for sample 2 of the whole batch, and for no other, from a time on down."""

    def __init__(self, value: float, below: float) -> None:
        self.value, self.below, self.calls = value, below, 0

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        score = -x
        score[2:4] = torch.where(t[2:4, None] < self.below, self.value, score[2:4])
        return score


FAST: dict[str, Solver] = {  # one of every row, in few steps
    name: row(steps=10) if issubclass(row, GridSolver) else row() for name, row in SOLVERS.items()
}


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", [name for name, solver in FAST.items() if isinstance(solver, GridSolver)])
def test_a_solve_that_fails_names_its_samples(name: str, value: float) -> None:
    score, solver = Failing(value, 0.45), FAST[name]
    with pytest.raises(SolveError, match=r"the state is not finite at the end: .*; take other weights") as caught:
        sample(score, VPSDE(), solver, (6, 2), noise=SeededNoise(0, start=64, dtype=torch.float64))
    assert caught.value.samples == (2, 3)
    assert caught.value.t is None
    assert "the solve stopped for sample 66 and 1 more: " in str(caught.value)


@pytest.mark.parametrize(
    ("solver", "where"),
    [
        (AdaptiveSDE(), r" at t = 0\.4\d* for sample 66"),
        (PerSampleODE(compact=False), r" at t = 0\.4\d* for sample 66"),
        (TorchdiffeqODE(), r" at t = 0\.4"),
        (TorchdiffeqODE(method="rk4"), r" for sample 66"),
        (ScipyODE(), r" at t = 0\.4"),
    ],
)
def test_solvers_with_steps_of_their_own_say_what_they_know(solver: Solver, where: str) -> None:
    with pytest.raises(SolveError, match=rf"stopped{where}"):
        sample(Failing(math.nan, 0.45), VPSDE(), solver, (6, 2), noise=SeededNoise(0, start=64, dtype=torch.float64))


def test_a_sample_lost_on_purpose_stays_nan() -> None:
    solver = PerSampleODE(compact=False, on_failure="nan")
    found = sample(Failing(math.nan, 0.45), VPSDE(), solver, (6, 2), noise=noise())
    assert found.x.isnan().all(1).tolist() == [False, False, True, True, False, False]


def test_a_state_that_overflows_names_the_range_of_numbers() -> None:
    with pytest.raises(SolveError, match=r"for sample 0 and 2 more: .*the state left the range of floating-point"):
        sample(lambda x, t: 1e38 * x.sign(), VPSDE(), SOLVER, (3, 2), noise=SeededNoise(0))


def test_a_failing_final_denoising_is_told() -> None:
    with pytest.raises(SolveError, match=r"the final denoising stopped at t = 1e-05 for sample 2 and 1 more: the netw"):
        sample(Failing(math.nan, 1e-4), VPSDE(), SOLVER, (6, 2), noise=noise())


def test_encode_tells_where_a_network_fails() -> None:
    score = Failing(math.nan, 0.45)
    with pytest.raises(SolveError, match=r"stopped for sample 12 and 1 more: the state is not finite at the end"):
        encode(score, VPSDE(), DDIM(steps=10), torch.ones(6, 2), start=10)
    with pytest.raises(SolveError, match=r"stopped for sample 12 and 1 more: the state is not finite at the end"):
        decode(score, VPSDE(), DDIM(steps=20), torch.ones(6, 2), start=10)


def test_a_sound_solve_looks_at_nothing_twice() -> None:
    score = Failing(math.nan, 0.0)
    found = sample(score, VPSDE(), SOLVER, (6, 2), noise=noise())
    assert score.calls == found.nfe == 5
