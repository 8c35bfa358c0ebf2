"""Single steps of the solvers, and the loop and process around them, in closed form."""

import math

import pytest
import torch
from torch import Tensor

from sde_diffusion.errors import InputError
from sde_diffusion.grids import LogSNRGrid
from sde_diffusion.oracle import GaussianMixture
from sde_diffusion.sampling import sample
from sde_diffusion.sde import SDE, VPSDE
from sde_diffusion.solvers import Ancestral, EulerMaruyama, ReverseProcess, SeededNoise
from tests.conftest import assert_mean, f64
from tests.solvers.reference import GivenNoise

ALGEBRA = {"rtol": 1e-10, "atol": 1e-12}
X, Z, POINT = f64([[0.3, -1.2], [2.0, 0.1]]), f64([[-0.4, 1.1], [0.6, -0.9]]), f64([0.5, -0.3])


def process(oracle: GaussianMixture) -> ReverseProcess:
    return ReverseProcess(oracle.sde, oracle.score, noise=GivenNoise([Z]))


@pytest.mark.parametrize(("t", "t_next"), [(1.0, 0.5), (0.5, 0.499), (1e-3, 1e-5)])
def test_ancestral_is_the_bridge_to_the_predicted_data(sde: SDE, t: float, t_next: float) -> None:
    """For data at one point x̂0 is that point: N(μ, τ²) with 1/τ² = 1/σ_s² + ρ²/v, the product of two Gaussians."""
    oracle = GaussianMixture.gaussian(sde, POINT, 0.0)
    a, a_next = sde.mean_coef(f64(t)), sde.mean_coef(f64(t_next))
    std, std_next = sde.std(f64(t)), sde.std(f64(t_next))
    rho = a / a_next
    added = std**2 - rho**2 * std_next**2
    precision = 1 / std_next**2 + rho**2 / added
    mean = (a_next * POINT / std_next**2 + rho * X / added) / precision
    x, _ = Ancestral().step(process(oracle), X, f64(t), f64(t_next), None)
    torch.testing.assert_close(x, mean + Z / precision.sqrt(), rtol=1e-8, atol=1e-10)  # `added` here cancels


def test_large_ancestral_steps_keep_a_standard_normal() -> None:
    """For N(0, I) under VP the large variance is exact: x ← ρ x + √(1 − ρ²) z, whatever the step."""
    sde = VPSDE()
    t, t_next = f64(0.9), f64(0.1)
    rho = sde.mean_coef(t) / sde.mean_coef(t_next)
    oracle = GaussianMixture.gaussian(sde, torch.zeros(2, dtype=torch.float64), 1.0)
    x, _ = Ancestral(variance="large").step(process(oracle), X, t, t_next, None)
    torch.testing.assert_close(x, rho * X + (1 - rho**2).sqrt() * Z, **ALGEBRA)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_euler_maruyama_by_hand(sde: SDE, eta: float) -> None:
    oracle = GaussianMixture.gaussian(sde, POINT, 0.6)
    t, h = f64(0.4), 0.1
    f, g = sde.drift_coef(t), sde.diffusion(t)
    drift = f * X - 0.5 * (1 + eta**2) * g**2 * oracle.score(X, t)
    x, _ = EulerMaruyama(eta=eta).step(process(oracle), X, t, f64(0.3), None)
    torch.testing.assert_close(x, X - h * drift + eta * g * math.sqrt(h) * Z, **ALGEBRA)


def test_the_process_gives_every_view_of_one_evaluation(sde: SDE) -> None:
    oracle, t = GaussianMixture.gaussian(sde, POINT, 0.6), f64(0.4)
    views, score = ReverseProcess(sde, oracle.score), oracle.score(X, t)
    torch.testing.assert_close(views.score(X, t), score, **ALGEBRA)
    torch.testing.assert_close(views.eps(X, t), -sde.std(t) * score, **ALGEBRA)
    torch.testing.assert_close(views.x0(X, t), (X + sde.std(t) ** 2 * score) / sde.mean_coef(t), **ALGEBRA)
    assert views.nfe == 3


def test_a_projected_process_follows_the_projection(sde: SDE) -> None:
    t = f64(0.4)
    pinned = ReverseProcess(sde, lambda x, t: -x, project=lambda x0: torch.zeros_like(x0) + POINT)
    expected = GaussianMixture.gaussian(sde, POINT, 0.0).score(X, t)
    torch.testing.assert_close(pinned.x0(X, t), POINT.expand(2, 2), rtol=0, atol=0)
    torch.testing.assert_close(pinned.score(X, t), expected, **ALGEBRA)
    torch.testing.assert_close(pinned.eps(X, t), -sde.std(t) * expected, **ALGEBRA)
    assert pinned.nfe == 3


def test_the_loop_follows_the_grid() -> None:
    sde, times, grid = VPSDE(), [], LogSNRGrid()
    solver = EulerMaruyama(steps=7, grid=grid, eta=0.0)
    solver.solve(ReverseProcess(sde, lambda x, t: -x, observer=lambda x, t: times.append(t)), X, 1.0, 0.1)
    assert times == grid(sde, 1.0, 0.1, 7).tolist()


def test_seeded_noise_is_standard_normal_and_new_at_each_draw() -> None:
    noise = SeededNoise(0, dtype=torch.float64)
    first = noise.prior((200, 3))
    second = noise(first, f64(1.0), f64(0.9))
    for z in (first, second):
        assert z.dtype == torch.float64
        assert_mean(z.flatten(), 0.0)
        assert_mean(z.flatten() ** 2, 1.0)
    assert_mean((first * second).flatten(), 0.0)


def test_seeded_noise_starts_again_with_the_prior() -> None:
    """A source may serve run after run: each begins at the prior's draw."""
    noise = SeededNoise(0)

    def draw() -> Tensor:
        return sample(lambda x, t: -x, VPSDE(), EulerMaruyama(steps=2), (3, 2), noise=noise).x

    assert torch.equal(draw(), draw())


@pytest.mark.parametrize("steps", [0, -1, math.nan])
def test_steps_must_be_positive(steps: float) -> None:
    for solver in (EulerMaruyama, Ancestral):
        with pytest.raises(InputError, match=f"`steps` must be > 0, got {steps}"):
            solver(steps=steps)


@pytest.mark.parametrize("eta", [-0.1, math.nan])
def test_eta_must_not_be_negative(eta: float) -> None:
    with pytest.raises(InputError, match=f"`eta` must be ≥ 0, got {eta}"):
        EulerMaruyama(eta=eta)
