"""The variational bounds against closed forms, and what decoders give.

With the exact score, L_prior + L_diffusion is E_q[log q(x_s | x_0) − log p_s(x_s)] plus the prior gap
E_q[log p_T(x_T) − log N(x_T; 0, prior_std² I)], at each x_0. Estimates are held to 4 standard errors.
"""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sde_diffusion.bin_mass import log_normal_mass
from sde_diffusion.data import DataSpec
from sde_diffusion.errors import InputError
from sde_diffusion.grids import LogSNRGrid
from sde_diffusion.likelihood import Bound, Levels, Points, Target, chain_bound, continuous_bound, importance_weighted
from sde_diffusion.likelihood.audit.truncation import prior_kl
from sde_diffusion.losses import ImportanceTime, UniformTime
from sde_diffusion.oracle import GaussianMixture
from sde_diffusion.rng import generator
from sde_diffusion.sde import BETA_SEQUENCES, DDPM, SDE, VPSDE, CosineBetas, LinearBetas
from sde_diffusion.sde.chain import DiscreteChain
from sde_diffusion.verify.problems import MEAN, STD, KnownVariance
from tests.chains import as_process
from tests.conftest import assert_mean, f64

COUNT = 1500
SPEC = DataSpec("arrays", (3,), levels=8)


def mixture(sde: SDE) -> GaussianMixture:
    means = f64([[-0.4, 0.1, 0.3], [0.3, 0.2, -0.2]])
    return GaussianMixture(sde, f64([0.4, 0.6]), means, f64([0.15, 0.25]))


def log_normal(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    return (-0.5 * ((x - mean) / std) ** 2 - std.log() - 0.5 * math.log(2 * math.pi)).sum(1)


def expected(oracle: GaussianMixture, x0: Tensor, ends: tuple[Tensor, Tensor]) -> Tensor:
    """Independent draws of log q(x_s | x_0) − log p_s(x_s) and of the prior gap, (COUNT,)."""
    sde, rng = oracle.sde, generator(9)
    first, last = ends
    near, far = (sde.perturb(x0, t, torch.randn(x0.shape, generator=rng, dtype=torch.float64)) for t in ends)
    kl = log_normal(near, sde.mean_coef(first) * x0, sde.std(first)) - oracle.log_prob(near, first)
    return kl + oracle.log_prob(far, last) - log_normal(far, 0 * far, f64(sde.prior_std))


def one_point() -> Tensor:
    return f64([[-0.2, 0.15, 0.1]]).expand(COUNT, 3)


@pytest.mark.parametrize("draws", [1, 4])
def test_the_continuous_bound_is_the_likelihood_up_to_the_prior_gap(sde: SDE, draws: int) -> None:
    oracle, x0 = mixture(sde), one_point()
    bound = continuous_bound(oracle.score, sde, Points(x0), draws=draws, seed=1)
    assert bound.nfe == draws + 1
    found = bound.prior + bound.diffusion
    assert_mean(found - expected(oracle, x0, (f64(sde.t_min), f64(sde.t_max))), 0.0)


def test_time_samplers_give_the_same_bound(sde: SDE) -> None:
    """Where g²/σ² varies a uniform t has more variance; under VE it is constant."""
    sde = replace(sde, t_min=1e-2)  # by uniform draws, g²/σ² ~ 1/t has a variance of order 1/t_min
    oracle, x0 = mixture(sde), one_point()

    def diffusion(sampler: UniformTime | ImportanceTime | None, seed: int) -> Tensor:
        bound = continuous_bound(oracle.score, sde, Points(x0), draws=4, time_sampler=sampler, seed=seed)
        return bound.diffusion

    assert_mean(diffusion(UniformTime(), 1) - diffusion(None, 2), 0.0)
    if sde.prior_std == 1:
        assert diffusion(None, 2).var() < diffusion(UniformTime(), 1).var() / 1.5


def exact_gaussian(sde: SDE, x0: Tensor) -> Tensor:
    """−log N(x_0; m, s²) of the Gaussian below."""
    return -log_normal(x0, f64([0.1, -0.2, 0.3]), f64(0.4))


def test_with_a_decoder_it_is_the_density_of_the_data(sde: SDE) -> None:
    """A Gaussian's posterior of x_0 is Gaussian, of a variance that differs by σ²/(a² s²) from the decoder's σ²/a²."""
    oracle = GaussianMixture.gaussian(sde, f64([0.1, -0.2, 0.3]), 0.4)
    x0 = oracle.sample(COUNT, generator=generator(1))
    bound = continuous_bound(oracle.score, sde, Points(x0), draws=8, seed=1)
    end = f64(sde.t_max)
    gap = prior_kl(
        f64([[0.1, -0.2, 0.3]]),
        sde.mean_coef(end),
        (0.16 * sde.mean_coef(end) ** 2 + sde.std(end) ** 2).sqrt(),
        sde.prior_std,
    )
    ratio = 1 / (1 + (sde.std(f64(sde.t_min)) / (sde.mean_coef(f64(sde.t_min)) * 0.4)) ** 2)
    misfit = 1.5 * (ratio - 1 - ratio.log())
    assert_mean(-bound.log_prob - exact_gaussian(sde, x0), float(gap + misfit))


@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("draws", [None, 3])
def test_a_chain_sums_its_terms(sde: SDE, variance: str, draws: int | None) -> None:
    """Against the same KL divergences from the posterior's coefficients, with independent noise."""
    oracle, x0 = mixture(sde), one_point()
    times = LogSNRGrid()(sde, sde.t_min, sde.t_max, 7)
    chain = DiscreteChain.from_sde(sde, times)
    options = {"prior_std": sde.prior_std, "variance": variance, "draws": draws}
    bound = chain_bound(oracle.score, chain, Points(x0), seed=1, **options)  # type: ignore[arg-type]
    assert bound.nfe == (8 if draws is None else 4)
    rng, total = generator(5), torch.zeros(COUNT, dtype=torch.float64)
    for k in range(2, 9):
        eps = torch.randn(x0.shape, generator=rng, dtype=torch.float64)
        t = times[k - 1]
        x = sde.perturb(x0, t, eps)
        guess = (x + sde.std(t) ** 2 * oracle.score(x, t)) / sde.mean_coef(t)
        mine, model = chain.variance("small")[k - 1], chain.variance(variance)[k - 1]  # type: ignore[arg-type]
        distance = ((chain.posterior_mean(x, x0, k) - chain.posterior_mean(x, guess, k)) ** 2).sum(1)
        total += 0.5 * (distance / model + 3 * (mine / model - 1 - (mine / model).log()))
    assert_mean(bound.diffusion - total, 0.0)


def test_a_chain_is_above_the_continuous_bound_and_tends_to_it(sde: SDE) -> None:
    """With the exact score; from 4 steps to 16 to 64 the excess falls at least by half each time."""
    oracle = mixture(sde)
    x0 = oracle.sample(COUNT, generator=generator(1))
    limit = continuous_bound(oracle.score, sde, Points(x0), draws=16, seed=1)
    excess = []
    for steps in (8, 32, 128):
        chain = DiscreteChain.from_sde(sde, LogSNRGrid()(sde, sde.t_min, sde.t_max, steps - 1))
        bound = chain_bound(oracle.score, chain, Points(x0), prior_std=sde.prior_std, draws=16, seed=2)
        assert torch.equal(bound.prior, limit.prior)
        excess.append(float((bound.diffusion - limit.diffusion).mean()))
        error = float((bound.diffusion - limit.diffusion).std()) / math.sqrt(COUNT)
        assert excess[-1] > -4 * error
    assert excess[0] > 2 * excess[1] > 4 * (excess[2] - 4 * error)


@pytest.mark.parametrize("name", BETA_SEQUENCES)
@pytest.mark.parametrize("variance", ["small", "large"])
def test_published_chains_bound_the_data(name: str, variance: str) -> None:
    """The negative log-probability of n under DDPM's chain and decoder, against the entropy of the data."""
    chain = DiscreteChain.from_betas(BETA_SEQUENCES[name]()(300))
    oracle = mixture(as_process(chain))
    x0 = oracle.sample(500, generator=generator(1))
    values = SPEC.from_model(x0)
    width = float(torch.exp(0.5 * chain.clipped_log_variance[0]))
    bound = chain_bound(
        oracle.score, chain, Levels(SPEC, values), variance=variance, draws=32, decoder_std=width  # type: ignore[arg-type]
    )  # fmt: skip
    excess = -bound.log_prob + log_probability(oracle, values)
    error = float(excess.std()) / math.sqrt(len(excess))
    assert float(excess.mean()) > -4 * error


class Fraction:
    """A score with a given v."""

    def __init__(self, oracle: GaussianMixture, fraction: float) -> None:
        self.oracle, self.fraction = oracle, fraction

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self.oracle.score(x, t)

    def score_and_fraction(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return self(x, t), torch.full_like(x, self.fraction)


@pytest.mark.parametrize(("variance", "fraction"), [("small", 0.0), ("large", 1.0)])
@pytest.mark.parametrize("draws", [None, 8])
def test_a_learned_variance_at_its_ends_is_the_fixed_one(variance: str, fraction: float, draws: int | None) -> None:
    """All levels: equal to rounding, the published decoder included. Drawn levels: in the mean."""
    chain = DiscreteChain.of_levels(DDPM(steps=20))
    oracle = mixture(as_process(chain))
    x0 = oracle.sample(400, generator=generator(1))
    width = float(torch.exp(0.5 * chain.clipped_log_variance[0]))
    options = {"draws": draws, "seed": 4, "prior_std": 1.0}
    fixed = chain_bound(oracle.score, chain, Points(x0), variance=variance, decoder_std=width, **options)  # type: ignore[arg-type]
    found = chain_bound(Fraction(oracle, fraction), chain, Points(x0), variance="learned", **options)  # type: ignore[arg-type]
    assert found.nfe == fixed.nfe
    if draws is None:
        torch.testing.assert_close(found.diffusion, fixed.diffusion, rtol=1e-8, atol=1e-8)
    else:
        assert_mean(found.diffusion - fixed.diffusion, 0.0)
    if fraction == 0:
        torch.testing.assert_close(found.reconstruction, fixed.reconstruction, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(chain.decoder_std(f64([0.0, 1.0])) ** 2, torch.stack([f64(width) ** 2, chain.added[0]]))


def test_the_right_variance_is_no_worse_than_either_and_loses_nothing() -> None:
    """Gaussian data: Σ L = I(x_0; x_1) − I(x_0; x_N) with the exact variance of each step, and β, β̃ lose against it."""
    sde = DDPM(steps=8, beta=CosineBetas())
    chain, a, std = DiscreteChain.of_levels(sde), *(part(f64([0.125, 1.0])) for part in (sde.mean_coef, sde.std))
    oracle = KnownVariance(sde, f64(chain.times))
    x0 = MEAN + STD * torch.randn(2000, 3, generator=generator(1), dtype=torch.float64)
    target = Points(x0)
    best, small, large = (
        chain_bound(oracle, chain, target, variance=variance, decoder_std=1.0).diffusion
        for variance in ("learned", "small", "large")
    )
    told = 1.5 * torch.log1p((a * STD / std) ** 2)
    assert_mean(best, float(told[0] - told[1]))
    for worse in (small, large):
        gap = worse - best
        assert float(gap.mean()) > 4 * float(gap.std()) / math.sqrt(len(gap))


def log_probability(oracle: GaussianMixture, values: Tensor) -> Tensor:
    """log P(n) of the data themselves, whose mass outside [−1, 1] counts to the bins at the ends."""
    low = 2 * values.double() / 8 - 1
    low, high = torch.where(values == 0, -math.inf, low), torch.where(values == 7, math.inf, low + 0.25)
    edges = torch.stack([low, high])[:, :, None]  # (2, B, 1, D)
    mass = 0.5 * torch.erf((edges - oracle.means) / oracle.stds[:, None] / math.sqrt(2)).diff(dim=0)[0]
    return (oracle.weights.log() + mass.log().sum(2)).logsumexp(1)


def levels(decoder: str = "gaussian") -> Levels:
    values = torch.tensor([[0, 3, 7], [2, 0, 5]], dtype=torch.uint8)
    return Levels(SPEC, values, decoder)  # type: ignore[arg-type]


@pytest.mark.parametrize("decoder", ["gaussian", "softmax"])
@pytest.mark.parametrize("std", [0.03, 0.3, 30.0])
def test_a_decoder_is_a_distribution_of_n(decoder: str, std: float) -> None:
    mean = torch.linspace(-1.5, 1.5, 7, dtype=torch.float64)[:, None].expand(7, 3)
    spec = DataSpec("arrays", (3,), levels=8)
    log_probs = []
    for n in range(8):
        values = torch.tensor([n, 0, 0]).expand(7, 3)
        log_probs.append(Levels(spec, values, decoder).log_prob(mean, f64(std)))  # type: ignore[arg-type]
    other = Levels(DataSpec("arrays", (2,), levels=8), torch.zeros(7, 2, dtype=torch.long), decoder)  # type: ignore[arg-type]
    rest = other.log_prob(mean[:, :2], f64(std))
    torch.testing.assert_close(torch.stack(log_probs).logsumexp(0), rest, rtol=1e-10, atol=1e-10)


def test_the_decoder_by_hand() -> None:
    mean = f64([[-0.9, 0.0, 0.8], [-0.4, -0.9, 0.4]])
    scaled = mean / 0.2
    low = f64([[-math.inf, -0.25, 0.75], [-0.5, -math.inf, 0.25]]) / 0.2
    high = f64([[-0.75, 0.0, math.inf], [-0.25, -0.75, 0.5]]) / 0.2
    cdf = torch.special.ndtr
    expected = (cdf(high - scaled) - cdf(low - scaled)).log().sum(1)
    torch.testing.assert_close(levels().log_prob(mean, f64(0.2)), expected, rtol=1e-10, atol=0)
    centres = (2 * torch.arange(8, dtype=torch.float64) + 1) / 8 - 1
    logits = -0.5 * ((mean[..., None] - centres) / 0.2) ** 2
    n = torch.tensor([[0, 3, 7], [2, 0, 5]])
    expected = logits.log_softmax(2).gather(2, n[..., None]).squeeze(2).sum(1)
    torch.testing.assert_close(levels("softmax").log_prob(mean, f64(0.2)), expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(levels().x0.double(), centres[n], rtol=1e-6, atol=0)


def test_the_mass_of_an_interval_keeps_its_digits_in_the_tails() -> None:
    """From 20σ on, where Φ is 1 to rounding; the mass of [z, z + h] is φ(z)(1 − e^{−zh})/z · (1 + O(1/z²))."""
    z, h = f64([20.0, 30.0, 37.0]), 0.1
    leading = -0.5 * z**2 - 0.5 * math.log(2 * math.pi) - z.log() + torch.log(-torch.expm1(-z * h - 0.5 * h**2))
    found = log_normal_mass(z, z + h)
    assert ((found - leading).abs() < 1 / z**2).all()
    torch.testing.assert_close(found, log_normal_mass(-z - h, -z), rtol=1e-12, atol=0)
    narrow = log_normal_mass(f64(0.3), f64(0.3 + 1e-9))
    torch.testing.assert_close(narrow, f64(-0.045 - 0.5 * math.log(2 * math.pi) + math.log(1e-9)), rtol=1e-7, atol=0)


def targets() -> list[Target]:
    values = torch.arange(30, dtype=torch.uint8).reshape(10, 3) % 8
    return [Levels(SPEC, values), Points(SPEC.to_model(values))]


@pytest.mark.parametrize("target", targets(), ids=["levels", "points"])
@pytest.mark.parametrize("draws", [2, None])
def test_an_example_does_not_depend_on_its_companions(target: Target, draws: int | None) -> None:
    sde = VPSDE()
    oracle, chain = mixture(sde), DiscreteChain.from_betas(LinearBetas()(5))
    part: Target = Points(target.x0[4:6])
    if isinstance(target, Levels):
        part = Levels(SPEC, SPEC.from_model(target.x0[4:6]))

    def both(target: Target, start: int) -> list[Bound]:
        return [
            continuous_bound(oracle.score, sde, target, draws=draws or 3, seed=2, start=start),
            chain_bound(oracle.score, chain, target, draws=draws, seed=2, start=start),
        ]

    for whole, alone in zip(both(target, 100), both(part, 104), strict=True):
        torch.testing.assert_close(alone.log_prob, whole.log_prob[4:6], rtol=1e-6, atol=0)
        assert not torch.equal(whole.log_prob[:1], whole.log_prob[1:2])


def test_importance_weights() -> None:
    """Exact: log of the mean ratio. By probes: below it, by the divergence of the weights that the others chose."""
    log_probs = torch.randn(5, 3, 2, generator=generator(1), dtype=torch.float64)
    log_q = torch.randn(5, 3, generator=generator(2), dtype=torch.float64)
    exact = importance_weighted(log_probs[..., :1], log_q, exact=True)
    torch.testing.assert_close(exact, (log_probs[..., 0] - log_q).exp().mean(0).log())
    agreed = importance_weighted(log_probs[..., :1].expand(5, 3, 2), log_q, exact=False)
    torch.testing.assert_close(agreed, exact, rtol=1e-10, atol=1e-12)
    crossed = importance_weighted(log_probs, log_q, exact=False)
    ratios = log_probs - log_q[..., None]
    halves = []
    for i in (0, 1):
        w = ratios[..., 1 - i].softmax(0)
        halves.append((w * (ratios[..., i] - (5 * w).log())).sum(0))
    torch.testing.assert_close(crossed, torch.stack(halves).mean(0))


def test_importance_weights_stay_a_bound_under_noisy_probes() -> None:
    """Noise of 3 nats: the plain formula overshoots log P by nats, the crossed one stays below it."""
    truth, rng = f64(0.3), generator(3)
    ratios = truth + 0.5 * torch.randn(8, 4000, generator=rng, dtype=torch.float64) - 0.125  # E e^ratio = e^truth
    noisy = ratios[..., None] + 3 * torch.randn(8, 4000, 2, generator=rng, dtype=torch.float64)
    zero = torch.zeros(8, 4000, dtype=torch.float64)
    assert float(importance_weighted(noisy, zero, exact=True).mean()) > float(truth) + 0.5
    bound = importance_weighted(noisy, zero, exact=False)
    assert float(bound.mean()) < float(truth) + 4 * float(bound.std()) / math.sqrt(4000)
    assert float(bound.mean()) > float(ratios.mean()) - math.log(8) - 4 * float(bound.std()) / math.sqrt(4000)


def test_errors() -> None:
    oracle, target = mixture(VPSDE()), Points(one_point()[:2])
    chain = DiscreteChain.from_betas(LinearBetas()(5))
    with pytest.raises(InputError, match="`draws` must be > 0, got 0"):
        continuous_bound(oracle.score, VPSDE(), target, draws=0)
    with pytest.raises(InputError, match="`draws` must be > 0, or None for all levels, got 0"):
        chain_bound(oracle.score, chain, target, draws=0)
    with pytest.raises(InputError, match="`decoder_std` must be > 0, got 0"):
        chain_bound(oracle.score, chain, target, decoder_std=0.0)
    with pytest.raises(InputError, match="a decoder of discrete values cannot be used for arrays"):
        Levels(DataSpec("arrays", (3,), levels=None), torch.zeros(2, 3))
    with pytest.raises(InputError, match="`decoder` must be one of gaussian, softmax, got 'laplace'"):
        levels("laplace")
    with pytest.raises(InputError, match=r"need the exact trace or `divergence.probes` ≥ 2, got 1"):
        importance_weighted(torch.zeros(4, 2, 1), torch.zeros(4, 2), exact=False)
