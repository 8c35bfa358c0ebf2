"""The rows of the bits ledger: what each scores, by which noise, and of which of the two models it speaks."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from sde_diffusion.data import DataSpec
from sde_diffusion.errors import require, require_positive
from sde_diffusion.grids import LogSNRGrid
from sde_diffusion.likelihood.audit.bounds import Bound, chain_bound, continuous_bound, importance_weighted
from sde_diffusion.likelihood.audit.targets import Levels, Points, Target
from sde_diffusion.likelihood.audit.truncation import prior_gap
from sde_diffusion.likelihood.dequantisation import Dequantisation, Dequantised, UniformDequantisation
from sde_diffusion.likelihood.divergence import Divergence, Hutchinson
from sde_diffusion.likelihood.log_likelihood import Likelihood, log_likelihood
from sde_diffusion.score import ScoreFn, knows_variance
from sde_diffusion.sde import SDE
from sde_diffusion.sde.chain import DiscreteChain, Variance
from sde_diffusion.solvers.adaptive import AdaptiveODE


@dataclass(frozen=True, kw_only=True)
class LedgerOptions:
    """What the rows of a ledger spend.

    Attributes:
        draws: Pairs (t, ε) for each example of a variational bound, and levels drawn from a chain.
        importance_draws: K of the importance-weighted row, which takes K solves of each example. Null for no such row.
        chain_steps: Number of steps N of each chain; each is a row. Its levels are uniform in log-SNR.
        decoder_width: σ/a, in bins, at which the bounds of discrete data start. A smaller value gives more of the bound
            to the diffusion and less to the decoder.
    """

    draws: int = 64
    importance_draws: int | None = None
    chain_steps: tuple[int, ...] = (100, 1000)
    decoder_width: float = 1 / 3

    def __post_init__(self) -> None:
        require_positive(draws=self.draws, decoder_width=self.decoder_width)
        if self.importance_draws is not None:
            require_positive(importance_draws=self.importance_draws)
        for steps in self.chain_steps:
            require(steps >= 2, f"`chain_steps` must be ≥ 2, got {steps}")


class RowScores(NamedTuple):
    """bits: Bits per dimension, (B,). nfe: Score evaluations per example."""

    bits: Tensor
    nfe: float


Score = Callable[[Tensor, int], RowScores]


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
    score: Score


@dataclass(frozen=True, eq=False, kw_only=True)
class LedgerModel:
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

    def at_width(self, bins: float) -> "LedgerModel":
        """The same where σ/a is `bins` bins, or at `t_min` where there is more noise."""
        assert self.spec.levels is not None
        half_log_snr = torch.tensor(math.log(self.spec.levels / (2 * bins)), dtype=torch.float64)
        return replace(self, sde=replace(self.sde, t_min=max(self.sde.t_min, float(self.sde.time_at(half_log_snr)))))

    def target(self, values: Tensor) -> Target:
        return Points(self.spec.to_model(values)) if self.spec.levels is None else Levels(self.spec, values)


def flow_score(model: LedgerModel, noise: Dequantisation, divergence: Divergence) -> Score:
    """The flow's density of one draw of `noise`, less the noise's own."""

    def score(values: Tensor, start: int) -> RowScores:
        drawn, (result,) = model.flow(noise, divergence, 1, values, start)
        return RowScores(model.bits(result.log_prob.double() - drawn.log_q[0]), result.nfe)

    return score


def learned_rows(model: LedgerModel, noise: Dequantisation | None, divergence: Divergence) -> Iterator[Entry]:
    """The flow by the noise that was trained with the model, if there is one."""
    if noise is not None:
        yield Entry(
            "flow, learned noise",
            "≥ −log₂ P(n) of the flow, u from the flow trained with it",
            flow_score(model, noise, divergence),
        )


def weighted_rows(model: LedgerModel, noise: Dequantisation, divergence: Divergence) -> list[Entry]:
    """The importance-weighted bound of the flow by several draws of `noise`, if the options ask for it."""
    draws = model.options.importance_draws
    if draws is None:
        return []
    if isinstance(divergence, Hutchinson):
        divergence = replace(divergence, probes=max(2, divergence.probes))
    loss = "" if divergence.exact else f" + log₂ {draws}/D"  # what weights of their own probes may cost

    def score(values: Tensor, start: int) -> RowScores:
        drawn, results = model.flow(noise, divergence, draws, values, start)
        log_probs = torch.stack([result.per_probe for result in results])
        bound = importance_weighted(log_probs, drawn.log_q, exact=divergence.exact)
        return RowScores(model.bits(bound), sum(result.nfe for result in results))

    row = "learned noise's" if noise.needs_bins else "uniform"
    bounds = f"≥ −log₂ P(n) of the flow, on average ≤ the {row} row{loss}"
    return [Entry(f"flow, {draws} weighted draws", bounds, score)]


def dequantised_score(model: LedgerModel) -> Score:
    """The bound of the reverse SDE by the density of n + u."""

    def score(values: Tensor, start: int) -> RowScores:
        drawn = UniformDequantisation().draw(model.spec, model.sde, values, seed=model.seed, start=start)
        bound = model.bound(Points(drawn.x[0]), start)
        return RowScores(model.bits(bound.log_prob - drawn.log_q[0]), bound.nfe)

    return score


def continuous_score(model: LedgerModel) -> Score:
    """The bound of the reverse SDE with a decoder of n, or of the density of continuous data."""

    def score(values: Tensor, start: int) -> RowScores:
        bound = model.bound(model.target(values), start)
        return RowScores(model.bits(bound.log_prob), bound.nfe)

    return score


def chain_rows(model: LedgerModel, bounds: str) -> Iterator[Entry]:
    """A row for each chain of `chain_steps` levels, uniform in log-SNR."""
    for steps in model.options.chain_steps:
        times = LogSNRGrid()(model.sde, model.sde.t_min, model.sde.t_max, steps - 1)
        yield Entry(f"chain of {steps}", bounds, chain_score(model, DiscreteChain.from_sde(model.sde, times)))


def published_rows(model: LedgerModel, what: str) -> Iterator[Entry]:
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
        yield Entry(f"DDPM, {name}", bounds, chain_score(model, chain, variance, decoder_std))


def chain_score(
    model: LedgerModel, chain: DiscreteChain, variance: Variance = "small", decoder_std: float | None = None
) -> Score:
    """The bound of one chain."""

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


def prior_row(model: LedgerModel) -> Entry:
    """The part of every SDE and chain row that no model can change."""

    def score(values: Tensor, start: int) -> RowScores:
        gap = prior_gap(model.sde, model.spec.to_model(values))
        return RowScores(gap / (model.spec.dims * math.log(2)), 0)

    return Entry("prior", "the part KL(q(x_T | x_0) ‖ prior) of every SDE and chain row", score)
