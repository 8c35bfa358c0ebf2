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
from torch.nn.functional import max_pool1d

from sde_diffusion.errors import InputError
from sde_diffusion.losses import (
    TIME_SAMPLERS,
    WEIGHTINGS,
    DSMLoss,
    ImportanceTime,
    LikelihoodWeighting,
    LogNormalTime,
    SecondMomentTime,
    SimpleWeighting,
    StratifiedTime,
    TimeSampler,
    UniformTime,
    Weighting,
    dsm_loss,
)
from sde_diffusion.losses.time_sampling import cell_edges, stratify
from sde_diffusion.oracle import GaussianMixture
from sde_diffusion.rng import SampleStream, generator
from sde_diffusion.sde import DDPM, SDE, VPSDE, LinearBetas
from tests.conftest import assert_mean, f64

LAW = LogNormalTime(p_mean=0.0, p_std=3.0)  # far wider than any process, so that no time is drawn too seldom

# every row of `TIME_SAMPLERS` with its defaults, and the variants that change formulas
SAMPLERS: dict[str, TimeSampler] = {name: cls() for name, cls in TIME_SAMPLERS.items()} | {
    "importance-independent": ImportanceTime(stratified=False),
    "log_normal": LAW,
    "log_normal-stratified": replace(LAW, stratified=True),
    "loss_second_moment-independent": SecondMomentTime(bins=7, stratified=False),
}
DRAWS = 20_000
KOLMOGOROV = math.sqrt(-0.5 * math.log(0.5 * 6.3e-5))  # of √n D at the probability of 4 standard errors
MEAN, STD = f64([0.5, -0.3]), 0.6


# every sampler with the plain weight and one that is steep; the density of the one that reads the weight with all
STEEP = ("simple", "likelihood")
CASES = [(sampler, weighting) for sampler in SAMPLERS for weighting in STEEP]
DENSITIES = [*CASES, *(("importance", weighting) for weighting in WEIGHTINGS if weighting not in STEEP)]
# a weight that grows with the noise needs draws there (importance), but for the right score, whose error vanishes there
INTEGRALS = [
    *((case, factor) for case in CASES for factor in (0.0, 0.7, 1.0)),
    *((case, factor) for case in DENSITIES[len(CASES) :] for factor in (0.0, 0.7)),
    *((("uniform", weighting), 1.0) for _, weighting in DENSITIES[len(CASES) :]),
]


@pytest.fixture(params=CASES, ids="-".join)
def case(request: pytest.FixtureRequest, sde: SDE) -> tuple[TimeSampler, Weighting]:
    """A time sampler and a weighting."""
    name, weighting = request.param
    sampler = SAMPLERS[name]
    if sampler.on_levels(sde) and sde.levels is None:
        with pytest.raises(InputError, match=f"`{name}` needs a process with levels, such as ddpm"):
            draw(sampler, sde, LikelihoodWeighting())
        pytest.skip("it draws the levels of a chain, and this process has none")
    return sampler, WEIGHTINGS[weighting]()


def learnt(sampler: TimeSampler, sde: SDE) -> TimeSampler:
    """The sampler after losses that differ by factors."""
    state = sampler.initial_state(sde)
    if state is None:
        return sampler
    t, _ = sampler(sde, SimpleWeighting(), 40 * len(state), generator=generator(5))
    loss = torch.exp(torch.randn(len(t), generator=generator(6)) + 3 * t)
    taught = sampler.at(sampler.updated(sde, state, t, loss=loss))
    densities = [s(sde, SimpleWeighting(), 100, generator=generator(7))[1] for s in (sampler, taught)]
    assert not torch.equal(*densities), "it has learnt nothing"
    return taught


def draw(sampler: TimeSampler, sde: SDE, weighting: Weighting, count: int = DRAWS) -> tuple[Tensor, Tensor]:
    return sampler(sde, weighting, count, generator=generator(1))


@pytest.mark.parametrize("case", DENSITIES, ids="-".join, indirect=True)
def test_times_are_in_range_and_float32(sde: SDE, case: tuple[TimeSampler, Weighting]) -> None:
    for sampler in (case[0], learnt(case[0], sde)):
        t, density = draw(sampler, sde, case[1])
        assert t.shape == density.shape == (DRAWS,)
        assert t.dtype == density.dtype == torch.float32
        assert float(torch.tensor(sde.t_min)) <= t.min() <= t.max() <= sde.t_max
        assert (density > 0).all()


@pytest.mark.parametrize("case", DENSITIES, ids="-".join, indirect=True)
def test_density_is_that_of_the_draws(sde: SDE, case: tuple[TimeSampler, Weighting]) -> None:
    """∫ r up to the i-th smallest draw, by the trapezoidal rule over the draws, is i/n (Kolmogorov–Smirnov).

    Of the levels of a chain, (1/T) Σ r up to each is the share of draws up to there.
    """
    sampler, weighting = learnt(case[0], sde), case[1]
    t, density = draw(sampler, sde, weighting)
    if sampler.on_levels(sde):
        level = (t.double() * sde.levels).round()
        torch.testing.assert_close(level / sde.levels, t.double(), rtol=1e-7, atol=0)
        at = torch.zeros(sde.levels, dtype=torch.float64).index_put((level.long() - 1,), density.double() / sde.levels)
        share = torch.bincount(level.long() - 1, minlength=sde.levels) / DRAWS
        assert (at.cumsum(0) - share.cumsum(0)).abs().max() < KOLMOGOROV / math.sqrt(DRAWS)
        return
    order = t.argsort()
    cdf = torch.cumulative_trapezoid(density[order].double(), t[order].double())
    expected = torch.arange(1, DRAWS, dtype=torch.float64) / DRAWS
    assert (cdf - expected).abs().max() < KOLMOGOROV / math.sqrt(DRAWS)


def test_density_integrates_to_one(sde: SDE, case: tuple[TimeSampler, Weighting]) -> None:
    """E_r[1/r] is the length of the interval, or the 1 of (1/T) Σ 1; every draw says so exactly where r is constant."""
    sde = milder(sde)
    for sampler in (case[0], learnt(case[0], sde)):
        _, density = draw(sampler, sde, case[1])
        span = 1.0 if sampler.on_levels(sde) else sde.t_max - sde.t_min
        if density.min() == density.max():
            assert float(density[0]) * span == pytest.approx(1, rel=1e-6)
        else:
            assert_mean(1 / density, span)


def milder(sde: SDE) -> SDE:
    """The process from t = 10⁻³ on: by uniform draws, λ/σ² ~ 1/t has a variance of order 1/t_min."""
    return sde if sde.levels else replace(sde, t_min=1e-3)


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
    """∫ λ/σ² E|e|²/D dt by the trapezoidal rule in log t: relative error below 1e-6. Or its mean over the levels."""
    u = torch.linspace(math.log(sde.t_min), math.log(sde.t_max), 100_001, dtype=torch.float64)
    t = torch.arange(1, 1 + sde.levels, dtype=torch.float64) / sde.levels if levels and sde.levels else u.exp()
    c = sde.std(t) ** 2 / (sde.mean_coef(t) ** 2 * STD**2 + sde.std(t) ** 2)
    error = (1 - factor * c) ** 2 + factor**2 * c * (1 - c)
    integrand = weighting.of_eps(sde, t) * error
    return float(integrand.mean() if levels else torch.trapezoid(integrand * t, u))


@pytest.mark.parametrize(("case", "factor"), INTEGRALS, ids=str, indirect=["case"])
def test_every_sampler_estimates_the_same_integral(
    sde: SDE, case: tuple[TimeSampler, Weighting], factor: float
) -> None:
    sde, weighting = milder(sde), case[1]
    sampler = learnt(case[0], sde)
    exact = integral(sde, weighting, factor, levels=sampler.on_levels(sde))
    assert_mean(loss(sde, sampler, weighting, factor=factor).loss, exact)


def test_the_right_score_is_stationary(sde: SDE, case: tuple[TimeSampler, Weighting]) -> None:
    """The slope of the loss in the factor, and in a shift, is zero at the right score, and not beside it."""
    sde, weighting = milder(sde), case[1]
    sampler = learnt(case[0], sde)

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


def test_every_level_is_trained() -> None:
    for name in ("discrete", "loss_second_moment"):
        sde, message = (
            DDPM(steps=10, t_min=0.2),
            rf"must be ≤ 1/10, where the time sampler `{name}` has level 1, got 0.2",
        )
        with pytest.raises(InputError, match=message):
            TIME_SAMPLERS[name]().check(sde, SimpleWeighting(), draws=1000)
        TIME_SAMPLERS[name]().check(DDPM(steps=10), SimpleWeighting(), draws=1000)
    with pytest.raises(InputError, match=r"`sde\.t_min` must be ≤ 1/10"):
        draw(TIME_SAMPLERS["discrete"](), sde, LikelihoodWeighting())


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


@pytest.mark.parametrize(
    ("stratified", "independent"),
    [
        (StratifiedTime(), UniformTime()),
        (ImportanceTime(), ImportanceTime(stratified=False)),
        (LogNormalTime(stratified=True), LogNormalTime()),
        (SecondMomentTime(), SecondMomentTime(stratified=False)),
    ],
)
@pytest.mark.parametrize("total", [1, 2, 3, 12, 64, 100])
def test_stratified_draws_fall_one_in_each_stratum(
    stratified: TimeSampler, independent: TimeSampler, total: int
) -> None:
    """Those of B rows are the independent ones at one number in each [s/B, (s + 1)/B), in any parts of the rows."""
    sde, weighting = VPSDE(), LikelihoodWeighting()

    def times(sampler: TimeSampler, start: int, count: int) -> Tensor:
        stream = SampleStream(4, start=start, count=count, total=total)
        return sampler(sde, weighting, count, generator=stream)[0]

    whole, edges = times(stratified, 0, total), torch.arange(total + 1, dtype=torch.float64) / total
    limits = independent.draw(sde, weighting, edges.clamp(max=1 - 2**-53))[0]
    found = whole.double().sort().values
    slack = 2**-22 * limits  # times are float32
    assert ((found >= (limits - slack)[:-1]) & (found <= (limits + slack)[1:])).all()
    cut = total // 3
    parts = [times(stratified, start, count) for start, count in ((0, cut), (cut, total - cut)) if count]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(times(independent, 0, total), whole) or total == 1


def test_rows_that_are_neighbours_have_times_far_apart() -> None:
    """Any eighth of a batch in a row has the mean time to a stratum or so: as even as the whole."""
    u = stratify(torch.full((64,), 0.5, dtype=torch.float64), 0, 64)
    assert (u.sort().values.diff() - 1 / 64).abs().max() < 1e-12
    assert (u.unfold(0, 8, 1).mean(1) - 0.5).abs().max() < 1 / 8


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


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_importance_follows_the_weight(sde: SDE, name: str) -> None:
    """λ/(σ² r) is the integral of λ/σ², but for what the weight changes within a cell, or the next one by rounding."""
    weighting, edges = WEIGHTINGS[name](), cell_edges(sde)
    t, density = draw(ImportanceTime(), sde, weighting)
    total = (weighting.of_eps(sde, 0.5 * (edges[1:] + edges[:-1])) * edges.diff()).sum()
    change = max_pool1d(weighting.of_eps(sde, edges).log().diff().abs()[None], 3, stride=1, padding=1)[0]
    off = (weighting.of_eps(sde, t.double()) / density / total).log().abs()
    assert (off < change[torch.searchsorted(edges, t.double()).clamp(min=1) - 1] + 1e-5).all()
    assert off.mean() < 0.15, "the cells are finer than the weight's changes, and nearly so next to a pole"


@pytest.mark.parametrize("weighting", ["simple", "likelihood", "p2", "snr_plus_one"])
@pytest.mark.parametrize("sampler", [ImportanceTime(stratified=False), LogNormalTime()])
def test_training_refuses_times_that_one_uniform_draw_is_worth_thirty_of(sampler: TimeSampler, weighting: str) -> None:
    """By the variance of the loss of a score that is right for other data: all of it is of the same order."""
    sde, row = VPSDE(t_min=1e-3), WEIGHTINGS[weighting]()
    x0 = GaussianMixture.gaussian(sde, f64([0.0, 0.0]), 0.6).sample(200_000, generator=generator(2))
    wrong = GaussianMixture.gaussian(sde, f64([0.0, 0.0]), 0.5)
    how = {"weighting": row, "generator": generator(3)}
    moments = [
        dsm_loss(wrong.score, sde, x0, time_sampler=times, **how).loss.double().square().mean()  # type: ignore[arg-type]
        for times in (sampler, UniformTime())
    ]
    worth = float(moments[0] / moments[1])
    if worth < 3:
        sampler.check(sde, row, draws=1)
    else:
        assert worth > 300
        with pytest.raises(
            InputError, match=r"the error vanishes: with this loss.weighting about .* worth one of unifo"
        ):
            sampler.check(sde, row, draws=1)


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_is_a_value(sampler: TimeSampler) -> None:
    assert pickle.loads(pickle.dumps(sampler)) == sampler
    assert {sampler: 1}[replace(sampler)] == 1
    assert type(sampler).__name__ in repr(sampler)
