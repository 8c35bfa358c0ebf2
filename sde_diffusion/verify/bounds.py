"""What stands around the flow's likelihood: decoders, bounds, its two ends, units, and means to a tolerance."""

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from sde_diffusion.data import DataSpec
from sde_diffusion.likelihood import ExactTrace, LedgerOptions, Levels, Points, UniformDequantisation
from sde_diffusion.likelihood.audit.bounds import chain_bound, importance_weighted
from sde_diffusion.likelihood.audit.ledger import ledger_entries
from sde_diffusion.likelihood.audit.tolerance import LADDER, Outcome
from sde_diffusion.likelihood.audit.truncation import prior_gap, truncation_error
from sde_diffusion.likelihood.audit.variance import Cells, Split, nested_split
from sde_diffusion.likelihood.scoring import code_length
from sde_diffusion.likelihood.summary import Interval, t_quantile
from sde_diffusion.oracle import GaussianMixture
from sde_diffusion.sde import SDE
from sde_diffusion.sde.chain import DiscreteChain, Variance
from sde_diffusion.solvers import PerSampleODE
from sde_diffusion.verify.check import Check, Measured, Setting, mean_off, worst
from sde_diffusion.verify.problems import MEAN, STD, KnownVariance, gaussian, processes

ROUNDING = 1e-10  # of a few sums in float64, which all of this is computed in
IMAGES, NOISE, PROBES = 1.0, 0.5, 2.0  # variance components


def checks(setting: Setting) -> Iterator[Check]:
    """The checks of this part of the area `likelihood`."""
    for decoder in ("gaussian", "softmax"):
        for std in (0.05, 0.4):
            measure = partial(_decoder, setting, decoder, std)
            yield Check("decoder of discrete data, by hand, over all levels", f"{decoder} of width {std}", measure)
    yield Check("importance-weighted bound, by hand", "exact and by probes", partial(_weighted, setting))
    for name, sde in processes(betas=False).items():
        for variance in ("small", "large"):
            measure = partial(_chain_terms, setting, sde, variance)
            yield Check("discrete chain's terms against KL divergences", f"{name} {variance}", measure)
        yield Check("the right learned variance loses nothing", name, partial(_learned_chain, setting, sde))
        yield Check("discrete chain's steps by Bayes' rule", name, partial(_posterior, sde))
        yield Check("discrete chain's two ends", name, partial(_chain_ends, setting, sde))
        yield Check("what the noise at t_min changes, to first order", name, partial(_truncation, setting, sde))
        yield Check("KL of the prior against torch.distributions", name, partial(_prior_kl, setting, sde))
        yield Check("the ledger's rows in bits of a known density", name, partial(_ledger, setting, sde))
        yield Check("the ledger's rows start at their noise", name, partial(_starts, setting, sde))
    for levels in (2, 256):
        yield Check("code length of uniform data", f"{levels} levels", partial(_code_length, setting, levels))
    for label, population in (("a part", 20), ("all", 14)):
        measure = partial(_components, population)
        yield Check("variance components of a mean, without bias", f"{label} of the images", measure)
    yield Check("half-width of a mean to a tolerance", "statistics and ODE", _half_width)


def _decoder(setting: Setting, decoder: str, std: float) -> Measured:
    """By Φ or a softmax of the definition, where the outer bins are open; probabilities of all levels sum to 1."""
    levels, spec = 8, DataSpec("", (1,), 8)
    mean = torch.linspace(-1.4, 1.4, 15, dtype=torch.float64, device=setting.device)[:, None]
    width = torch.tensor(std, dtype=torch.float64, device=setting.device)
    rows = [
        Levels(spec, torch.full((15, 1), n, device=setting.device), decoder).log_prob(mean, width)  # type: ignore[arg-type]
        for n in range(levels)
    ]
    found = torch.stack(rows, 1).exp()
    edges = torch.linspace(-1, 1, levels + 1, dtype=torch.float64, device=setting.device)
    if decoder == "softmax":
        exact = (-0.5 * ((mean - (edges[1:] + edges[:-1]) / 2) / std) ** 2).softmax(1)
    else:
        below: Tensor = torch.special.ndtr((edges - mean) / std)
        below[:, 0], below[:, -1] = 0, 1
        exact = below.diff(dim=1)
    return Measured(worst(found, exact) + worst(found.sum(1), 1.0), ROUNDING)


def _weighted(setting: Setting) -> Measured:
    """log mean e^{ℓ − log q}; with probes, the weights of one by the other; equal draws give what one gives."""
    draws = 5
    ratios, log_q = setting.normal(draws, 7, 2).double(), setting.normal(draws, 7, seed=2).double()
    exact = importance_weighted(ratios[..., :1] + log_q[..., None], log_q, exact=True)
    off = worst(exact, ratios[..., 0].exp().mean(0).log())
    weights = (ratios.exp() / ratios.exp().sum(0)).flip(2)  # of the other probe
    by_probes = (weights * (ratios - (draws * weights).log())).sum(0).mean(1)
    off += worst(importance_weighted(ratios + log_q[..., None], log_q, exact=False), by_probes)
    same = ratios[:1].expand(draws, 7, 2)
    for alone in (True, False):
        values = same.mean(2, keepdim=True) if alone else same
        off += worst(importance_weighted(values, torch.zeros_like(log_q), exact=alone), same[0].mean(1))
    return Measured(off, ROUNDING)


def _levels(sde: SDE) -> tuple[DiscreteChain, Tensor, Tensor]:
    """A chain of 20 levels, with a and σ at each."""
    times = torch.linspace(0.05, sde.t_max, 20, dtype=torch.float64)
    return DiscreteChain.from_sde(sde, times), sde.mean_coef(times), sde.std(times)


def _chain_terms(setting: Setting, sde: SDE, variance: Variance) -> Measured:
    """With a score of zero x̂_0 = x_k/a_k: E KL of each step, whose Gaussians follow from Bayes' rule."""
    chain, a, std = _levels(sde)
    rho = a[1:] / a[:-1]
    added = std[1:] ** 2 - rho**2 * std[:-1] ** 2
    narrow = 1 / (1 / std[:-1] ** 2 + rho**2 / added)
    shift = narrow * a[:-1] / std[:-1] ** 2 * std[1:] / a[1:]  # of the mean, for ‖ε‖ = 1
    model = Normal(shift, (narrow if variance == "small" else added).sqrt())
    exact = 3 * float(kl_divergence(Normal(torch.zeros_like(shift), narrow.sqrt()), model).sum())
    x0 = setting.normal(1000, 3)
    found = chain_bound(lambda x, t: torch.zeros_like(x), chain, Points(x0), prior_std=sde.prior_std, variance=variance)
    return mean_off(found.diffusion, exact)


def _learned_chain(setting: Setting, sde: SDE) -> Measured:
    """Gaussian data and the exact variance of each step: Σ L is what x_1 tells of x_0 beyond x_N, ½ log V/σ² a dim."""
    chain, a, std = _levels(sde)
    oracle, dims = KnownVariance(sde, torch.tensor(chain.times)), 3
    x0 = MEAN + STD * setting.normal(1000, dims)
    found = chain_bound(oracle, chain, Points(x0), prior_std=sde.prior_std, variance="learned", decoder_std=1.0)
    told = 0.5 * torch.log1p((a * STD / std) ** 2)
    return mean_off(found.diffusion, dims * float(told[0] - told[-1]))


def _posterior(sde: SDE) -> Measured:
    """q(x_{k−1} | x_k, x_0) ∝ q(x_k | x_{k−1}) q(x_{k−1} | x_0), levels 2 … 20."""
    chain, a, std = _levels(sde)
    rho = a[1:] / a[:-1]
    added = std[1:] ** 2 - rho**2 * std[:-1] ** 2
    variance = 1 / (1 / std[:-1] ** 2 + rho**2 / added)
    exact = (added, variance * a[:-1] / std[:-1] ** 2, variance * rho / added, variance)
    off = (
        worst(found[1:], right, scale=right)
        for found, right in zip((chain.added, *chain.posterior), exact, strict=True)
    )
    return Measured(max(off), ROUNDING)


def _chain_ends(setting: Setting, sde: SDE) -> Measured:
    """The decoder around x_1/a_1, of its own and of a given width, and around a right x̂_0; the prior's KL."""
    (chain, a, std), dims = _levels(sde), 3
    x0, width, given = setting.normal(1000, dims), float(std[0] / a[0]), 0.2
    point = GaussianMixture.gaussian(sde, setting.tensor([MEAN]).expand(dims), 0.0)
    at_point = Points(point.means.expand(2, -1))

    def log_scale(width: float) -> float:
        return dims * math.log(width * math.sqrt(2 * math.pi))

    plain = chain_bound(lambda x, t: torch.zeros_like(x), chain, Points(x0), draws=1, denoise=False)
    wide = chain_bound(
        lambda x, t: torch.zeros_like(x), chain, Points(x0), draws=1, denoise=False, decoder_std=given, seed=1
    )
    right = chain_bound(point.score, chain, at_point, draws=1, decoder_std=given)
    measured = [
        mean_off(plain.reconstruction, log_scale(width) + 0.5 * dims),
        mean_off(wide.reconstruction, log_scale(given) + 0.5 * dims * (width / given) ** 2),
        Measured(worst(right.reconstruction, log_scale(given)), (1e3 * setting.eps / given) ** 2 + ROUNDING),
        Measured(worst(plain.prior, _kl(x0, a[-1], std[-1], 1.0), scale=1 + plain.prior.abs()), ROUNDING),
    ]
    return Measured(max(error / bound for error, bound in measured), 1.0)


def _kl(x0: Tensor, a: Tensor, std: Tensor, prior_std: float) -> Tensor:
    ones = torch.ones_like(x0.double())
    return kl_divergence(Normal(float(a) * x0.double(), float(std) * ones), Normal(0 * ones, prior_std * ones)).sum(1)


def _truncation(setting: Setting, sde: SDE) -> Measured:
    """log p_t − log p_0 of N(m, s²); what is left is (1 + z²)(σ²/s² + 1 − a)² with a factor of order one."""
    dims, oracle = 3, gaussian(setting, sde, 3)
    x = (MEAN + 0.8 * STD * setting.normal(20, dims).clamp(-3, 3)).to(setting.dtype)
    t = torch.tensor(sde.t_min, dtype=torch.float64)
    a, std = float(sde.mean_coef(t)), float(sde.std(t))
    one = torch.ones_like(x, dtype=torch.float64)
    noised, clean = Normal(a * MEAN * one, math.hypot(a * STD, std) * one), Normal(MEAN * one, STD * one)
    exact = (noised.log_prob(x.double()) - clean.log_prob(x.double())).sum(1)  # type: ignore[no-untyped-call]
    found = truncation_error(oracle.score, sde, x, divergence=ExactTrace())
    small = (std / STD) ** 2 + 1 - a
    left = 4 * (1 + ((x.double() - MEAN) / STD) ** 2).sum(1)
    return Measured(worst(found, exact, scale=left), small**2 + 64 * setting.eps * small + ROUNDING * 1e-4)


def _prior_kl(setting: Setting, sde: SDE) -> Measured:
    x0, t = setting.normal(20, 3), torch.tensor(sde.t_max, dtype=torch.float64)
    exact = _kl(x0, sde.mean_coef(t), sde.std(t), sde.prior_std)
    return Measured(worst(prior_gap(sde, x0), exact, scale=1 + exact), ROUNDING)


def _rows(setting: Setting, sde: SDE, spec: DataSpec, values: Tensor, times: dict[str, float]) -> dict[str, Tensor]:
    """Bits of each row for N(½, 0.6²) in model coordinates; in `times`, the first time that each looks at."""
    oracle, seen, found = gaussian(setting, sde, spec.dims), [], {}

    def score(x: Tensor, t: Tensor) -> Tensor:
        seen.append(float(t.min()))
        return oracle.score(x.to(setting.dtype), t.to(setting.dtype)).to(x)

    tight, options = max(1e-6, 100 * setting.eps), LedgerOptions(draws=8, importance_draws=2, chain_steps=(30,))
    ode = PerSampleODE(rtol=tight, atol=tight)
    for entry in ledger_entries(score, sde, spec, divergence=ExactTrace(), ode=ode, options=options, seed=1):
        seen.clear()
        found[entry.name] = entry.score(values, 0).bits.double()
        times[entry.name] = min(seen, default=math.nan)
    return found


def _ledger(setting: Setting, sde: SDE) -> Measured:
    """−log₂ p(y)/D of continuous data, (log₂ q − log₂ p)/D of levels; bounds are above, by little where tight."""
    off, dims, log2 = 0.0, 2, math.log(2)
    continuous, discrete = DataSpec("", (dims,), None, shift=1.0, scale=4.0), DataSpec("", (dims,), 8)
    oracle, t = gaussian(setting, sde, dims), setting.tensor(sde.t_min)
    slack = 0.05  # what the prior leaves far out at t_max: 3.5 standard deviations times ½ a/P, in bits
    x = oracle.sample(200, generator=setting.generator(2))
    rows = _rows(setting, sde, continuous, continuous.from_model(x), {})
    exact = -oracle.log_prob(x, t).double() / dims / log2 + math.log2(4.0)
    off = max(off, worst(rows["flow"], exact) / slack)
    error, bound = mean_off(rows["SDE bound"] - exact, 0.0)
    off = max(off, error / (bound + slack))
    values = discrete.from_model(x.clamp(-0.999, 0.999))
    rows = _rows(setting, sde, discrete, values, {})
    drawn = UniformDequantisation().draw(discrete, sde, values, seed=1)
    exact = (drawn.log_q[0] - oracle.log_prob(drawn.x[0].to(setting.dtype), t).double()) / dims / log2
    off = max(off, worst(rows["flow, uniform"], exact) / slack)
    for name, excess in (("SDE bound, decoder", 0.25), ("chain of 30", 1.0)):  # what decoder and steps cost
        gap = rows[name] - exact
        bound = mean_off(gap, 0.0).bound + slack
        off = max(off, float(-gap.mean()) / bound, float(gap.mean()) / (bound + excess))
    last = torch.tensor(sde.t_max, dtype=torch.float64)
    kl = _kl(discrete.to_model(values), sde.mean_coef(last), sde.std(last), sde.prior_std)
    return Measured(max(off, worst(rows["prior"], kl / dims / log2) / ROUNDING), 1.0)


def _starts(setting: Setting, sde: SDE) -> Measured:
    """σ/a at the first time of a row is its width in bins of 2/L, or what it is at t_min."""
    spec, times = DataSpec("", (1,), 4), dict[str, float]()
    _rows(setting, sde, spec, torch.tensor([[0], [2]], device=setting.device), times)
    least = float((-sde.half_log_snr(torch.tensor(sde.t_min, dtype=torch.float64))).exp())
    off = 0.0
    for name, bins in (("SDE bound, decoder", 1 / 3), ("chain of 30", 1 / 3), ("flow, truncated normal", 1 / 6)):
        level = float((-sde.half_log_snr(torch.tensor(times[name], dtype=torch.float64))).exp())
        off += abs(level / max(least, bins * 2 / 4) - 1)
    return Measured(off, 1e-4)  # times are float32


def _code_length(setting: Setting, levels: int) -> Measured:
    """Uniform over the range: log₂ L. Of continuous data, −log₂ p(y)/D."""
    spec = DataSpec("", (3,), levels)
    log_prob, log_q = setting.tensor([-3 * math.log(2.0)]), setting.tensor([3 * math.log(levels / 2)])
    off = worst(code_length(spec, log_prob, log_q), math.log2(levels))
    continuous = replace(spec, levels=None, scale=0.5)
    off += worst(code_length(continuous, log_prob, torch.zeros_like(log_q)), math.log2(2.0) - 1)
    return Measured(off, 64 * setting.eps + 1e-6)


def _components(population: int) -> Measured:
    """A pilot of six in two replicates of two probes, eight more in one of one, out of a finite population."""
    layout, off = ((0, 6, 2), (0, 6, 2), (6, 8, 1)), 0.0
    normal = torch.Generator().manual_seed(1)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=normal, dtype=torch.float64)

    splits: list[Split] = []
    errors: list[float] = []
    for _ in range(400):
        images, parts = math.sqrt(IMAGES) * noise(population), []
        for first, count, probes in layout:
            image = torch.arange(first, first + count)
            mean = images[image] + math.sqrt(NOISE) * noise(count)
            parts.append(Cells.of(image, mean[:, None] + math.sqrt(PROBES) * noise(count, probes)))
        splits.append(nested_split(Cells.join(parts), population=population))
        errors.append(splits[-1].mean - float(images.mean()))
    shares = torch.tensor([sum(split.shares) for split in splits], dtype=torch.float64)
    squares = torch.tensor(errors, dtype=torch.float64) ** 2
    measured = [
        mean_off(torch.tensor([split.images for split in splits]), IMAGES),
        mean_off(torch.tensor([split.dequantisation for split in splits]), NOISE),
        mean_off(torch.tensor([split.probes for split in splits]), PROBES),
        mean_off(torch.tensor(errors), 0.0),
        mean_off(shares - squares, 0.0),
    ]
    off = max(error / bound for error, bound in measured)
    for split, share in zip(splits, shares.tolist(), strict=True):
        below = max(0.0, -split.dequantisation) * (6 / 2 + 8) / 14 / population  # counts as 0 within the images
        wrong = abs(split.variance - share - below)
        off = max(off, wrong / ROUNDING)
    return Measured(off, 1.0)


def _half_width() -> Measured:
    """t s + |mean| + half-width of the ODE error; t of 10 degrees of freedom is 2.2281388520."""
    parts = (0.01, 0.02, 0.01)
    split = Split(1.0, 1.0, 1.0, 1.0, parts, variance=0.04, df=10, confidence=0.95, count=14)
    ode = Interval(-0.25, 0.125)
    outcome = Outcome(split=split, ode=ode, tolerance=LADDER[0], status="met", solves=1, probes=1)
    off = abs(outcome.half_width - (2.2281388520 * 0.2 + 0.375)) + abs(t_quantile(0.95, math.inf) - 1.9599639845)
    return Measured(off, 1e-9)
