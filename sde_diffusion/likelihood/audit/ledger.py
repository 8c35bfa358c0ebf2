"""The bits ledger: every bound of the same examples in the same units, with what it bounds, its interval and its cost.

There are two models in one score: the probability flow, whose density the ODE gives, and the reverse SDE, of which
variational bounds speak. They are the same model where the score is a right one, and then the rows agree but for what
each loses in its noise, its decoder or its steps. Every row is an upper bound of −log₂ P(n)/D of its model on average
over its own noise, and so, over examples of the data, of the data's entropy.
"""

import time
from dataclasses import dataclass

from torch import Tensor

from sde_diffusion.data import DataSpec
from sde_diffusion.errors import require
from sde_diffusion.likelihood.audit.ledger_rows import (
    Entry,
    LedgerModel,
    LedgerOptions,
    chain_rows,
    continuous_score,
    dequantised_score,
    flow_score,
    learned_rows,
    prior_row,
    published_rows,
    weighted_rows,
)
from sde_diffusion.likelihood.dequantisation import Dequantisation, TruncatedNormal, UniformDequantisation
from sde_diffusion.likelihood.divergence import Divergence
from sde_diffusion.likelihood.summary import mean_interval
from sde_diffusion.score import ScoreFn
from sde_diffusion.sde import SDE
from sde_diffusion.solvers.adaptive import AdaptiveODE

__all__ = ["Entry", "LedgerOptions", "LedgerRow", "check_values", "ledger", "ledger_entries", "ledger_row"]


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
    model = LedgerModel(score_fn=score_fn, sde=sde, spec=spec, seed=seed, ode=ode, options=options)
    if spec.levels is None:
        return [
            Entry("flow", "= −log₂ p(y) of the flow at t_min", flow_score(model, UniformDequantisation(), divergence)),
            Entry("SDE bound", "≥ −log₂ p(y) of the reverse SDE", continuous_score(model)),
            *chain_rows(model, "≥ −log₂ p(y) of this chain, from t_min"),
            *published_rows(model, "p(y)"),
            prior_row(model),
        ]
    started, narrow = model.at_width(options.decoder_width), model.at_width(1 / 6)  # edges at 3σ, as i-DODE
    return [
        Entry(
            "flow, uniform",
            "≥ −log₂ P(n) of the flow, u uniform",
            flow_score(model, UniformDequantisation(), divergence),
        ),
        *learned_rows(model, learned, divergence),
        Entry(
            "flow, truncated normal",
            f"≥ −log₂ P(n) of the flow at t = {narrow.sde.t_min:.2g}; fits models of the bins' centres",
            flow_score(narrow, TruncatedNormal(), divergence),
        ),
        *weighted_rows(model, learned or UniformDequantisation(), divergence),
        Entry(
            "SDE bound, uniform", "≥ −log₂ P(n) of the reverse SDE, by the density of n + u", dequantised_score(model)
        ),
        Entry(
            "SDE bound, decoder",
            f"≥ −log₂ P(n) of the reverse SDE to t = {started.sde.t_min:.2g} and a decoder of n",
            continuous_score(started),
        ),
        *chain_rows(started, f"≥ −log₂ P(n) of this chain to t = {started.sde.t_min:.2g} and the decoder"),
        *published_rows(model, "P(n)"),
        prior_row(model),
    ]


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
