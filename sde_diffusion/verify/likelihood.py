"""Likelihoods against closed forms: the solve, the trace estimators, the units, dequantisation and intervals."""

import math
from collections.abc import Iterator
from dataclasses import fields, replace
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from sde_diffusion.data import DataSpec
from sde_diffusion.likelihood import (
    DEQUANTISATIONS,
    DIVERGENCES,
    BinFlow,
    Dequantisation,
    Divergence,
    ExactTrace,
    GaussianReference,
    Likelihood,
    log_likelihood,
    mean_interval,
    probe_half_width,
)
from sde_diffusion.likelihood.audit.bounds import chain_bound, continuous_bound
from sde_diffusion.likelihood.audit.learned_noise import PART
from sde_diffusion.likelihood.audit.targets import Points
from sde_diffusion.sde import SDE
from sde_diffusion.sde.chain import DiscreteChain
from sde_diffusion.solvers import AdaptiveODE, PerSampleODE
from sde_diffusion.verify import bounds
from sde_diffusion.verify.check import STANDARD_ERRORS, Check, Measured, Setting, mean_off, worst
from sde_diffusion.verify.problems import MEAN, STD, gaussian, mixture, processes, solvers, variants

SPECS = {
    "256 levels": DataSpec("", (3, 2), 256),
    "2 levels": DataSpec("", (5,), 2),
    "65536 levels": DataSpec("", (4,), 65536),
    "continuous": DataSpec("", (3,), None, shift=5.0, scale=4.0),
}
Options = TypeVar("Options")


def checks(setting: Setting) -> Iterator[Check]:
    """All checks of this area."""
    few = processes(betas=False)
    divergences = {key + label: d for key, cls in DIVERGENCES.items() for label, d in variants(cls).items()}
    for name, sde in processes().items():
        for key, ode in solvers().items():
            if isinstance(ode, AdaptiveODE) and name in few:
                measure = partial(_mixture, setting, sde, _to(setting, ode))
                yield Check("log-density of the mixture", f"{name} {key}", measure)
        for key, divergence in divergences.items():
            case, args = f"{name} {key}", (setting, sde, divergence)
            yield Check("log-density of a correlated Gaussian", case, partial(_correlated, *args))
            if name in few:
                yield Check("sample i in any batch", case, partial(_batch, *args))
                yield Check("evaluations are counted", case, partial(_evaluations, *args))
        yield Check("prior gap", name, partial(_prior_gap, setting, sde))
        yield Check("variational bound, in closed form", name, partial(_bound_of_gaussian, setting, sde))
        yield Check("discrete chain's bound, in closed form", name, partial(_bound_of_chain, setting, sde))
    for label, spec in SPECS.items():
        yield Check("bits/dim of a known density", label, partial(_bits, setting, spec))
        yield Check("data units to model coordinates and back", label, partial(_units, setting, spec))
        for key, cls in DEQUANTISATIONS.items():
            if spec.levels is not None:
                for variant, dequantisation in variants(cls).items():
                    measure = partial(_dequantisation, setting, spec, dequantisation)
                    yield Check("dequantisation stays in its bin, with its density", f"{label} {key}{variant}", measure)
    yield Check("intervals cover", "95 % of 2000 means", partial(_coverage, setting))
    yield Check("interval of the probes", "closed form", partial(_probe_interval, setting))
    yield from bounds.checks(setting)
    yield Check("Gaussian reference against torch.distributions", "4 dimensions", partial(_reference, setting))


def _to(setting: Setting, options: Options) -> Options:
    """An adaptive solver at the tightest tolerance that float32 rounding leaves to it, 1e-6 in float64."""
    tight = max(1e-6, 100 * setting.eps)
    return replace(options, **{f.name: tight for f in fields(options) if f.name in ("rtol", "atol")})  # type: ignore


def _bound(setting: Setting, result: Likelihood, ode: AdaptiveODE) -> float:
    """n steps, each with an error of D atol + rtol |Δ| or less, where n is at most the number of evaluations."""
    size = result.z[0].numel() + float(result.delta.abs().max())
    return result.nfe * size * (ode.rtol + 8 * setting.eps)


def _mixture(setting: Setting, sde: SDE, ode: AdaptiveODE) -> Measured:
    """Closed with the oracle's own p_T, which leaves the error of the solve."""
    oracle = mixture(setting, sde, (1, 3))
    x = oracle.sample(4, setting.tensor(sde.t_min), generator=setting.generator(2))
    ends = setting.tensor(sde.t_min), setting.tensor(sde.t_max)
    result = log_likelihood(
        oracle.score,
        sde,
        x,
        divergence=ExactTrace(),
        ode=ode,
        prior_log_prob=lambda z: oracle.log_prob(z, ends[1]),
    )
    return Measured(worst(result.log_prob, oracle.log_prob(x, ends[0]).double()), _bound(setting, result, ode))


def _correlated(setting: Setting, sde: SDE, divergence: Divergence) -> Measured:
    """N(0, C): Δ along v is vᵀ M v + D ∫f with M = U diag(½ log(v_T/v_0) − ∫f) Uᵀ, v = a² c + std², C = U c Uᵀ.

    So tr M is the exact Δ, and the estimates have the variance 2 (‖M‖² − Σ M_ii²) for random signs, 2 ‖M‖² for normal
    directions. With a diagonal M random signs are exact.
    """
    half, dims = setting.normal(4, 4).double(), 4
    c, basis = torch.linalg.eigh(half @ half.T / dims + 0.1 * torch.eye(dims).to(half))
    probes, count = (1, 3) if divergence.exact else (2, 300)
    if not divergence.exact:
        divergence = replace(divergence, probes=probes)  # type: ignore[call-arg]
    t = torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64, device=setting.device)
    spreads = sde.mean_coef(t)[:, None] ** 2 * c + sde.std(t)[:, None] ** 2
    fall = (sde.log_mean_coef(t)[1] - sde.log_mean_coef(t)[0]).item()
    matrix = basis @ torch.diag(0.5 * (spreads[1] / spreads[0]).log() - fall) @ basis.T
    exact = dims * fall + float(matrix.trace())

    def score(x: Tensor, t: Tensor) -> Tensor:
        v = sde.mean_coef(t)[:, None] ** 2 * c.to(x) + sde.std(t)[:, None] ** 2
        pulled: Tensor = -((x @ basis.to(x)) / v) @ basis.to(x).T
        return pulled

    ode = _to(setting, PerSampleODE(rtol=1e-5, atol=1e-5)) if divergence.exact else PerSampleODE(rtol=1e-4, atol=1e-4)
    x = setting.normal(count, dims, seed=2)
    result = log_likelihood(score, sde, x, divergence=divergence, ode=ode, seed=3)
    off, rounding = worst(result.delta.mean(), exact), _bound(setting, result, ode)
    flow = (x.double() @ basis) * (spreads[1] / spreads[0]).sqrt() @ basis.T
    moved = max(0.0, worst(result.z, flow, scale=1 + flow.abs()) / rounding)
    if divergence.exact:
        return Measured(max(off / rounding, moved), 1.0)
    variance = 2 * float((matrix**2).sum())
    if getattr(divergence, "distribution", "") == "rademacher":
        variance -= 2 * float((matrix.diagonal() ** 2).sum())
    estimates = result.delta.flatten().double()
    mean, spread = mean_off(estimates, exact), mean_off((estimates - exact) ** 2, variance)
    error = mean_off(result.standard_error.double() ** 2, variance / probes)
    shares = [(off - rounding) / bound for off, bound in (mean, spread, error)]
    return Measured(max(*shares, moved), 1.0)


def _batch(setting: Setting, sde: SDE, divergence: Divergence) -> Measured:
    """Sample 71 of 70 … 72, with its own random directions, and alone."""
    oracle, ode = mixture(setting, sde, (2,)), PerSampleODE(rtol=1e-4, atol=1e-4)
    x = oracle.sample(3, setting.tensor(sde.t_min), generator=setting.generator(2))
    whole = log_likelihood(oracle.score, sde, x, divergence=divergence, ode=ode, seed=4, start=70)
    alone = log_likelihood(oracle.score, sde, x[1:2], divergence=divergence, ode=ode, seed=4, start=71)
    return Measured(worst(whole.per_probe[1:2], alone.per_probe.double()), 1e5 * setting.eps)


def _evaluations(setting: Setting, sde: SDE, divergence: Divergence) -> Measured:
    oracle, calls = mixture(setting, sde, (2,)), []

    def score(x: Tensor, t: Tensor) -> Tensor:
        calls.append(len(t) - len(x))
        return oracle.score(x, t)

    x, ode = setting.normal(3, 2), PerSampleODE(rtol=1e-2, atol=1e-2)
    result = log_likelihood(score, sde, x, divergence=divergence, ode=ode)
    return Measured(float(abs(result.nfe - len(calls)) + sum(map(abs, calls))), 0.0)


def _prior_gap(setting: Setting, sde: SDE) -> Measured:
    """Without a density of its own at t_max, log p is closed with N(0, prior_std² I)."""
    oracle = gaussian(setting, sde, 2)
    x = setting.normal(3, 2)
    result = log_likelihood(oracle.score, sde, x, divergence=ExactTrace(), ode=PerSampleODE(rtol=1e-3, atol=1e-3))
    z = result.z.double()
    prior = -0.5 * (z**2).sum(1) / sde.prior_std**2 - 2 * math.log(sde.prior_std * math.sqrt(2 * math.pi))
    return Measured(worst(result.log_prob, prior + result.delta[:, 0].double()), 64 * setting.eps)


def _bound_of_gaussian(setting: Setting, sde: SDE) -> Measured:
    """E[L_prior + L_diffusion] of the right score is I(x_0; x_s) + KL(p_T ‖ prior), known for N(m, s² I).

    And with a score of zero, whose error of ε is 1, L_diffusion alone is D (λ(t_min) − λ(t_max)).
    """
    dims, oracle = 3, gaussian(setting, sde, 3)
    t = torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64)
    a, std, x0 = sde.mean_coef(t), sde.std(t), oracle.sample(4000, generator=setting.generator(2))
    spread = (a * STD) ** 2 + std**2
    information = 0.5 * dims * float((spread[0] / std[0] ** 2).log())
    ratio = float(spread[1]) / sde.prior_std**2
    gap = 0.5 * dims * (ratio - 1 - math.log(ratio) + (float(a[1]) * MEAN / sde.prior_std) ** 2)
    right = continuous_bound(oracle.score, sde, Points(x0), draws=2, seed=1)
    zero = continuous_bound(lambda x, t: torch.zeros_like(x), sde, Points(x0), seed=2)
    if right.nfe != 3:
        raise AssertionError(f"2 draws and a reconstruction counted {right.nfe} evaluations")
    half_log_snr = sde.half_log_snr(t)
    measured = (
        mean_off(right.prior + right.diffusion, information + gap),
        mean_off(zero.diffusion, dims * float(half_log_snr[0] - half_log_snr[1])),
    )
    return Measured(max(error / bound for error, bound in measured), 1.0)


def _bound_of_chain(setting: Setting, sde: SDE) -> Measured:
    """With a score of zero, Σ L_{k−1} = ½ D Σ (SNR_{k−1}/SNR_k − 1), each level or some drawn in proportion."""
    times = torch.linspace(0.01, sde.t_max, 20, dtype=torch.float64)
    chain, x0, log_snr = DiscreteChain.from_sde(sde, times), setting.normal(2000, 3), 2 * sde.half_log_snr(times)
    exact = 1.5 * float(torch.expm1(log_snr[:-1] - log_snr[1:]).sum())
    measured = []
    for draws in (None, 2):
        found = chain_bound(lambda x, t: torch.zeros_like(x), chain, Points(x0), prior_std=sde.prior_std, draws=draws)
        measured.append(mean_off(found.diffusion, exact))
    return Measured(max(error / bound for error, bound in measured), 1.0)


def _bits(setting: Setting, spec: DataSpec) -> Measured:
    """Uniform over the range of discrete data: log₂ L. y ~ N(5, 3²): −log₂ of its own density at a point."""
    if spec.levels is not None:
        log_prob, exact = setting.tensor([-spec.dims * math.log(2.0)]), math.log2(spec.levels)
    else:
        y = setting.tensor([[6.0, 2.0, 9.0]])
        own = torch.distributions.Normal(5.0, 3.0)
        x = spec.to_model(y).to(y)
        in_model = torch.distributions.Normal(spec.to_model(torch.full_like(y, 5.0)).to(y), 3.0 / spec.unit)
        log_prob = in_model.log_prob(x).sum(1)  # type: ignore[no-untyped-call]
        exact = -float(own.log_prob(y).mean()) / math.log(2)  # type: ignore[no-untyped-call]
    return Measured(worst(spec.bits_per_dim(log_prob), exact), 64 * setting.eps + 1e-6 * (spec.levels is None))


def _units(setting: Setting, spec: DataSpec) -> Measured:
    """Every level, at the edge and in the middle of its bin; the range is [−1, 1]; values beyond are clipped."""
    if spec.levels is None:
        y = 4 * setting.normal(10, 3) + 5
        return Measured(worst(spec.from_model(spec.to_model(y)), y.double(), scale=1 + y.abs().double()), 1e-6)
    levels = torch.arange(spec.levels, device=setting.device)[:, None]
    off = 0.0
    for u in (None, 0.0, 0.75):
        inside = 0.5 if u is None else u
        x = spec.to_model(levels, None if u is None else torch.full_like(levels, u, dtype=torch.float32))
        off += float((spec.from_model(x).long() != levels).sum())
        off += worst(x, (levels.double() + inside) / spec.levels * 2 - 1)
    clipped = spec.from_model(torch.tensor([[-1.5], [1.5]])).flatten().tolist() != [0, spec.levels - 1]
    return Measured(off + clipped, 1e-6)


def _dequantisation(setting: Setting, spec: DataSpec, dequantisation: Dequantisation) -> Measured:
    """E_q[1/q] is the volume of the bin; in one dimension, for noise as wide as a bin."""
    spec, sde, levels = replace(spec, shape=(1,)), next(iter(processes().values())), spec.levels
    assert levels is not None
    sde = replace(sde, t_min=float(sde.time_at(torch.tensor(levels).double().log())))
    values = torch.full((2000, 1), levels // 2, device=setting.device)
    x, log_q = dequantisation.bind({PART: _rough_flow(setting, spec)}).draw(spec, sde, values, seed=1, draws=2)
    centre = (2 * (levels // 2) + 1) / levels - 1
    outside = float(((x - centre).abs() > 1 / levels + 2**-23).sum())  # x is float32
    error, bound = mean_off((-log_q).exp().mean(0) * levels / 2, 1.0)
    return Measured(error + outside, bound + 1e-9)


def _rough_flow(setting: Setting, spec: DataSpec) -> BinFlow:
    """A flow of random weights: an untrained one is uniform noise."""
    flow = BinFlow(spec, width=4).to(setting.device)
    for i, parameter in enumerate(flow.parameters()):
        parameter.data = 0.3 * setting.normal(*parameter.shape, seed=i).to(parameter)
    return flow


def _coverage(setting: Setting) -> Measured:
    """Of 100 values each: the interval covers 95 %, with a standard error of 0.5 %."""
    rows = 3 + 2 * setting.normal(2000, 100)
    inside = [abs(mean - 3) <= half_width for mean, half_width in map(mean_interval, rows)]
    share = sum(inside) / len(inside)
    return Measured(abs(share - 0.95), STANDARD_ERRORS * math.sqrt(0.95 * 0.05 / 2000))


def _probe_interval(setting: Setting) -> Measured:
    """z √(Σ e²)/n with z = 1.959964, and the standard error of a mean of three probes."""
    off = abs(probe_half_width(setting.tensor([3.0, 4.0]), 0.95) - 1.9599639845 * 5 / 2)
    delta = setting.tensor([[1.0, 2.0, 6.0]])
    result = Likelihood(prior=delta[:, 0], delta=delta, z=delta, nfe=1, exact=False)
    off += worst(result.standard_error, math.sqrt(7 / 3)) + worst(result.log_prob, 4.0)
    return Measured(off, 1e-9 + 64 * setting.eps)


def _reference(setting: Setting) -> Measured:
    x = setting.normal(50, 4) @ setting.normal(4, 4, seed=2) + 1
    rows = x.double()
    normal = torch.distributions.MultivariateNormal(rows.mean(0), torch.cov(rows.T, correction=0))
    exact = normal.log_prob(rows)  # type: ignore[no-untyped-call]
    return Measured(worst(GaussianReference.fit(x).log_prob(x), exact), 1e-8)
