"""Losses: every time sampler estimates the same integral, whose minimum is the right score."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from sde_diffusion.losses import (
    DISTANCES,
    TIME_SAMPLERS,
    WEIGHTINGS,
    EDMWeighting,
    LogNormalTime,
    SecondMomentTime,
    SimpleWeighting,
    TimeSampler,
    Weighting,
    denoising_error,
    dsm_loss,
)
from sde_diffusion.losses.time_sampling import cell_edges
from sde_diffusion.sde import SDE
from sde_diffusion.verify import objectives
from sde_diffusion.verify.check import STANDARD_ERRORS, Check, Measured, NotShown, Setting, mean_off, relative, worst
from sde_diffusion.verify.problems import STD, gaussian, processes, variants

DRAWS = 20_000
KOLMOGOROV = math.sqrt(-0.5 * math.log(0.5 * 6.8e-6))  # of √n D at the probability of 4.5 standard errors

EXPECTED = {
    "l2": 1.0,
    "l1": math.sqrt(2 / math.pi),
    "huber": 0.5 - math.erfc(math.sqrt(0.5)) + math.exp(-0.5) / math.sqrt(2 * math.pi),
}
"""E ρ(ε) of a standard normal ε, the loss of a score that is zero."""

FORMULAS: dict[str, Callable[[SDE, Tensor], Tensor]] = {
    "simple": lambda sde, t: sde.std(t) ** 2,
    "likelihood": lambda sde, t: sde.diffusion(t) ** 2,
    "min_snr": lambda sde, t: sde.std(t) ** 2 * _snr(sde, t).clamp(max=5) / _snr(sde, t),
    "soft_min_snr": lambda sde, t: sde.std(t) ** 2 * 4 / (4 + _snr(sde, t)),
    "truncated_snr": lambda sde, t: sde.std(t) ** 2 * (1 / _snr(sde, t)).clamp(min=1),
    "snr_plus_one": lambda sde, t: sde.std(t) ** 2 * (1 + 1 / _snr(sde, t)),
    "p2": lambda sde, t: sde.std(t) ** 2 / (1 + _snr(sde, t)),
    "edm": lambda sde, t: _edm(sde, t, -1.2, 1.2),
    "uncertainty": lambda sde, t: _edm(sde, t, -0.4, 1.0),
}
"""λ(t)."""

STEEP = ("simple", "likelihood")  # weightings that all time samplers are checked with


def _snr(sde: SDE, t: Tensor) -> Tensor:
    return (sde.mean_coef(t) / sde.std(t)) ** 2


def _edm(sde: SDE, t: Tensor, mean: float, std: float) -> Tensor:
    """λ of EDM, of t where ln(σ/a) is normal: σ² (1 + 4/SNR) times its density, cut to the times there are."""
    law = torch.distributions.Normal(torch.full_like(t[0], mean), torch.full_like(t[0], std))
    ends = torch.tensor([sde.t_min, sde.t_max], dtype=t.dtype, device=t.device)
    low, high = law.cdf(-sde.half_log_snr(ends))  # type: ignore[no-untyped-call]
    density: Tensor = law.log_prob(-sde.half_log_snr(t)).exp() / (high - low)  # type: ignore[no-untyped-call]
    return density * sde.diffusion(t) ** 2 / 2 * (1 + 4 / _snr(sde, t))


def checks(setting: Setting) -> Iterator[Check]:
    """All checks of this area."""
    samplers = {
        key + label: _wide(value) for key, cls in TIME_SAMPLERS.items() for label, value in variants(cls).items()
    }
    weightings = {key: cls() for key, cls in WEIGHTINGS.items()}
    for key in DISTANCES:
        yield Check("E ρ(ε) of a zero score", key, partial(_distance, setting, key))
    plain = processes(betas=False)
    yield from objectives.checks(setting)
    for name, sde in processes().items():
        wide = sde if sde.levels else replace(sde, t_min=1e-3)  # λ/std² ~ 1/t: by uniform draws a variance ~ 1/t_min
        yield Check("a draw of log_normal weighs as EDM's", name, partial(_edm_draw, setting, sde))
        for label, weighting in weightings.items():
            yield Check("λ(t) and λ/std²", f"{name} {label}", partial(_weighting, setting, sde, label, weighting))
            for key, sampler in samplers.items():
                if name not in plain and key != "importance":  # which alone reads more of the process than its ends
                    continue
                late = sde if sampler.on_levels(sde) else replace(sde, t_min=0.1)
                case, args = f"{name} {label} {key}", (setting, wide, weighting, sampler)
                if label in STEEP or key == "importance":  # the others do not ask for the weight
                    measure = partial(_density, setting, sde, weighting, sampler)
                    yield Check("draws follow their density r(t)", case, measure)
                    measure = partial(_quantiles, setting, late, weighting, sampler)
                    yield Check("draws are the quantiles of r(t)", case, measure)
                if label in STEEP:
                    yield Check("E_r[1/r] is the length of time", case, partial(_length, *args))
                    yield Check("the right score is stationary", case, partial(_stationary, *args))
                for factor in (0.0, 0.7, 1.0):
                    # a weight that grows with the noise needs draws there, but for the right score, right there
                    if label in STEEP or key == ("uniform" if factor == 1 else "importance"):
                        measure = partial(_integral, *args, factor)
                        yield Check("the loss is its integral", f"{case} ×{factor:g}", measure)
        for key, sampler in samplers.items():
            if isinstance(sampler, SecondMomentTime) and name in plain:
                yield Check("what a time sampler learns", f"{name} {key}", partial(_history, setting, sde, sampler))


def _wide(sampler: TimeSampler) -> TimeSampler:
    """A law of noise levels far wider than any process: a narrow one draws some times too seldom to be checked."""
    return replace(sampler, p_mean=0.0, p_std=3.0) if isinstance(sampler, LogNormalTime) else sampler


def _learnt(setting: Setting, sde: SDE, sampler: TimeSampler) -> TimeSampler:
    """The time sampler after losses that grow with t and differ by factors."""
    _levels(sde, sampler)
    state = sampler.initial_state(sde)
    if state is None:
        return sampler
    t, _ = sampler(sde, SimpleWeighting(), 40 * len(state), generator=setting.generator(3))
    loss = torch.exp(3 * t + setting.normal(len(t), seed=4).to(t))
    return sampler.at(sampler.updated(sde, state.to(t.device), t, loss=loss))


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
    normal = expected.clamp(min=torch.finfo(setting.dtype).tiny)  # below it digits are lost, and nobody asks for λ
    off = max(worst(weighting(sde, t), expected, scale=normal), relative(weighting.of_eps(sde, t), of_eps))
    return Measured(off + float((expected <= 0).any()), 128 * setting.eps)


def _edm_draw(setting: Setting, sde: SDE) -> Measured:
    """λ/(std² r) of the weighting `edm` where `log_normal` draws is 1 + 4/SNR, EDM's weight for data of width ½."""
    u = torch.rand(DRAWS, generator=setting.generator(1), device=setting.device, dtype=torch.float64)
    t, density = LogNormalTime().draw(sde, SimpleWeighting(), u)
    expected = density * (1 + 4 / _snr(sde, t))
    return Measured(relative(EDMWeighting().of_eps(sde, t), expected), 1e-10)


def _history(setting: Setting, sde: SDE, sampler: SecondMomentTime) -> Measured:
    """The densities after 30 batches, against lists of the last losses of each level."""
    state, levels = sampler.initial_state(sde).to(setting.device), _levels(sde, sampler)
    count = len(state)
    last: list[list[float]] = [[] for _ in range(count)]

    def place(t: Tensor) -> Tensor:
        if levels:
            return (t.double() * count).round().long() - 1
        return ((t.double() - sde.t_min) / (sde.t_max - sde.t_min) * count).long().clamp(max=count - 1)

    for k in range(30):
        t, _ = sampler(sde, SimpleWeighting(), count, generator=setting.generator(k))
        loss = setting.normal(count, seed=k).abs()
        state = sampler.updated(sde, state, t, loss=loss)
        for level, value in zip(place(t).tolist(), loss.tolist(), strict=True):
            last[level] = [*last[level], value][-sampler.history :]
    moment = torch.tensor([math.hypot(*losses) for losses in last], dtype=torch.float64, device=setting.device)
    share = (1 - sampler.uniform) * moment / moment.sum() + sampler.uniform / count
    share = share if min(map(len, last)) == sampler.history else torch.full_like(share, 1 / count)
    u = torch.rand(DRAWS, generator=setting.generator(1), device=setting.device, dtype=torch.float64)
    t, density = sampler.at(state).draw(sde, SimpleWeighting(), u)
    length = 1.0 if levels else sde.t_max - sde.t_min
    return Measured(relative(density, share[place(t)] * count / length), 1e-10)


def _levels(sde: SDE, sampler: TimeSampler) -> int | None:
    """T, if the levels k/T are what is drawn."""
    if sampler.on_levels(sde) and sde.levels is None:
        raise NotShown("it draws the levels of a chain, and this process has none")
    return sde.levels if sampler.on_levels(sde) else None


def _density(setting: Setting, sde: SDE, weighting: Weighting, sampler: TimeSampler) -> Measured:
    """∫ r up to the i-th smallest draw, by the trapezoidal rule, is i/n: Kolmogorov and Smirnov's test."""
    sampler = _learnt(setting, sde, sampler)
    t, density = sampler(sde, weighting, DRAWS, generator=setting.generator(1))
    outside = float((t < torch.tensor(sde.t_min)).sum() + (t > sde.t_max).sum())
    return Measured(_distance_of_cdf(sde, sampler, t, density) + outside, KOLMOGOROV / math.sqrt(DRAWS))


def _quantiles(setting: Setting, sde: SDE, weighting: Weighting, sampler: TimeSampler) -> Measured:
    """The same of 100 000 draws at equally spaced u: they leave an error of one draw, and so does each jump of r.

    In a jump by a factor f it is (f − 1)/2 draws: one for each bin of a sampler that learns, and in a table what the
    weight changes from cell to cell.
    """
    count, state, sampler = 100_000, sampler.initial_state(sde), _learnt(setting, sde, sampler)
    change = weighting.of_eps(sde, cell_edges(sde)).log().diff().abs()
    jumps = 0.5 * float(torch.expm1(change[change > 0.1]).sum()) if state is None else len(state)
    u = (torch.arange(count, dtype=torch.float64, device=setting.device) + 0.5) / count
    return Measured(_distance_of_cdf(sde, sampler, *sampler.draw(sde, weighting, u)), (4 + jumps) / count)


def _distance_of_cdf(sde: SDE, sampler: TimeSampler, t: Tensor, density: Tensor) -> float:
    levels = _levels(sde, sampler)
    if levels:
        level = (t.double().cpu() * levels).round().long() - 1
        share = torch.bincount(level, minlength=levels).double() / len(t)
        told = torch.zeros_like(share).index_put((level,), density.cpu().to(share) / levels)
        return float((told.cumsum(0) - share.cumsum(0)).abs().max())
    rank = t.argsort()
    cdf = torch.cumulative_trapezoid(density[rank].double(), t[rank].double()).cpu()
    return float((cdf - torch.arange(1, len(t), dtype=torch.float64) / len(t)).abs().max())


def _length(setting: Setting, sde: SDE, weighting: Weighting, sampler: TimeSampler) -> Measured:
    sampler = _learnt(setting, sde, sampler)
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
    """∫ λ/std² E|e|²/D dt with E|e|²/D = (1 − κc)² + κ² c (1 − c), c = std²/(a² s² + std²), for κ times the score."""
    sampler = _learnt(setting, sde, sampler)
    levels = _levels(sde, sampler)
    t = torch.arange(1, 1 + levels, dtype=torch.float64) / levels if levels else _nodes(sde)
    c = sde.std(t) ** 2 / (sde.mean_coef(t) ** 2 * STD**2 + sde.std(t) ** 2)
    error = (1 - factor * c) ** 2 + factor**2 * c * (1 - c)
    integrand = weighting.of_eps(sde, t) * error
    exact = float(integrand.mean() if levels else torch.trapezoid(integrand, t))
    return mean_off(_loss(setting, sde, weighting, sampler, factor), exact)


def _nodes(sde: SDE) -> Tensor:
    """20 000 times from t_min to t_max, ever denser towards both: weights have poles at either end."""
    early = torch.logspace(math.log10(sde.t_min), math.log10(sde.t_max), 10_000, dtype=torch.float64)
    late = sde.t_max - torch.logspace(-7, math.log10(sde.t_max - sde.t_min), 10_000, dtype=torch.float64)
    return torch.cat([early, late]).clamp(sde.t_min, sde.t_max).sort().values


def _stationary(setting: Setting, sde: SDE, weighting: Weighting, sampler: TimeSampler) -> Measured:
    """The slope in the factor and in a shift, exact for a quadratic, in units of 4.5 standard errors."""
    sampler = _learnt(setting, sde, sampler)

    def slope(factor: float, step: float, shift: float) -> Measured:
        up, down = (
            _loss(setting, sde, weighting, sampler, factor + sign * step, sign * shift).double() for sign in (1, -1)
        )
        return mean_off((up - down) / 2, 0.0)

    off = max(error / bound for error, bound in (slope(1.0, 1.0, 0.0), slope(1.0, 0.0, 1.0)))
    error, bound = slope(0.5, 1.0, 0.0)
    if error < 1.5 * bound:
        raise AssertionError(f"half the right score is stationary too, to {error / bound * STANDARD_ERRORS:.1f} errors")
    return Measured(off, 1.0)
