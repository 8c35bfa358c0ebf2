"""The full-covariance Gaussian that every model must beat."""

import math

import pytest
import torch
from sklearn.datasets import load_digits
from torch.distributions import MultivariateNormal

from sde_diffusion.errors import InputError
from sde_diffusion.likelihood import GaussianReference, mean_interval
from sde_diffusion.rng import generator


def test_log_prob_is_that_of_torch_distributions() -> None:
    x = torch.randn(50, 2, 3, generator=generator(1), dtype=torch.float64)
    reference = GaussianReference.fit(x)
    rows = x.flatten(1)
    expected = MultivariateNormal(rows.mean(0), torch.cov(rows.T, correction=0)).log_prob(rows)
    torch.testing.assert_close(reference.log_prob(x), expected, rtol=1e-10, atol=1e-10)
    assert reference.log_prob(x.float()).dtype == torch.float64


def test_bits_per_dim_of_the_digits() -> None:
    """2.955 ± 0.040 on the 297 held-out digits, 17 levels in [−1, 1]; another dequantisation moves it by about 1e-3."""
    levels = torch.tensor(load_digits().data)
    noise = torch.rand(levels.shape, generator=generator(2), dtype=torch.float64)
    x = 2 * (levels + noise) / 17 - 1
    log_prob = GaussianReference.fit(x[:1500]).log_prob(x[1500:])
    mean, half_width = mean_interval(-log_prob / (64 * math.log(2)) + math.log2(17 / 2))
    assert abs(mean - 2.955) < 0.004
    assert abs(half_width - 0.040) < 0.003


@pytest.mark.parametrize("count", [4, 100])
def test_a_singular_covariance_gets_a_ridge(count: int) -> None:
    """Fewer samples than dimensions, or a constant column; directions with variance keep theirs."""
    x = torch.randn(count, 6, generator=generator(3), dtype=torch.float64)
    x[:, 0] = 0.5
    reference = GaussianReference.fit(x)
    assert reference.log_prob(x).isfinite().all()
    covariance = reference.cholesky @ reference.cholesky.T
    torch.testing.assert_close(covariance, torch.cov(x.T, correction=0), rtol=1e-8, atol=1e-8)


def test_errors() -> None:
    with pytest.raises(InputError, match=r"`x` must hold at least two samples \(N, \*D\), got shape \(1, 3\)"):
        GaussianReference.fit(torch.zeros(1, 3))
    with pytest.raises(InputError, match="`x` must be finite and vary"):
        GaussianReference.fit(torch.zeros(5, 3))
    with pytest.raises(InputError, match="`x` must be finite and vary"):
        GaussianReference.fit(torch.full((5, 3), math.nan))
