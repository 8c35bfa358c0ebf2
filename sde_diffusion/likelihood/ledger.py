"""The bits ledger: every bound of the same examples in the same units, with what it bounds, its interval and its cost.

There are two models in one score: the probability flow, whose density the ODE gives, and the reverse SDE, of which
variational bounds speak. They are the same model where the score is a right one, and then the rows agree but for what
each loses in its noise, its decoder or its steps. Every row is an upper bound of −log₂ P(n)/D of its model on average
over its own noise, and so, over examples of the data, of the data's entropy.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from sde_diffusion.chain import DiscreteChain, Variance
from sde_diffusion.data import DataSpec
from sde_diffusion.errors import require, require_positive
from sde_diffusion.grids import LogSNRGrid
from sde_diffusion.likelihood.bounds import Bound, chain_bound, continuous_bound, importance_weighted
from sde_diffusion.likelihood.dequantisation import Dequantisation, Dequantised, TruncatedNormal, UniformDequantisation
from sde_diffusion.likelihood.divergence import Divergence, Hutchinson
from sde_diffusion.likelihood.flow import Likelihood, log_likelihood
from sde_diffusion.likelihood.summary import mean_interval
from sde_diffusion.likelihood.targets import Levels, Points, Target
from sde_diffusion.likelihood.truncation import prior_gap
from sde_diffusion.score import ScoreFn, knows_variance
from sde_diffusion.sde import SDE
from sde_diffusion.solvers.adaptive import AdaptiveODE


@dataclass(frozen=True, kw_only=True)
class LedgerOptions:
    """What the rows of a ledger spend.

    Attributes:
        draws: Pairs (t, ε) for each example of a variational bound, and levels drawn from a chain.
        importance_draws: K of the importance-weighted row.
        chain_steps: N of each chain, a row each; its levels are uniform in log-SNR.
        decoder_width: σ/a in bins where the bounds of discrete data start: less leaves more to the diffusion, more to
            the decoder.
    """

    draws: int = 64
    importance_draws: int = 8
    chain_steps: tuple[int, ...] = (100, 1000)
    decoder_width: float = 1 / 3

    def __post_init__(self) -> None:
        require_positive(draws=self.draws, importance_draws=self.importance_draws, decoder_width=self.decoder_width)
        for steps in self.chain_steps:
            require(steps >= 2, f"`chain_steps` must be ≥ 2, got {steps}")


class RowScores(NamedTuple):
    """bits: Bits per dimension, (B,). nfe: Score evaluations per example."""

    bits: Tensor
    nfe: float


@dataclass(frozen=True, eq=False)
class Entry:
    """A row to be computed.

    Attributes:
        name: A short name, unique in its ledger.
        bounds: What it bounds, in words.
        score: (values (B, *shape), index of the first) -> `RowScores`; example i depends on its index alone, not on its
            companions.
    """

    name: str
    bounds: str
    score: Callable[[Tensor, int], RowScores]


@dataclass(frozen=True)
class LedgerRow:
    """One line of a ledger.

    Attributes:
        name, bounds: As in `Entry`.
        units: What `mean` is in.
        mean, half_width: Over the examples, with the confidence asked for; NaN for a single example.
        nfe: Score evaluations per example.
        seconds: Wall time of all examples.
    """

    name: str
    units: str
    bounds: str
    mean: float
    half_width: float
    nfe: float
    seconds: float


@dataclass(frozen=True, eq=False, kw_only=True)
class _Model:
    """What all rows share."""

    score_fn: ScoreFn
    sde: SDE
    spec: DataSpec
    seed: int
    ode: AdaptiveODE
    options: LedgerOptions

    def bits(self, log_prob: Tensor) -> Tensor:
        """Of a probability of n, or of a density of x of continuous data."""
        if self.spec.levels is None:
            return self.spec.bits_per_dim(log_prob.double())
        return -log_prob.double() / (self.spec.dims * math.log(2))

    def flow(
        self, noise: Dequantisation, divergence: Divergence, draws: int, values: Tensor, start: int
    ) -> tuple[Dequantised, list[Likelihood]]:
        drawn = noise.draw(self.spec, self.sde, values, seed=self.seed, start=start, draws=draws)
        return drawn, [
            log_likelihood(self.score_fn, self.sde, x, divergence=divergence, ode=self.ode, seed=self.seed, start=start)
            for x in drawn.x
        ]

    def bound(self, target: Target, start: int) -> Bound:
        return continuous_bound(self.score_fn, self.sde, target, draws=self.options.draws, seed=self.seed, start=start)

    def at_width(self, bins: float) -> "_Model":
        """The same where σ/a is `bins` bins, or at `t_min` where there is more noise."""
        assert self.spec.levels is not None
        half_log_snr = torch.tensor(math.log(self.spec.levels / (2 * bins)), dtype=torch.float64)
        return replace(self, sde=replace(self.sde, t_min=max(self.sde.t_min, float(self.sde.time_at(half_log_snr)))))

    def target(self, values: Tensor) -> Target:
        return Points(self.spec.to_model(values)) if self.spec.levels is None else Levels(self.spec, values)


def ledger_entries(
    score_fn: ScoreFn,
    sde: SDE,
    spec: DataSpec,
    *,
    divergence: Divergence,
    ode: AdaptiveODE,
    options: LedgerOptions | None = None,
    learned: Dequantisation | None = None,
    seed: int = 0,
) -> list[Entry]:
    """The rows that exist for data of this kind, to be computed batch by batch.

    Args:
        score_fn: (x, t) -> ∇ log p_t(x).
        sde: The forward process.
        spec: Of the data.
        divergence, ode: Of the rows that solve the probability flow. The importance-weighted row takes two probes where
            `divergence` has one.
        options: What to spend.
        learned: Noise that was trained with the model, bound to it: a row, and the noise of the weighted one.
        seed: Of all random numbers.
    """
    options = options or LedgerOptions()
    model = _Model(score_fn=score_fn, sde=sde, spec=spec, seed=seed, ode=ode, options=options)
    if spec.levels is None:
        return [
            Entry("flow", "= −log₂ p(y) of the flow at t_min", _flow(model, UniformDequantisation(), divergence)),
            Entry("SDE bound", "≥ −log₂ p(y) of the reverse SDE", _continuous(model)),
            *_chains(model, "≥ −log₂ p(y) of this chain, from t_min"),
            *_published(model, "p(y)"),
            _prior(model),
        ]
    started, narrow = model.at_width(options.decoder_width), model.at_width(1 / 6)  # edges at 3σ, as i-DODE
    return [
        Entry(
            "flow, uniform", "≥ −log₂ P(n) of the flow, u uniform", _flow(model, UniformDequantisation(), divergence)
        ),
        *_learned(model, learned, divergence),
        Entry(
            "flow, truncated normal",
            f"≥ −log₂ P(n) of the flow at t = {narrow.sde.t_min:.2g}; fits models of the bins' centres",
            _flow(narrow, TruncatedNormal(), divergence),
        ),
        _weighted(model, learned or UniformDequantisation(), divergence),
        Entry("SDE bound, uniform", "≥ −log₂ P(n) of the reverse SDE, by the density of n + u", _dequantised(model)),
        Entry(
            "SDE bound, decoder",
            f"≥ −log₂ P(n) of the reverse SDE to t = {started.sde.t_min:.2g} and a decoder of n",
            _continuous(started),
        ),
        *_chains(started, f"≥ −log₂ P(n) of this chain to t = {started.sde.t_min:.2g} and the decoder"),
        *_published(model, "P(n)"),
        _prior(model),
    ]


Score = Callable[[Tensor, int], RowScores]


def _flow(model: _Model, noise: Dequantisation, divergence: Divergence) -> Score:
    def score(values: Tensor, start: int) -> RowScores:
        drawn, (result,) = model.flow(noise, divergence, 1, values, start)
        return RowScores(model.bits(result.log_prob.double() - drawn.log_q[0]), result.nfe)

    return score


def _learned(model: _Model, noise: Dequantisation | None, divergence: Divergence) -> Iterator[Entry]:
    if noise is not None:
        yield Entry(
            "flow, learned noise",
            "≥ −log₂ P(n) of the flow, u from the flow trained with it",
            _flow(model, noise, divergence),
        )


def _weighted(model: _Model, noise: Dequantisation, divergence: Divergence) -> Entry:
    if isinstance(divergence, Hutchinson):
        divergence = replace(divergence, probes=max(2, divergence.probes))
    draws = model.options.importance_draws
    loss = "" if divergence.exact else f" + log₂ {draws}/D"  # what weights of their own probes may cost

    def score(values: Tensor, start: int) -> RowScores:
        drawn, results = model.flow(noise, divergence, draws, values, start)
        log_probs = torch.stack([result.per_probe for result in results])
        bound = importance_weighted(log_probs, drawn.log_q, exact=divergence.exact)
        return RowScores(model.bits(bound), sum(result.nfe for result in results))

    row = "learned noise's" if noise.needs_bins else "uniform"
    bounds = f"≥ −log₂ P(n) of the flow, on average ≤ the {row} row{loss}"
    return Entry(f"flow, {draws} weighted draws", bounds, score)


def _dequantised(model: _Model) -> Score:
    def score(values: Tensor, start: int) -> RowScores:
        drawn = UniformDequantisation().draw(model.spec, model.sde, values, seed=model.seed, start=start)
        bound = model.bound(Points(drawn.x[0]), start)
        return RowScores(model.bits(bound.log_prob - drawn.log_q[0]), bound.nfe)

    return score


def _continuous(model: _Model) -> Score:
    def score(values: Tensor, start: int) -> RowScores:
        bound = model.bound(model.target(values), start)
        return RowScores(model.bits(bound.log_prob), bound.nfe)

    return score


def _chains(model: _Model, bounds: str) -> Iterator[Entry]:
    for steps in model.options.chain_steps:
        times = LogSNRGrid()(model.sde, model.sde.t_min, model.sde.t_max, steps - 1)
        yield Entry(f"chain of {steps}", bounds, _chain(model, DiscreteChain.from_sde(model.sde, times)))


def _published(model: _Model, what: str) -> Iterator[Entry]:
    """DDPM's own bound for a process with levels, by each variance of the reverse steps that the model offers."""
    if model.sde.levels is None:
        return
    chain = DiscreteChain.of_levels(model.sde)
    width = float(torch.exp(0.5 * chain.clipped_log_variance[0]))
    steps: list[tuple[str, Variance, float | None]] = [("Σ = β̃", "small", width), ("Σ = β", "large", width)]
    if knows_variance(model.score_fn):
        steps.append(("Σ learned", "learned", None))
    for name, variance, decoder_std in steps:
        bounds = f"≥ −log₂ {what} of the published chain of {chain.steps} and its decoder"
        yield Entry(f"DDPM, {name}", bounds, _chain(model, chain, variance, decoder_std))


def _chain(
    model: _Model, chain: DiscreteChain, variance: Variance = "small", decoder_std: float | None = None
) -> Score:
    def score(values: Tensor, start: int) -> RowScores:
        bound = chain_bound(
            model.score_fn,
            chain,
            model.target(values),
            prior_std=model.sde.prior_std,
            variance=variance,
            decoder_std=decoder_std,
            draws=min(model.options.draws, chain.steps),
            seed=model.seed,
            start=start,
        )
        return RowScores(model.bits(bound.log_prob), bound.nfe)

    return score


def _prior(model: _Model) -> Entry:
    def score(values: Tensor, start: int) -> RowScores:
        gap = prior_gap(model.sde, model.spec.to_model(values))
        return RowScores(gap / (model.spec.dims * math.log(2)), 0)

    return Entry("prior", "the part KL(q(x_T | x_0) ‖ prior) of every SDE and chain row", score)


def check_values(spec: DataSpec, values: Tensor) -> None:
    """Refuse what is no batch of such data.

    Raises:
        InputError: Another shape, no examples, or discrete values that are not 0 … L − 1.
    """
    require(
        values.shape[1:] == spec.shape and len(values) > 0,
        f"`values` must be a batch of shape (B, {', '.join(map(str, spec.shape))}), got {tuple(values.shape)}",
    )
    if spec.levels is not None:
        require(
            not values.is_floating_point() and int(values.min()) >= 0 and int(values.max()) < spec.levels,
            f"`values` must be whole numbers from 0 to {spec.levels - 1}, not dequantised, got {values.dtype} from "
            f"{values.min()} to {values.max()}",
        )


def ledger_row(
    entry: Entry, spec: DataSpec, bits: Tensor, *, nfe: float, seconds: float, confidence: float = 0.95
) -> LedgerRow:
    """The line of an entry from its examples' `bits` (n,)."""
    units = "bits/dim of n" if spec.levels is not None else "bits/dim of y"
    mean, half_width = mean_interval(bits, confidence)
    return LedgerRow(entry.name, units, entry.bounds, mean, half_width, nfe, seconds)


def ledger(
    score_fn: ScoreFn,
    sde: SDE,
    spec: DataSpec,
    values: Tensor,
    *,
    divergence: Divergence,
    ode: AdaptiveODE,
    options: LedgerOptions | None = None,
    seed: int = 0,
    start: int = 0,
    confidence: float = 0.95,
) -> list[LedgerRow]:
    """Every bound of one batch of examples.

    Args:
        values: In data units: n of discrete data, not dequantised, (B, *spec.shape).
        start: Index of the first example.
        confidence: Level of the intervals.

    Returns:
        A row each, in the order flow, SDE, chains. Costs the sum of their `nfe`, of which the importance-weighted row
        is most.

    Raises:
        InputError: Values that are no such data, or a solve that fails.
    """
    check_values(spec, values)
    rows = []
    for entry in ledger_entries(score_fn, sde, spec, divergence=divergence, ode=ode, options=options, seed=seed):
        clock = time.perf_counter()
        bits, nfe = entry.score(values, start)
        seconds = time.perf_counter() - clock
        rows.append(ledger_row(entry, spec, bits, nfe=nfe, seconds=seconds, confidence=confidence))
    return rows
