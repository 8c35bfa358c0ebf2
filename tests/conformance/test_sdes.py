"""What every process must satisfy: the formulas agree with each other, in every shape and precision."""

import math
from decimal import Decimal, getcontext

import pytest
import torch
from torch import Tensor

from sde_diffusion.errors import InputError
from sde_diffusion.sde import (
    BETA_SEQUENCES,
    BETAS,
    DDPM,
    SDE,
    SDES,
    VPSDE,
    BetaSchedule,
    BetaSequence,
    LinearBeta,
    LinearBetas,
    SubVPSDE,
)
from tests.conftest import f64

TIMES = f64([1e-5, 1e-4, 1e-3, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 1.0])
COEFFICIENTS = ["log_mean_coef", "mean_coef", "std", "drift_coef", "diffusion", "half_log_snr"]


def derivative(value: Tensor, t: Tensor) -> Tensor:
    return torch.autograd.grad(value.sum(), t)[0] if value.requires_grad else torch.zeros_like(t)


def test_drift_and_diffusion_are_those_of_the_marginals(sde: SDE) -> None:
    t = TIMES.clone().requires_grad_()
    drift = derivative(sde.log_mean_coef(t), t)
    squared_diffusion = derivative(sde.std(t) ** 2, t) - 2 * drift * sde.std(t) ** 2
    torch.testing.assert_close(sde.drift_coef(t), drift, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(sde.diffusion(t) ** 2, squared_diffusion, rtol=1e-9, atol=1e-12)


def test_half_log_snr_falls_strictly(sde: SDE) -> None:
    t = torch.linspace(sde.t_min, sde.t_max, 10_001, dtype=torch.float64)
    half_log_snr = sde.half_log_snr(t)
    torch.testing.assert_close(half_log_snr, (sde.mean_coef(t) / sde.std(t)).log(), rtol=1e-10, atol=1e-12)
    assert (half_log_snr.diff() < 0).all()


def test_time_at_inverts_half_log_snr(sde: SDE) -> None:
    torch.testing.assert_close(sde.time_at(sde.half_log_snr(TIMES)), TIMES, rtol=1e-10, atol=0)
    beyond = torch.stack([sde.half_log_snr(TIMES[:1]) + 1e3, sde.half_log_snr(TIMES[-1:]) - 1e3])
    torch.testing.assert_close(sde.time_at(beyond).flatten(), f64([0.0, 1.0]), rtol=0, atol=1e-12)


def test_float32_is_exact_down_to_t_min(sde: SDE) -> None:
    """Float32 input error 6e-8 in t, amplified by at most |d log c / d log t| < 25 here, plus a few roundings."""
    t = TIMES.clamp(min=sde.t_min).float()
    for name in COEFFICIENTS:
        exact = getattr(sde, name)(t.double())
        value = getattr(sde, name)(t)
        assert value.dtype == torch.float32, name
        torch.testing.assert_close(value.double(), exact, rtol=4e-6, atol=1e-6 if "log" in name else 0, msg=name)


@pytest.mark.parametrize("t_shape", [(), (3,)])
@pytest.mark.parametrize("event", [(5,), (2, 4, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_and_dtypes(sde: SDE, t_shape: tuple[int, ...], event: tuple[int, ...], dtype: torch.dtype) -> None:
    t = torch.full(t_shape, 0.3, dtype=dtype)
    x, eps = torch.ones(3, *event, dtype=dtype), torch.full((3, *event), 2.0, dtype=dtype)
    for name in COEFFICIENTS:
        assert getattr(sde, name)(t).shape == t.shape
        assert getattr(sde, name)(t).dtype == dtype
    x_t = sde.perturb(x, t, eps)
    assert x_t.shape == x.shape
    assert x_t.dtype == dtype
    a, std = (float(c) for c in (sde.mean_coef(f64(0.3)), sde.std(f64(0.3))))
    torch.testing.assert_close(x_t, torch.full_like(x, a + 2 * std), rtol=1e-5, atol=0)
    torch.testing.assert_close(sde.drift(x, t), float(sde.drift_coef(f64(0.3))) * x, rtol=1e-5, atol=0)
    assert sde.prior_log_prob(x).shape == (3,)


def test_a_float64_time_on_the_cpu_does_not_upcast_the_state(sde: SDE) -> None:
    x = torch.ones(2, 3)
    assert sde.perturb(x, f64(0.5), x).dtype == torch.float32
    assert sde.perturb(x, f64([0.5, 0.6]), x).dtype == torch.float32


def test_prior_is_a_normal_density(sde: SDE) -> None:
    z = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
    normal = torch.distributions.Normal(torch.zeros(1, dtype=torch.float64), sde.prior_std)
    torch.testing.assert_close(sde.prior_log_prob(z), normal.log_prob(z).sum((1, 2)), rtol=1e-10, atol=1e-10)
    assert sde.prior_std == pytest.approx(float(sde.std(f64(1.0))), rel=1e-4)


def test_is_a_value(sde: SDE) -> None:
    assert {sde: 1}[type(sde)(**vars(sde))] == 1
    assert type(sde).__name__ in repr(sde)


def test_closed_forms_in_fifty_digits() -> None:
    getcontext().prec = 50
    low = Decimal(LinearBeta().min)  # the number that float64 has for 0.1
    for t in TIMES:
        u = Decimal(float(t))
        integral = u * (low + u * (Decimal(20) - low) / 2)
        variance = 1 - (-integral).exp()
        assert float(VPSDE().std(t)) == pytest.approx(float(variance.sqrt()), rel=1e-14)
        assert float(SubVPSDE().std(t)) == pytest.approx(float(variance), rel=1e-14)


@pytest.mark.parametrize("steps", [2, 10, 300, 1000])
@pytest.mark.parametrize("beta", [cls() for cls in BETA_SEQUENCES.values()], ids=list(BETA_SEQUENCES))
def test_ddpm_has_the_levels_of_its_chain_and_is_smooth_between(beta: BetaSequence, steps: int) -> None:
    """ᾱ_k = ∏ (1 − β_i) at t = k/T, and β(t) > 0 is continuous across the levels and the derivative of B.

    In float32 the cubic may be that of the neighbour, 1000 · 2⁻²⁴ of a level too far: 1e-5 at the cosine's last ones.
    """
    sde = DDPM(steps=steps, beta=beta)
    assert (sde.levels, sde.t_min) == (steps, 1 / steps)
    times = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    alpha_bar = torch.cumprod(1 - beta(steps), 0)
    torch.testing.assert_close(sde.mean_coef(times) ** 2, alpha_bar, rtol=1e-10, atol=0)
    torch.testing.assert_close(sde.std(times) ** 2, 1 - alpha_bar, rtol=1e-10, atol=0)
    between = torch.linspace(0, 1, 20_001, dtype=torch.float64).requires_grad_()
    torch.testing.assert_close(sde.rate(between), derivative(sde.integral(between), between), rtol=1e-9, atol=0)
    assert (sde.rate(between) > 0).all()
    inner = times[:-1]
    torch.testing.assert_close(sde.rate(inner - 1e-12), sde.rate(inner + 1e-12), rtol=1e-6, atol=0)
    rough, exact = times.float(), times.float().double()
    for name in ("std", "diffusion"):
        torch.testing.assert_close(getattr(sde, name)(rough).double(), getattr(sde, name)(exact), rtol=1e-5, atol=0)


def test_ddpm_tends_to_vp_between_its_levels() -> None:
    """T β_k → β(t): the gap to the linear β of 0.1 … 20 halves with twice the steps, between levels as at them."""
    gaps = []
    for scale in (1, 2):
        sde = DDPM(steps=1000 * scale, beta=LinearBetas(first=1e-4 / scale, last=0.02 / scale))
        t = torch.linspace(0.01, 1, 7919, dtype=torch.float64)
        gaps.append(float((sde.rate(t) / VPSDE().beta.rate(t) - 1).abs().max()))
    assert gaps[0] < 0.04  # at t = 0.01 half a level is 3 % of β
    assert gaps[0] / gaps[1] == pytest.approx(2, rel=0.05)


@pytest.mark.parametrize("beta", [cls() for cls in BETAS.values()], ids=list(BETAS))
def test_beta_is_the_derivative_of_its_integral(beta: BetaSchedule) -> None:
    t = torch.cat([f64([0.0]), TIMES]).requires_grad_()
    assert float(beta.integral(t)[0].detach()) == 0
    torch.testing.assert_close(beta.rate(t), derivative(beta.integral(t), t), rtol=1e-9, atol=0)


def test_cosine_beta_is_the_published_curve() -> None:
    t = f64([0.0, 0.1, 0.5, 0.9, 0.99])
    phase = (t + 0.008) / 1.008 * math.pi / 2
    expected = torch.cos(phase) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    torch.testing.assert_close(torch.exp(-BETAS["cosine"]().integral(t)), expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VPSDE(t_min=0.0), r"`t_min` must be in \(0, 1.0\), got 0.0"),
        (lambda: VPSDE(t_min=1.5), "`t_min` must be in"),
        (lambda: LinearBeta(min=-1.0), "`min` must be > 0, got -1.0"),
        (lambda: LinearBeta(min=2.0, max=1.0), "`max` must be ≥ `min` = 2.0, got 1.0"),
        (lambda: BETAS["cosine"](max=0.01), r"`max` must be > β\(0\)"),
        (lambda: BETAS["cosine"](offset=-0.1), "`offset` must be ≥ 0, got -0.1"),
        (lambda: DDPM(steps=1), "`steps` of a chain must be ≥ 2, got 1"),
        (lambda: DDPM(t_min=-0.1), "`t_min` must be in"),
        (lambda: DDPM(t_max=1.5), "`t_max` of a chain must be ≤ 1, the time of its last level, got 1.5"),
        (lambda: LinearBetas(last=1.0), "`last` must be < 1, for β is the share of the variance made new, got 1.0"),
        (lambda: BETA_SEQUENCES["quadratic"](first=0.0), "`first` must be > 0, got 0.0"),
        (lambda: BETA_SEQUENCES["sigmoid"](first=0.1), "`last` must be ≥ `first` = 0.1, got 0.02"),
        (lambda: BETA_SEQUENCES["cosine"](cap=1.0), r"`cap` must be in \(0.0, 1\), for β is the share .*, got 1.0"),
        (lambda: BETA_SEQUENCES["cosine"](floor=-1.0), "`floor` must be ≥ 0, got -1.0"),
        (lambda: BETA_SEQUENCES["cosine"](offset=-1.0), "`offset` must be ≥ 0, got -1.0"),
        (lambda: LinearBetas()(0), "`steps` must be > 0, got 0"),
        (lambda: SDES["ve"](sigma_min=2.0, sigma_max=1.0), "`sigma_max` must be > `sigma_min` = 2.0"),
    ],
)
def test_bad_values(make: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()  # type: ignore[operator]


@pytest.mark.parametrize("t_max", [0.5, 1.0])
def test_the_prior_of_ve_has_the_standard_deviation_of_its_end(t_max: float) -> None:
    sde = SDES["ve"](t_max=t_max)
    assert sde.prior_std == pytest.approx(float(sde.std(f64(t_max))), rel=1e-12)
