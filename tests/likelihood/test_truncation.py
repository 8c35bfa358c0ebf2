"""The ends of the flow against closed forms."""

import math

import pytest
import torch

from sde_diffusion.likelihood import ExactTrace, Hutchinson, prior_gap, truncation_error
from sde_diffusion.oracle import GaussianMixture
from sde_diffusion.rng import generator
from sde_diffusion.sde import SDE, SDES, VESDE, VPSDE
from tests.conftest import assert_mean, f64


def mixture(sde: SDE) -> GaussianMixture:
    means = torch.randn(3, 4, generator=generator(1), dtype=torch.float64)
    return GaussianMixture(sde, f64([0.2, 0.5, 0.3]), means, f64([0.3, 0.6, 0.4]))


@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize("single", [True, False], ids=["gaussian", "mixture"])
def test_truncation_is_right_to_second_order(name: str, single: bool) -> None:
    """Halving what the noise does at t_min, 1 − a and σ², quarters the remainder; 0 order left out would halve it."""
    remainders, sizes = [], []
    for strength in (1.0, 0.5):
        if name == "ve":  # σ² = sigma_min² (sigma_max/sigma_min)^2t
            sde: SDE = VESDE(sigma_min=0.02 * math.sqrt(strength), t_min=1e-9)
        else:  # sub-VP has σ² ∝ t², VP ∝ t; both 1 − a ∝ t
            start = 5e-4 if name == "ddpm" else 2e-3  # a chain's β grows by a fifth a level at first
            sde = SDES[name](t_min=start * strength)
        oracle = GaussianMixture.gaussian(sde, f64([0.3, -0.2, 0.5, 0.0]), 0.4) if single else mixture(sde)
        x = oracle.sample(64, generator=generator(2))
        exact = oracle.log_prob(x, f64(sde.t_min)) - oracle.log_prob(x)
        first = truncation_error(oracle.score, sde, x, divergence=ExactTrace())
        remainders.append(float((exact - first).abs().mean()))
        sizes.append(float(exact.abs().mean()))
    assert remainders[0] < 0.05 * sizes[0]
    assert math.log2(remainders[0] / remainders[1]) == pytest.approx(2, abs=0.25)


def test_truncation_with_probes_is_unbiased() -> None:
    oracle = mixture(VPSDE(t_min=1e-3))
    x = oracle.sample(1, generator=generator(2)).expand(2000, -1)
    exact = truncation_error(oracle.score, oracle.sde, x[:1], divergence=ExactTrace())
    assert_mean(truncation_error(oracle.score, oracle.sde, x, divergence=Hutchinson(), seed=1), float(exact))


def test_the_prior_gap_bounds_that_of_the_mixture(sde: SDE) -> None:
    """KL(p_T ‖ prior) by draws of p_T, to 4 standard errors; each KL against the formula of torch."""
    oracle = mixture(sde)
    x = oracle.sample(20_000, generator=generator(3))
    gaps = prior_gap(sde, x)
    t = f64(sde.t_max)
    transition = torch.distributions.Normal(sde.mean_coef(t) * x, sde.std(t))
    expected = torch.distributions.kl_divergence(transition, torch.distributions.Normal(0.0, f64(sde.prior_std)))
    torch.testing.assert_close(gaps, expected.sum(1), rtol=1e-10, atol=1e-10)
    assert (gaps >= 0).all()
    z = oracle.sample(20_000, t.expand(20_000), generator=generator(4))
    ratio = oracle.log_prob(z, t) - sde.prior_log_prob(z)
    assert float(ratio.mean()) <= float(gaps.mean()) + 4 * float(ratio.std()) / math.sqrt(20_000)
