"""Losses: every time sampler estimates the same integral, whose minimum is the right score."""

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from sde_diffusion.losses import DISTANCES, TIME_SAMPLERS, WEIGHTINGS, TimeSampler, Weighting, denoising_error, dsm_loss
from sde_diffusion.sde import SDE
from sde_diffusion.verify.check import STANDARD_ERRORS, Check, Measured, NotShown, Setting, mean_off, relative
from sde_diffusion.verify.problems import STD, gaussian, processes, variants

DRAWS = 20_000
KOLMOGOROV = math.sqrt(-0.5 * math.log(0.5 * 6.8e-6))  # of √n D at the probability of 4.5 standard errors

EXPECTED = {
    "l2": 1.0,
    "l1": math.sqrt(2 / math.pi),
    "huber": 0.5 - math.erfc(math.sqrt(0.5)) + math.exp(-0.5) / math.sqrt(2 * math.pi),
}
"""E ρ(ε) of a standard normal ε, the loss of a score that is zero."""

FORMULAS = {"simple": lambda sde, t: sde.std(t) ** 2, "likelihood": lambda sde, t: sde.diffusion(t) ** 2}
"""λ(t)."""


def checks(setting: Setting) -> Iterator[Check]:
    """All checks of this area."""
    samplers = {key + label: value for key, cls in TIME_SAMPLERS.items() for label, value in variants(cls).items()}
    weightings = {key: cls() for key, cls in WEIGHTINGS.items()}
    for key in DISTANCES:
        yield Check("E ρ(ε) of a zero score", key, partial(_distance, setting, key))
    for name, sde in processes().items():
        wide = replace(sde, t_min=1e-3)  # by uniform draws λ/std² ~ 1/t has a variance of order 1/t_min
        for label, weighting in weightings.items():
            yield Check("λ(t) and λ/std²", f"{name} {label}", partial(_weighting, setting, sde, label, weighting))
            for key, sampler in samplers.items():
                case, args = f"{name} {label} {key}", (setting, wide, weighting, sampler)
                measure = partial(_density, setting, sde, weighting, sampler)
                yield Check("draws follow their density r(t)", case, measure)
                late = (setting, sde if sampler.on_levels(sde) else replace(sde, t_min=0.1), weighting, sampler)
                yield Check("draws are the quantiles of r(t)", case, partial(_quantiles, *late))
                yield Check("E_r[1/r] is the length of time", case, partial(_length, *args))
                for factor in (0.0, 0.7, 1.0):
                    yield Check("the loss is its integral", f"{case} ×{factor:g}", partial(_integral, *args, factor))
                yield Check("the right score is stationary", case, partial(_stationary, *args))


def _distance(setting: Setting, name: str) -> Measured:
    if name not in EXPECTED:
        raise NotShown("no closed form of this row is known here")
    sde, x0, eps = next(iter(processes().values())), setting.normal(DRAWS, 1), setting.normal(DRAWS, 1, seed=2)
    t = setting.tensor([0.5]).expand(DRAWS)
    return mean_off(denoising_error(lambda x, t: 0 * x, sde, x0, t, eps, distance=name), EXPECTED[name])


def _weighting(setting: Setting, sde: SDE, name: str, weighting: Weighting) -> Measured:
    t = setting.tensor([1e-5, 1e-4, 1e-2, 0.3, 0.7, 1.0])
    expected = FORMULAS.get(name, weighting)(sde, t.double())
    of_eps = expected / sde.std(t.double()) ** 2
    off = max(relative(weighting(sde, t), expected), relative(weighting.of_eps(sde, t), of_eps))
    return Measured(off + float((expected <= 0).any()), 128 * setting.eps)


def _density(setting: Setting, sde: SDE, weighting: Weighting, sampler: TimeSampler) -> Measured:
    """∫ r up to the i-th smallest draw, by the trapezoidal rule, is i/n: Kolmogorov and Smirnov's test.

    Of levels, the share of the draws up to each is the sum of r/T.
    """
    _require_levels(sde, sampler)
    t, density = sampler(sde, weighting, DRAWS, generator=setting.generator(1))
    outside = float((t < torch.tensor(sde.t_min)).sum() + (t > sde.t_max).sum())
    return Measured(_distance_of_cdf(t, density, _levels(sde, sampler)) + outside, KOLMOGOROV / math.sqrt(DRAWS))


def _quantiles(setting: Setting, sde: SDE, weighting: Weighting, sampler: TimeSampler) -> Measured:
    """The same of 100 000 draws at equally spaced u: they leave an error of one draw, and jumps of r half of one."""
    _require_levels(sde, sampler)
    count = 100_000
    u = (torch.arange(count, dtype=torch.float64, device=setting.device) + 0.5) / count
    return Measured(_distance_of_cdf(*sampler.draw(sde, weighting, u), _levels(sde, sampler)), 4 / count)


def _require_levels(sde: SDE, sampler: TimeSampler) -> None:
    if sampler.on_levels(sde) and sde.levels is None:
        raise NotShown("it draws the levels of a chain, and this process has none")


def _levels(sde: SDE, sampler: TimeSampler) -> int | None:
    """T, if the levels k/T are what is drawn."""
    return sde.levels if sampler.on_levels(sde) else None


def _distance_of_cdf(t: Tensor, density: Tensor, levels: int | None) -> float:
    rank = t.argsort()
    if levels is not None:
        level = t.double().mul(levels).round()
        count = torch.unique(level, return_counts=True)[1].cumsum(0)
        share = density[rank][count - 1].double().cumsum(0) / levels
        return float((share - count / len(t)).abs().max())
    cdf = torch.cumulative_trapezoid(density[rank].double(), t[rank].double()).cpu()
    return float((cdf - torch.arange(1, len(t), dtype=torch.float64) / len(t)).abs().max())


def _length(setting: Setting, sde: SDE, weighting: Weighting, sampler: TimeSampler) -> Measured:
    _require_levels(sde, sampler)
    _, density = sampler(sde, weighting, DRAWS, generator=setting.generator(1))
    error, bound = mean_off(1 / density, 1.0 if _levels(sde, sampler) else sde.t_max - sde.t_min)
    return Measured(error, max(bound, 1e-6))  # where r is constant each draw says so, in float32


def _loss(
    setting: Setting,
    sde: SDE,
    weighting: Weighting,
    sampler: TimeSampler,
    factor: float,
    shift: float = 0.0,
) -> Tensor:
    """Draws of the loss of `factor` times the right score, and of `shift`/std beside it."""
    oracle, rng = gaussian(setting, sde, 2), setting.generator(2)

    def score(x: Tensor, t: Tensor) -> Tensor:
        return factor * oracle.score(x, t) + shift / sde.std(t)[:, None]

    x0 = oracle.sample(DRAWS, generator=rng)
    return dsm_loss(score, sde, x0, weighting=weighting, time_sampler=sampler, generator=rng).loss


def _integral(setting: Setting, sde: SDE, weighting: Weighting, sampler: TimeSampler, factor: float) -> Measured:
    """∫ λ/std² E|e|²/D dt with E|e|²/D = (1 − κc)² + κ² c (1 − c), c = std²/(a² s² + std²), for κ times the score.

    Of levels, their mean.
    """
    _require_levels(sde, sampler)
    u = torch.linspace(math.log(sde.t_min), math.log(sde.t_max), 20_001, dtype=torch.float64)
    t, levels = u.exp(), _levels(sde, sampler)
    if levels is not None:
        t = torch.arange(1, levels + 1, dtype=torch.float64) / levels
    c = sde.std(t) ** 2 / (sde.mean_coef(t) ** 2 * STD**2 + sde.std(t) ** 2)
    error = (1 - factor * c) ** 2 + factor**2 * c * (1 - c)
    values = weighting.of_eps(sde, t) * error
    exact = float(torch.trapezoid(values * t, u) if levels is None else values.mean())
    return mean_off(_loss(setting, sde, weighting, sampler, factor), exact)


def _stationary(setting: Setting, sde: SDE, weighting: Weighting, sampler: TimeSampler) -> Measured:
    """The slope in the factor and in a shift, exact for a quadratic, in units of 4.5 standard errors."""
    _require_levels(sde, sampler)

    def slope(factor: float, step: float, shift: float) -> Measured:
        up, down = (
            _loss(setting, sde, weighting, sampler, factor + sign * step, sign * shift).double() for sign in (1, -1)
        )
        return mean_off((up - down) / 2, 0.0)

    off = max(error / bound for error, bound in (slope(1.0, 1.0, 0.0), slope(1.0, 0.0, 1.0)))
    error, bound = slope(0.5, 1.0, 0.0)
    if error < 2 * bound:
        raise AssertionError(f"half the right score is stationary too, to {error / bound * STANDARD_ERRORS:.1f} errors")
    return Measured(off, 1.0)
