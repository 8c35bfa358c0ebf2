"""The formulas of the time grids."""

import pytest
import torch

from sde_diffusion.errors import InputError
from sde_diffusion.grids import KarrasGrid, LogSNRGrid, QuadraticGrid, UniformGrid
from sde_diffusion.sde import SDE, VESDE, VPSDE
from tests.conftest import f64


def test_uniform() -> None:
    expected = f64([1.0, 0.775, 0.55, 0.325, 0.1])
    torch.testing.assert_close(UniformGrid()(VPSDE(), 1.0, 0.1, 4), expected, rtol=1e-10, atol=0)


def test_quadratic() -> None:
    expected = f64([1.0, 0.7, 0.4, 0.1]) ** 2
    torch.testing.assert_close(QuadraticGrid()(VPSDE(), 1.0, 0.01, 3), expected, rtol=1e-10, atol=0)


def test_log_snr_has_equal_steps_in_half_log_snr(sde: SDE) -> None:
    steps = sde.half_log_snr(LogSNRGrid()(sde, 1.0, 1e-3, 50)).diff()
    torch.testing.assert_close(steps, steps.mean().expand(50), rtol=1e-9, atol=0)


@pytest.mark.parametrize("rho", [1.0, 3.0, 7.0])
def test_karras_has_equal_steps_in_a_root_of_the_noise_ratio(sde: SDE, rho: float) -> None:
    times = KarrasGrid(rho=rho)(sde, 1.0, 1e-3, 50)
    steps = ((sde.std(times) / sde.mean_coef(times)) ** (1 / rho)).diff()
    torch.testing.assert_close(steps, steps.mean().expand(50), rtol=1e-9, atol=0)


@pytest.mark.parametrize(("count", "low", "high", "rho"), [(18, 0.002, 80.0, 7.0), (10, 0.02, 20.0, 5.0)])
def test_karras_of_ve_is_the_published_list(count: int, low: float, high: float, rho: float) -> None:
    """σ_i = (σ_max^{1/ρ} + i/(n − 1) (σ_min^{1/ρ} − σ_max^{1/ρ}))^ρ, Karras et al. 2022, eq. 5."""
    sde = VESDE(sigma_min=low / 2, sigma_max=high)
    t_end = float(sde.time_at(-f64(low).log()))
    sigmas = [
        (high ** (1 / rho) + i / (count - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho for i in range(count)
    ]
    torch.testing.assert_close(sde.std(KarrasGrid(rho=rho)(sde, 1.0, t_end, count - 1)), f64(sigmas), rtol=1e-9, atol=0)


def test_a_rho_that_leaves_all_steps_to_one_end(sde: SDE) -> None:
    """(std/a)^1000 spans more than floating-point numbers can tell apart."""
    with pytest.raises(InputError, match=r"of KarrasGrid\(rho=0.001\) from t = 1.0 to 1e-05 goes from"):
        KarrasGrid(rho=1e-3)(sde, 1.0, 1e-5, 10)


@pytest.mark.parametrize("rho", [0.0, -1.0, float("nan")])
def test_rho_must_be_positive(rho: float) -> None:
    with pytest.raises(InputError, match=f"`rho` must be > 0, got {rho}"):
        KarrasGrid(rho=rho)
