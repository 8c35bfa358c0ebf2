"""The integrals that the multistep solvers share."""

import math

import pytest
import torch
from scipy.integrate import quad

from sde_diffusion.solvers.exponential import exact_slope, midpoint_slope, moments, weights
from tests.conftest import f64


@pytest.mark.parametrize("h", [1e-9, 1e-3, 0.3, 0.4999, 0.5001, 2.0, 12.0, -1e-6, -0.4, -3.0])
def test_moments(h: float) -> None:
    exact = [quad(lambda s, k=k: h * math.exp((s - 1) * h) * s**k, 0, 1, epsabs=0, epsrel=1e-13)[0] for k in range(4)]
    torch.testing.assert_close(moments(f64(h), 4), f64(exact), rtol=1e-10, atol=0)


def test_moments_of_a_step_to_no_noise() -> None:
    assert moments(f64(math.inf), 3).tolist() == [1, 1, 1]


@pytest.mark.parametrize("h", [0.05, 1.5, -0.7])
def test_weights_integrate_polynomials_exactly(h: float) -> None:
    nodes = f64([1.0, 0.0, -0.8, -2.1])
    for count in range(1, 5):
        powers = nodes[:count] ** torch.arange(count)[:, None]
        torch.testing.assert_close(powers @ weights(nodes[:count], f64(h)), moments(f64(h), count), rtol=1e-10, atol=0)


def test_a_slope_replaces_the_linear_weight_alone() -> None:
    h, nodes = f64(0.4), f64([0.0, -0.5])
    found = weights(nodes, h, midpoint_slope)
    torch.testing.assert_close(found.sum(), moments(h, 1)[0], rtol=1e-10, atol=0)
    torch.testing.assert_close(found @ nodes, midpoint_slope(h), rtol=1e-10, atol=0)
    three = f64([0.0, -0.5, -0.9])
    assert torch.equal(weights(three, h, midpoint_slope), weights(three, h, exact_slope))
