"""The formulas of the time grids."""

import math

import pytest
import torch

from sde_diffusion.errors import InputError
from sde_diffusion.grids import KarrasGrid, LevelsGrid, LogSNRGrid, QuadraticGrid, UniformGrid
from sde_diffusion.sde import DDPM, SDE, VESDE, VPSDE
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


@pytest.mark.parametrize("spacing", ["even", "quadratic"])
@pytest.mark.parametrize("steps", [2, 7, 300])
def test_levels_are_levels_and_as_many_as_asked_for(spacing: str, steps: int) -> None:
    sde = DDPM(steps=steps)
    for count in range(1, steps):
        levels = LevelsGrid(spacing=spacing)(sde, sde.t_max, sde.t_min, count) * steps
        torch.testing.assert_close(levels, levels.round(), rtol=1e-10, atol=0)
        assert len(levels.unique()) == count + 1
    assert levels.round().tolist() == list(range(steps, 0, -1))


def test_published_spacings() -> None:
    """iDDPM's 25 of 1000; DDIM's leading and trailing tenths, which end or start at another level; its quadratic."""
    sde, even = DDPM(), LevelsGrid()
    expected = [round(1 + i * 999 / 24) for i in range(25)][::-1]
    assert (even(sde, 1.0, 0.001, 24) * 1000).round().tolist() == expected
    assert (even(sde, 0.901, 0.001, 9) * 1000).round().tolist() == list(range(901, 0, -100))
    assert (even(sde, 1.0, 0.1, 9) * 1000).round().tolist() == list(range(1000, 0, -100))
    roots = LevelsGrid(spacing="quadratic")(sde, 1.0, 0.001, 10).sqrt()
    torch.testing.assert_close(roots, torch.linspace(1, math.sqrt(1e-3), 11).double(), rtol=0, atol=0.5e-3 / 0.06)


def test_more_steps_than_levels() -> None:
    with pytest.raises(InputError, match="of the grid `levels` must be ≤ 9, the steps from level 10 to 1, got 10"):
        LevelsGrid()(DDPM(steps=10), 1.0, 0.1, 10)
    assert len(LevelsGrid()(DDPM(steps=10), 0.55, 0.1, 4)) == 5  # from between two levels
