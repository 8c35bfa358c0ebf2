"""What predictor–corrector sampling is made of, in closed form."""

import pytest
import torch

from sde_diffusion.config.build import REGISTRIES, SamplingConfig
from sde_diffusion.config.parse import parse, plain
from sde_diffusion.errors import InputError
from sde_diffusion.oracle import GaussianMixture
from sde_diffusion.rng import generator
from sde_diffusion.sde import SDE
from sde_diffusion.solvers import (
    AnnealedLangevin,
    EulerMaruyama,
    Langevin,
    PredictorCorrector,
    ReverseDiffusion,
    ReverseProcess,
    SeededNoise,
)
from sde_diffusion.tensors import flat_sum
from tests.conftest import f64
from tests.solvers.reference import GivenNoise

CLOSE = {"rtol": 1e-10, "atol": 1e-12}
T, T_NEXT = f64(0.5), f64(0.4)


def process_of(sde: SDE, draws: list[torch.Tensor]) -> ReverseProcess:
    oracle = GaussianMixture.gaussian(sde, torch.full((3, 2), 0.5, dtype=torch.float64), 0.6)
    return ReverseProcess(sde, oracle.score, noise=GivenNoise(draws))


def some(count: int, size: int = 4) -> list[torch.Tensor]:
    return list(torch.randn(count, size, 3, 2, generator=generator(1), dtype=torch.float64))


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_reverse_diffusion_step(sde: SDE, eta: float) -> None:
    x, z = some(2)
    process = process_of(sde, [z])
    rho = sde.mean_coef(T) / sde.mean_coef(T_NEXT)
    added = sde.std(T) ** 2 - (rho * sde.std(T_NEXT)) ** 2
    expected = (2 - rho) * x + (1 + eta**2) / 2 * added * process.score(x, T) + eta * added.sqrt() * z
    torch.testing.assert_close(ReverseDiffusion(eta=eta).step(process, x, T, T_NEXT, None)[0], expected, **CLOSE)


def test_langevin_step(sde: SDE) -> None:
    """Every sample has its own length, held to that of data with unit variance."""
    x, z = some(2)
    process = process_of(sde, [z])
    score = process.score(x, T)
    x[0] += score[0] * sde.std(T) ** 2  # a sample near the mode, where the score is small
    score = process.score(x, T)
    alpha = (sde.mean_coef(T) / sde.mean_coef(T_NEXT)) ** 2
    width = (sde.mean_coef(T) ** 2 + sde.std(T) ** 2).sqrt()
    spread = (flat_sum(z**2) / flat_sum(score**2)).sqrt()
    h = (2 * alpha * (0.2 * torch.minimum(spread, width)) ** 2)[:, None, None]
    found = Langevin(snr=0.2).correct(process, x, T, T_NEXT)
    torch.testing.assert_close(found, x + h * score + (2 * h).sqrt() * z, **CLOSE)


def test_langevin_at_a_mode_stays_finite(sde: SDE) -> None:
    mode = (sde.mean_coef(T) * 0.5).expand(4, 3, 2)
    assert Langevin().correct(process_of(sde, some(1)), mode, T, T_NEXT).isfinite().all()


def test_the_batch_norm_couples_samples_and_the_default_does_not(sde: SDE) -> None:
    x, z = some(2)
    for norm, couples in (("batch", True), ("sample", False)):
        corrector = Langevin(norm=norm)
        whole = corrector.correct(process_of(sde, [z]), x, T, T_NEXT)
        alone = corrector.correct(process_of(sde, [z[:1]]), x[:1], T, T_NEXT)
        assert torch.allclose(whole[:1], alone, rtol=1e-12) != couples


def test_annealed_langevin_repeats(sde: SDE) -> None:
    x, *draws = some(3)
    process = process_of(sde, draws)
    h = 2 * (0.1 * sde.std(T) * sde.mean_coef(T) / sde.mean_coef(T_NEXT)) ** 2
    expected = x
    for z in draws:
        expected = expected + h * process.score(expected, T) + (2 * h).sqrt() * z
    before = process.nfe
    found = AnnealedLangevin(snr=0.1, repeats=2).correct(process, x, T, T_NEXT)
    torch.testing.assert_close(found, expected, **CLOSE)
    assert process.nfe - before == 2


@pytest.mark.parametrize("predictor", [EulerMaruyama(), None], ids=str)
def test_the_corrector_comes_first(sde: SDE, predictor: EulerMaruyama | None) -> None:
    x, *draws = some(3)
    solver = PredictorCorrector(predictor=predictor, corrector=AnnealedLangevin())
    process = process_of(sde, draws)
    expected = solver.corrector.correct(process, x, T, T_NEXT)
    if predictor is not None:
        expected = predictor.step(process, expected, T, T_NEXT, None)[0]
    assert torch.equal(solver.step(process_of(sde, draws), x, T, T_NEXT, None)[0], expected)


def test_langevin_steps_keep_a_gaussian_up_to_their_bias(sde: SDE) -> None:
    """The variance settles at v / (1 − h/2v): 400 small steps from p_t leave it there."""
    oracle = GaussianMixture.gaussian(sde, f64([0.5]), 0.6)
    x = oracle.sample(4000, T, generator=generator(2))
    noise = SeededNoise(3, dtype=torch.float64)
    corrector = AnnealedLangevin(snr=0.3, repeats=400)
    x = corrector.correct(ReverseProcess(sde, oracle.score, noise=noise), x, T, T)
    variance = float((0.6 * sde.mean_coef(T)) ** 2 + sde.std(T) ** 2)
    settled = variance / (1 - float((0.3 * sde.std(T)) ** 2) / variance)
    squares = (x - 0.5 * sde.mean_coef(T)) ** 2
    assert abs(float(squares.mean()) - settled) < 4 * float(squares.std()) / 4000**0.5


def test_a_config_names_its_parts() -> None:
    raw = {"predictor": "em", "corrector": {"name": "ald", "repeats": 2}, "steps": 9}
    solver = parse(SamplingConfig, {"solver": {"name": "pc", **raw}}, REGISTRIES).solver
    assert solver == PredictorCorrector(steps=9, predictor=EulerMaruyama(), corrector=AnnealedLangevin(repeats=2))
    assert parse(PredictorCorrector, without_name(plain(solver, REGISTRIES)), REGISTRIES) == solver
    with pytest.raises(InputError, match="unknown predictor 'emm'"):
        parse(PredictorCorrector, {"predictor": "emm"}, REGISTRIES)
    with pytest.raises(InputError, match=r"unknown config key 'corrector.norm' of 'ald'"):
        parse(PredictorCorrector, {"corrector": {"name": "ald", "norm": "batch"}}, REGISTRIES)


def without_name(raw: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in raw.items() if key != "name"}
