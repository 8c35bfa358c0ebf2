"""Processes: f, g, a, std and λ agree with each other, in every precision."""

import math
from collections.abc import Iterator
from decimal import Decimal, localcontext
from functools import partial

import torch
from torch import Tensor

from sde_diffusion.sde import BETAS, SDE, SDES, BetaSchedule, BetaSequence
from sde_diffusion.verify.check import Check, Measured, NotShown, Setting, relative, worst
from sde_diffusion.verify.problems import processes

TIMES = [1e-5, 1e-4, 1e-3, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 1.0]
COEFFICIENTS = ("log_mean_coef", "mean_coef", "std", "drift_coef", "diffusion", "half_log_snr")
AMPLIFIED = 32  # an error of ε/2 in t grows by |d log c/d log t| < 25 in any coefficient c, and a few roundings join it


def checks(setting: Setting) -> Iterator[Check]:
    """All checks of this area."""
    for name, beta in BETAS.items():
        yield Check("β(t) is the derivative of its integral", name, partial(_rate, setting, beta()))
    for name, sde in processes().items():
        yield Check("f and g² against autograd of a and std", name, partial(_derivatives, setting, sde))
        yield Check("λ falls strictly", name, partial(_falls, setting, sde))
        yield Check("λ = log(a/std)", name, partial(_half_log_snr, setting, sde))
        yield Check("time_at inverts λ", name, partial(_inverse, setting, sde))
        for coefficient in COEFFICIENTS:
            yield Check(
                "coefficients in this dtype against float64",
                f"{name} {coefficient}",
                partial(_rounding, setting, sde, coefficient),
            )
        yield Check("levels are those of the chain", name, partial(_levels, sde))
        yield Check("prior against N(0, std(t_max)² I)", name, partial(_prior, setting, sde))
        yield Check("x_t = a x_0 + std ε", name, partial(_perturb, setting, sde))
    for name, cls in SDES.items():
        yield Check("std at t_min against 50 digits", name, partial(_digits, setting, name, cls()))


def _derivative(value: Tensor, t: Tensor) -> Tensor:
    return torch.autograd.grad(value.sum(), t)[0] if value.requires_grad else torch.zeros_like(t)


def _rate(setting: Setting, beta: BetaSchedule) -> Measured:
    t = setting.tensor([0.0, *TIMES]).requires_grad_()
    start = abs(float(beta.integral(t)[0].detach()))
    return Measured(relative(beta.rate(t).detach(), _derivative(beta.integral(t), t)) + start, 1e4 * setting.eps)


def _derivatives(setting: Setting, sde: SDE) -> Measured:
    t = setting.tensor(TIMES).requires_grad_()
    drift, variance = _derivative(sde.log_mean_coef(t), t), sde.std(t) ** 2
    g2 = _derivative(variance, t) - 2 * drift * variance
    with torch.no_grad():
        off = worst(sde.drift_coef(t), drift.double(), scale=drift.abs().clamp(min=1.0).double())
        off = max(off, relative(sde.diffusion(t) ** 2, g2))
    return Measured(off, 1e4 * setting.eps)


def _falls(setting: Setting, sde: SDE) -> Measured:
    t = torch.linspace(sde.t_min, sde.t_max, 1001, dtype=torch.float64)
    return Measured(float((sde.half_log_snr(setting.tensor(t)).diff() >= 0).sum()), 0.0)


def _half_log_snr(setting: Setting, sde: SDE) -> Measured:
    t = setting.tensor(TIMES)
    return Measured(worst(sde.half_log_snr(t), (sde.mean_coef(t) / sde.std(t)).log().double()), 32 * setting.eps)


def _inverse(setting: Setting, sde: SDE) -> Measured:
    t = setting.tensor(TIMES)
    found = sde.time_at(sde.half_log_snr(t)).double()
    slope = _slope(sde, t)  # an error ε|λ| in λ moves t by ε|λ|/|λ'|
    scale = t.double() + sde.half_log_snr(t).abs().double() / slope
    beyond = sde.time_at(setting.tensor([1e4, -1e4])) - setting.tensor([0.0, sde.t_max])
    return Measured(worst(found, t.double(), scale=scale) + float(beyond.abs().max()), AMPLIFIED * setting.eps)


def _slope(sde: SDE, t: Tensor) -> Tensor:
    t = t.double().requires_grad_()
    return _derivative(sde.half_log_snr(t), t).abs()


def _rounding(setting: Setting, sde: SDE, coefficient: str) -> Measured:
    t = setting.tensor([max(sde.t_min, t) for t in TIMES])
    found, exact = getattr(sde, coefficient)(t), getattr(sde, coefficient)(t.double())
    if found.dtype != setting.dtype:
        raise TypeError(f"{coefficient} of {setting.dtype} gave {found.dtype}")
    floor = 0.25 if "log" in coefficient else 1e-300  # a logarithm is right to an absolute error
    return Measured(worst(found, exact, scale=exact.abs().clamp(min=floor)), AMPLIFIED * setting.eps)


def _levels(sde: SDE) -> Measured:
    """ᾱ_k = ∏ (1 − β_i) at t = k/T."""
    rates = vars(sde).get("beta")
    if sde.levels is None or not isinstance(rates, BetaSequence):
        raise NotShown("the process has no levels")
    times = torch.arange(1, sde.levels + 1, dtype=torch.float64) / sde.levels
    exact = torch.cumprod(1 - rates(sde.levels), 0)
    off = relative(sde.mean_coef(times) ** 2, exact)
    return Measured(max(off, relative(sde.std(times) ** 2, 1 - exact)), 1e-10)


def _prior(setting: Setting, sde: SDE) -> Measured:
    z = 3 * sde.prior_std * setting.normal(4, 2, 3)
    normal = torch.distributions.Normal(setting.tensor(0.0), setting.tensor(sde.prior_std))
    exact = normal.log_prob(z).sum((1, 2))  # type: ignore[no-untyped-call]
    off = relative(sde.prior_log_prob(z), exact)
    gap = abs(sde.prior_std / float(sde.std(torch.tensor(sde.t_max, dtype=torch.float64))) - 1)
    return Measured(off + max(0.0, gap - 1e-3), 32 * setting.eps)  # 1e-3: what chains leave of the data at t_max


def _perturb(setting: Setting, sde: SDE) -> Measured:
    t, x0, eps = setting.tensor([0.2, 0.8]), setting.normal(2, 3, 2), setting.normal(2, 3, 2, seed=2)
    a, std = (coefficient(t.double())[:, None, None] for coefficient in (sde.mean_coef, sde.std))
    off = worst(sde.perturb(x0, t, eps), a * x0 + std * eps, scale=1 + std)
    return Measured(off + worst(sde.drift(x0, t), sde.drift_coef(t.double())[:, None, None] * x0), 256 * setting.eps)


def _digits(setting: Setting, name: str, sde: SDE) -> Measured:
    """`expm1` or not: 1 − e^{−B} in float32 is off by 0.6 % at t_min."""
    t = setting.tensor(sde.t_min)
    options = vars(sde)
    with localcontext() as context:
        context.prec = 50
        u = Decimal(float(t))
        if name == "ve":
            low, high = Decimal(options["sigma_min"]), Decimal(options["sigma_max"])
            exact = low * (high / low) ** u
        elif name in ("vp", "subvp"):
            low, high = Decimal(options["beta"].min), Decimal(options["beta"].max)
            variance = 1 - (-u * (low + u * (high - low) / 2)).exp()
            exact = variance.sqrt() if name == "vp" else variance
        else:
            raise NotShown("no closed form of this row is known here")
    found = float(sde.std(t))
    return Measured(math.fabs(found / float(exact) - 1), 8 * setting.eps)
