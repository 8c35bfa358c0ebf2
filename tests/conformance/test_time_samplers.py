"""What every time sampler must satisfy, for every process and weighting: it tells the density of its draws, so the loss
estimates the same integral whichever is used.

For data N(m, s² I) and a wrong score, κ times the right one, the integral has a closed form up to one quadrature: with
V = a² s² + σ² and c = σ²/V, the error of ε is E|e|²/D = (1 − κ c)² + κ² c (1 − c).
"""

import math
import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from sde_diffusion.errors import InputError
from sde_diffusion.losses import (
    TIME_SAMPLERS,
    WEIGHTINGS,
    DSMLoss,
    ImportanceTime,
    LikelihoodWeighting,
    StratifiedTime,
    TimeSampler,
    UniformTime,
    Weighting,
    dsm_loss,
)
from sde_diffusion.oracle import GaussianMixture
from sde_diffusion.rng import generator
from sde_diffusion.sde import DDPM, SDE, VPSDE, LinearBetas
from tests.conftest import assert_mean, f64

# every row of `TIME_SAMPLERS` with its defaults, and the variants that change formulas
SAMPLERS: dict[str, TimeSampler] = {name: cls() for name, cls in TIME_SAMPLERS.items()} | {
    "importance-independent": ImportanceTime(stratified=False)
}
DRAWS = 20_000
KOLMOGOROV = math.sqrt(-0.5 * math.log(0.5 * 6.3e-5))  # of √n D at the probability of 4 standard errors
MEAN, STD = f64([0.5, -0.3]), 0.6


@pytest.fixture(params=SAMPLERS)
def sampler(request: pytest.FixtureRequest, sde: SDE) -> TimeSampler:
    sampler = SAMPLERS[request.param]
    if sampler.on_levels(sde) and sde.levels is None:
        with pytest.raises(InputError, match=f"`{request.param}` needs a process with levels, such as ddpm"):
            draw(sampler, sde, LikelihoodWeighting())
        pytest.skip("it draws the levels of a chain, and this process has none")
    return sampler


@pytest.fixture(params=WEIGHTINGS)
def weighting(request: pytest.FixtureRequest) -> Weighting:
    return WEIGHTINGS[request.param]()


def draw(sampler: TimeSampler, sde: SDE, weighting: Weighting, count: int = DRAWS) -> tuple[Tensor, Tensor]:
    return sampler(sde, weighting, count, generator=generator(1))


def test_times_are_in_range_and_float32(sde: SDE, sampler: TimeSampler, weighting: Weighting) -> None:
    t, density = draw(sampler, sde, weighting)
    assert t.shape == density.shape == (DRAWS,)
    assert t.dtype == density.dtype == torch.float32
    assert float(torch.tensor(sde.t_min)) <= t.min() <= t.max() <= sde.t_max
    assert (density > 0).all()


def test_density_is_that_of_the_draws(sde: SDE, sampler: TimeSampler, weighting: Weighting) -> None:
    """∫ r up to the i-th smallest draw, by the trapezoidal rule over the draws, is i/n (Kolmogorov–Smirnov).

    Where it draws levels, the share of draws up to each is the sum of r/T.
    """
    t, density = draw(sampler, sde, weighting)
    order = t.argsort()
    if sampler.on_levels(sde):
        assert sde.levels is not None
        level, count = (t.double() * sde.levels).round().unique(return_counts=True)
        torch.testing.assert_close(t.double().unique() * sde.levels, level, rtol=1e-6, atol=0)
        share = density[order][count.cumsum(0) - 1].double().cumsum(0) / sde.levels
        assert (share - count.cumsum(0) / DRAWS).abs().max() < KOLMOGOROV / math.sqrt(DRAWS)
        return
    cdf = torch.cumulative_trapezoid(density[order].double(), t[order].double())
    expected = torch.arange(1, DRAWS, dtype=torch.float64) / DRAWS
    assert (cdf - expected).abs().max() < KOLMOGOROV / math.sqrt(DRAWS)


def test_density_integrates_to_one(sde: SDE, sampler: TimeSampler, weighting: Weighting) -> None:
    """E_r[1/r] is the length of the interval, or 1 for levels; every draw says so exactly where r is constant."""
    sde = replace(sde, t_min=1e-3)  # the variance of 1/r is of order 1/t_min
    _, density = draw(sampler, sde, weighting)
    span = 1.0 if sampler.on_levels(sde) else sde.t_max - sde.t_min
    if density.min() == density.max():
        assert float(density[0]) * span == pytest.approx(1, rel=1e-6)
    else:
        assert_mean(1 / density, span)


def loss(sde: SDE, sampler: TimeSampler, weighting: Weighting, *, factor: float, **options: Any) -> DSMLoss:
    """Draws of the loss of `factor` times the right score, and of `shift` beside it."""
    oracle, rng = GaussianMixture.gaussian(sde, MEAN, STD), generator(2)
    count, shift = options.get("count", DRAWS), options.get("shift", 0.0)
    x0 = oracle.sample(count, generator=rng)
    return dsm_loss(
        lambda x, t: factor * oracle.score(x, t) + shift / sde.std(t.double())[:, None],
        sde,
        x0,
        weighting=weighting,
        time_sampler=sampler,
        generator=rng,
    )


def integral(sde: SDE, weighting: Weighting, factor: float, *, levels: bool = False) -> float:
    """∫ λ/σ² E|e|²/D dt by the trapezoidal rule in log t: relative error below 1e-6. Over `levels`, their mean."""
    u = torch.linspace(math.log(sde.t_min), math.log(sde.t_max), 100_001, dtype=torch.float64)
    t = u.exp()
    if levels:
        assert sde.levels is not None
        t = torch.arange(1, sde.levels + 1, dtype=torch.float64) / sde.levels
    c = sde.std(t) ** 2 / (sde.mean_coef(t) ** 2 * STD**2 + sde.std(t) ** 2)
    error = (1 - factor * c) ** 2 + factor**2 * c * (1 - c)
    values = weighting.of_eps(sde, t) * error
    return float(values.mean() if levels else torch.trapezoid(values * t, u))


def test_every_level_is_trained() -> None:
    with pytest.raises(InputError, match=r"`sde\.t_min` must be ≤ 1/10, where the time sampler `discrete` has level 1"):
        draw(TIME_SAMPLERS["discrete"](), DDPM(steps=10, t_min=0.2), LikelihoodWeighting())


def test_the_mean_over_levels_tends_to_the_integral() -> None:
    """For `simple` the Riemann sum of the levels is off by O(1/T): half as much with twice the levels."""
    gaps = []
    for scale in (1, 2):
        beta = LinearBetas(first=1e-4 / scale, last=0.02 / scale)
        sde = DDPM(steps=1000 * scale, beta=beta)
        gaps.append(
            integral(sde, WEIGHTINGS["simple"](), 0.7, levels=True) - integral(sde, WEIGHTINGS["simple"](), 0.7)
        )
    assert gaps[0] / gaps[1] == pytest.approx(2, rel=0.05)


@pytest.mark.parametrize("factor", [0.0, 0.7, 1.0])
def test_every_sampler_estimates_the_same_integral(
    sde: SDE, sampler: TimeSampler, weighting: Weighting, factor: float
) -> None:
    sde = replace(sde, t_min=1e-3)  # by uniform draws, λ/σ² ~ 1/t has a variance of order 1/t_min
    exact = integral(sde, weighting, factor, levels=sampler.on_levels(sde))
    assert_mean(loss(sde, sampler, weighting, factor=factor).loss, exact)


def test_the_right_score_is_stationary(sde: SDE, sampler: TimeSampler, weighting: Weighting) -> None:
    """The slope of the loss in the factor, and in a shift, is zero at the right score, and not beside it."""
    sde = replace(sde, t_min=1e-3)

    def slope(at: float, **step: float) -> Tensor:  # exact, for a quadratic
        losses = [
            loss(sde, sampler, weighting, factor=at + sign * step.get("factor", 0), shift=sign * step.get("shift", 0))
            for sign in (1, -1)
        ]
        return (losses[0].loss - losses[1].loss).double() / 2

    assert_mean(slope(1.0, factor=1.0), 0.0, "factor")
    assert_mean(slope(1.0, shift=1.0), 0.0, "shift")
    elsewhere = slope(0.8, factor=1.0)
    assert float(elsewhere.mean()) < -8 * float(elsewhere.std()) / math.sqrt(DRAWS)


@pytest.mark.parametrize(
    ("stratified", "independent"),
    [(StratifiedTime(), UniformTime()), (ImportanceTime(), ImportanceTime(stratified=False))],
)
def test_stratified_draws_fall_one_in_each_stratum(stratified: TimeSampler, independent: TimeSampler) -> None:
    """The i-th of B draws is the independent one at the uniform number (i + u)/B."""
    sde, weighting, count = VPSDE(), LikelihoodWeighting(), 64
    u = torch.rand(count, generator=generator(4), dtype=torch.float64)
    expected = independent.draw(sde, weighting, (torch.arange(count) + u) / count)
    for value, same in zip(stratified.draw(sde, weighting, u), expected, strict=True):
        torch.testing.assert_close(value, same, rtol=1e-10, atol=0)
    assert (expected[0].diff() > 0).all()


def batch_means(sampler: TimeSampler, sde: SDE, count: int = 8, batches: int = 500) -> Tensor:
    """The loss of many small batches, from one stream of draws."""
    oracle, rng = GaussianMixture.gaussian(sde, MEAN, STD), generator(3)
    return torch.stack(
        [
            dsm_loss(
                lambda x, t: 0.7 * oracle.score(x, t),
                sde,
                oracle.sample(count, generator=rng),
                weighting=WEIGHTINGS["simple"](),
                time_sampler=sampler,
                generator=rng,
            ).loss.mean()
            for _ in range(batches)
        ]
    )


def test_stratified_batches_are_unbiased_and_vary_less() -> None:
    sde = VPSDE()
    stratified, independent = (batch_means(sampler, sde) for sampler in (StratifiedTime(), UniformTime()))
    assert_mean(stratified, integral(sde, WEIGHTINGS["simple"](), 0.7))
    assert stratified.var() < independent.var()


def test_importance_has_far_less_variance_under_likelihood_weighting() -> None:
    """VP, λ = g², t_min = 1e-5: the same integral with a fifth of the variance or less."""
    sde, weighting = VPSDE(), LikelihoodWeighting()
    uniform, importance = (
        loss(sde, sampler, weighting, factor=0.7, count=65_536).loss
        for sampler in (UniformTime(), ImportanceTime(stratified=False))
    )
    assert_mean(importance, integral(sde, weighting, 0.7))
    assert_mean(uniform, integral(sde, weighting, 0.7))
    assert importance.var() < uniform.var() / 5


def test_importance_is_uniform_for_a_constant_weight(sde: SDE) -> None:
    _, density = draw(ImportanceTime(), sde, WEIGHTINGS["simple"]())
    torch.testing.assert_close(density, torch.full_like(density, 1 / (sde.t_max - sde.t_min)))


def test_importance_follows_the_weight(sde: SDE, weighting: Weighting) -> None:
    """r ∝ λ/σ² to half the largest relative change within a cell.

    That is 2048⁻¹ over the distance 2/999 to the pole of the cosine β; elsewhere cells are far narrower.
    """
    t, density = draw(ImportanceTime(), sde, weighting)
    ratio = weighting.of_eps(sde, t.double()) / density
    assert (ratio / ratio.mean() - 1).abs().max() < 0.5 / 2048 / (2 / 999)


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_is_a_value(sampler: TimeSampler) -> None:
    assert pickle.loads(pickle.dumps(sampler)) == sampler
    assert {sampler: 1}[replace(sampler)] == 1
    assert type(sampler).__name__ in repr(sampler)
