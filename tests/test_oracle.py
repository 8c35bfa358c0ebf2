"""The oracle against hand formulas, autograd, quadrature and its own samples.

Algebra in float64 is held to 1e-10; random quantities to 4 standard errors.
"""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from sde_diffusion.errors import InputError
from sde_diffusion.oracle import GaussianMixture
from sde_diffusion.rng import generator
from sde_diffusion.score import reverse_drift
from sde_diffusion.sde import SDE, VPSDE
from tests.conftest import assert_mean, f64

ALGEBRA = {"rtol": 1e-10, "atol": 1e-10}


def mixture(sde: SDE, shape: tuple[int, ...] = (2,)) -> GaussianMixture:
    """Three components of different weight and width."""
    means = torch.randn(3, *shape, generator=generator(1), dtype=torch.float64)
    return GaussianMixture(sde, f64([0.2, 0.5, 0.3]), means, f64([0.3, 0.6, 0.2]))


def points(count: int, shape: tuple[int, ...] = (2,)) -> Tensor:
    return torch.randn(count, *shape, generator=generator(2), dtype=torch.float64)


def slope(f: Tensor, x: Tensor) -> Tensor:
    return torch.autograd.grad(f.sum(), x)[0]


def test_score_of_one_gaussian_by_hand(sde: SDE) -> None:
    mean, x, t = f64([0.5, -0.3]), points(5), f64(0.4)
    a, std = sde.mean_coef(t), sde.std(t)
    expected = (a * mean - x) / (a**2 * 0.7**2 + std**2)
    torch.testing.assert_close(GaussianMixture.gaussian(sde, mean, 0.7).score(x, t), expected, **ALGEBRA)


@pytest.mark.parametrize("t", [None, 1e-5, 0.3, 1.0])
def test_log_prob_is_that_of_torch_distributions(sde: SDE, t: float | None) -> None:
    oracle, x = mixture(sde), points(5)
    a, std = (1.0, 0.0) if t is None else (sde.mean_coef(f64(t)), sde.std(f64(t)))
    variances = (a * oracle.stds) ** 2 + std**2
    parts = Independent(Normal(a * oracle.means, variances.sqrt()[:, None].expand(3, 2)), 1)
    expected = MixtureSameFamily(Categorical(oracle.weights), parts).log_prob(x)
    torch.testing.assert_close(oracle.log_prob(x, None if t is None else f64(t)), expected, **ALGEBRA)


@pytest.mark.parametrize("shape", [(1,), (2,), (2, 3, 4)])
@pytest.mark.parametrize("per_sample", [False, True])
def test_score_is_the_gradient_of_log_prob(sde: SDE, shape: tuple[int, ...], per_sample: bool) -> None:
    oracle, x = mixture(sde, shape), points(4, shape).requires_grad_()
    t = torch.linspace(1e-3, 1, 4, dtype=torch.float64) if per_sample else f64(0.2)
    torch.testing.assert_close(oracle.score(x, t), slope(oracle.log_prob(x, t), x), **ALGEBRA)


def test_a_time_for_each_sample_is_that_sample_alone(sde: SDE) -> None:
    oracle, x, t = mixture(sde), points(4), f64([1e-4, 0.1, 0.5, 1.0])
    alone = torch.cat([oracle.score(x[i : i + 1], t[i]) for i in range(4)])
    torch.testing.assert_close(oracle.score(x, t), alone, **ALGEBRA)


def test_marginal_is_the_convolution_in_1d(sde: SDE) -> None:
    """p_t(x) = ∫ p(x_0) N(x; a x_0, std²) dx_0 by the trapezoidal rule, which is exact to rounding for Gaussians."""
    oracle, x, t = mixture(sde, (1,)), points(5, (1,)), f64(0.3)
    x0 = torch.linspace(-8, 8, 4001, dtype=torch.float64)[:, None]
    kernel = Normal(sde.mean_coef(t) * x0[:, 0], sde.std(t)).log_prob(x)
    density = torch.trapezoid((oracle.log_prob(x0) + kernel).exp(), x0[:, 0])
    torch.testing.assert_close(oracle.log_prob(x, t), density.log(), **ALGEBRA)


def test_mass_and_mean_score_by_quadrature_in_2d(sde: SDE) -> None:
    """∫ p = 1, ∫ p s = 0 and Stein's ∫ p s xᵀ = −I."""
    oracle, t = mixture(sde), f64(0.4)
    reach = 10 * float(torch.sqrt(sde.mean_coef(t) ** 2 + sde.std(t) ** 2))
    axis = torch.linspace(-reach, reach, 401, dtype=torch.float64)
    x = torch.cartesian_prod(axis, axis)
    mass = oracle.log_prob(x, t).exp() * (axis[1] - axis[0]) ** 2
    score = oracle.score(x, t)
    torch.testing.assert_close(mass.sum(), f64(1.0), **ALGEBRA)
    torch.testing.assert_close(mass @ score, torch.zeros(2, dtype=torch.float64), **ALGEBRA)
    torch.testing.assert_close((mass[:, None] * score).T @ x, -torch.eye(2, dtype=torch.float64), **ALGEBRA)


@pytest.mark.parametrize("t", [None, 0.3])
def test_sample_moments(sde: SDE, t: float | None) -> None:
    oracle = mixture(sde)
    x = oracle.sample(20_000, None if t is None else f64(t), generator=generator(3))
    a, std = (1.0, 0.0) if t is None else (float(sde.mean_coef(f64(t))), float(sde.std(f64(t))))
    weights, means, variances = oracle.weights, a * oracle.means, (a * oracle.stds) ** 2 + std**2
    for i in range(2):
        mean = float(weights @ means[:, i])
        assert_mean(x[:, i], mean, f"mean {i}")
        assert_mean((x[:, i] - mean) ** 2, float(weights @ (variances + (means[:, i] - mean) ** 2)), f"variance {i}")
    cross = (x[:, 0] * x[:, 1]).mean()
    assert_mean(x[:, 0] * x[:, 1], float(weights @ (means[:, 0] * means[:, 1])), f"cross moment {cross}")


def test_samples_are_keyed_by_the_generator() -> None:
    oracle = mixture(VPSDE())
    first, again = (oracle.sample(4, f64(0.5), generator=generator(5)) for _ in range(2))
    assert torch.equal(first, again)
    assert first.shape == (4, 2)


def test_dtype_of_x_is_kept_and_float32_is_float64_rounded(sde: SDE) -> None:
    oracle, x, t = mixture(sde, (3, 2)), points(4, (3, 2)).float(), torch.full((4,), 0.3)
    for value, exact in (
        (oracle.score(x, t), oracle.score(x.double(), t.double())),
        (oracle.log_prob(x, t), oracle.log_prob(x.double(), t.double())),
    ):
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), exact, rtol=2**-23, atol=0)


def test_many_narrow_components_in_784_dimensions() -> None:
    """Rounding of the expanded square, ≤ 4 D ulp for |x|, |μ| ≤ 1.5, divided by 2v = 2e-4: 4e-9 nats."""
    means = torch.rand(500, 784, generator=generator(6), dtype=torch.float64) * 2 - 1
    oracle = GaussianMixture(VPSDE(), torch.ones(500), means, torch.full((500,), 0.01, dtype=torch.float64))
    x = means[:4] + 0.01 * points(4, (784,))
    exact = torch.stack([-((row - means) ** 2).sum(1) / (2 * 0.01**2) for row in x]).logsumexp(1)
    exact -= math.log(500) + 392 * math.log(2 * math.pi * 0.01**2)
    torch.testing.assert_close(oracle.log_prob(x), exact, rtol=0, atol=4 * 784 * 2**-52 * 1.5**2 / 2e-4)


def test_far_points_and_tiny_weights_stay_finite() -> None:
    oracle = GaussianMixture(VPSDE(), f64([1e-300, 1.0]), f64([[-1.0], [1.0]]), f64([1e-3, 1e-3]))
    x, t = f64([[-1.0], [1e3], [-1e3]]), f64(1e-5)
    assert oracle.score(x, t).isfinite().all()
    assert oracle.log_prob(x, t).isfinite().all()


def test_point_masses_have_a_score_but_no_density_of_the_data() -> None:
    oracle = GaussianMixture(VPSDE(), f64([1, 3]), f64([[-1.0], [1.0]]), f64([0, 0]))
    t = f64(1e-5)
    expected = (oracle.sde.mean_coef(t) - 0.99) / oracle.sde.std(t) ** 2
    torch.testing.assert_close(oracle.score(f64([[0.99]]), t)[0, 0], expected, **ALGEBRA)
    with pytest.raises(InputError, match="`stds` must be > 0 for the density of the data"):
        oracle.log_prob(f64([[1.0]]))


def test_weights_are_relative() -> None:
    halves, wholes = (
        GaussianMixture(VPSDE(), f64(w), f64([[-1.0], [1.0]]), f64([0.5, 0.5])) for w in ([0.5, 0.5], [7.0, 7.0])
    )
    torch.testing.assert_close(halves.log_prob(points(3, (1,))), wholes.log_prob(points(3, (1,))), **ALGEBRA)


def test_flow_follows_the_drift_of_the_ode(sde: SDE) -> None:
    """d/dt' flow(x, t, t') at t' = t is the drift with η = 0."""
    oracle, x, t = GaussianMixture.gaussian(sde, f64([0.5, -0.3]), 0.4), points(1), f64(0.3)
    speed = torch.autograd.functional.jacobian(lambda t_next: oracle.flow(x, t, t_next)[0], t)
    torch.testing.assert_close(speed, reverse_drift(sde, oracle.score(x, t), x, t, eta=0.0)[0], **ALGEBRA)


def test_flow_composes_inverts_and_carries_the_density(sde: SDE) -> None:
    oracle, x = GaussianMixture.gaussian(sde, f64([0.5, -0.3]), 0.4), points(3).requires_grad_()
    t, middle, t_next = f64(0.01), f64([0.2, 0.3, 0.9]), f64(0.6)
    there = oracle.flow(x, t, t_next)
    torch.testing.assert_close(oracle.flow(oracle.flow(x, t, middle), middle, t_next), there, **ALGEBRA)
    torch.testing.assert_close(oracle.flow(there, t_next, t), x, **ALGEBRA)
    log_det = 2 * slope(there[:, 0], x)[:, 0].log()
    torch.testing.assert_close(oracle.log_prob(there, t_next) + log_det, oracle.log_prob(x, t), **ALGEBRA)


def test_errors() -> None:
    sde, means, ones = VPSDE(), f64([[0.0], [1.0]]), f64([1.0, 1.0])
    with pytest.raises(InputError, match=r"`weights` must have one entry for each of 2 `means`, got shape \(1,\)"):
        GaussianMixture(sde, f64([1.0]), means, ones)
    with pytest.raises(InputError, match=r"`stds` must have one entry for each of 2 `means`, got shape \(\)"):
        GaussianMixture(sde, ones, means, f64(1.0))
    with pytest.raises(InputError, match="`weights` must be > 0, got 0"):
        GaussianMixture(sde, f64([0.0, 1.0]), means, ones)
    with pytest.raises(InputError, match="`stds` must be ≥ 0, got -1"):
        GaussianMixture(sde, ones, means, f64([-1.0, 1.0]))
    with pytest.raises(InputError, match="`flow` is exact for a single Gaussian only, got 2 components"):
        GaussianMixture(sde, ones, means, ones).flow(means, f64(0.1), f64(0.2))
    with pytest.raises(InputError, match=r"`x` must be a batch of shape \(B, \*\(1,\)\), got \(3, 2\)"):
        GaussianMixture(sde, ones, means, ones).score(torch.zeros(3, 2), f64(0.1))
