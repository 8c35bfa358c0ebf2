"""Log-likelihoods of a score model.

A new trace estimator is a class here and a row in `DIVERGENCES`, a new dequantisation one in `DEQUANTISATIONS`.
"""

from sde_diffusion.likelihood.audit.bounds import Bound, chain_bound, continuous_bound, importance_weighted
from sde_diffusion.likelihood.audit.learned_noise import BinFlow, FlowDequantisation
from sde_diffusion.likelihood.audit.ledger import LedgerOptions, LedgerRow, ledger
from sde_diffusion.likelihood.audit.targets import Levels, Points, Target
from sde_diffusion.likelihood.audit.tolerance import Goal, Outcome, Scoring
from sde_diffusion.likelihood.audit.truncation import prior_gap, truncation_error
from sde_diffusion.likelihood.audit.variance import Cells, Split, nested_split
from sde_diffusion.likelihood.dequantisation import (
    Dequantisation,
    Dequantised,
    TruncatedNormal,
    UniformDequantisation,
)
from sde_diffusion.likelihood.divergence import DIVERGENCES, Divergence, ExactTrace, Hutchinson
from sde_diffusion.likelihood.gaussian import GaussianReference
from sde_diffusion.likelihood.log_likelihood import Likelihood, log_likelihood
from sde_diffusion.likelihood.scoring import Examples, Scores
from sde_diffusion.likelihood.summary import BitsPerDim, Interval, mean_interval, probe_half_width, t_quantile

DEQUANTISATIONS: dict[str, type[Dequantisation]] = {
    "uniform": UniformDequantisation,
    "truncated_normal": TruncatedNormal,
    "flow": FlowDequantisation,
}

__all__ = [
    "DEQUANTISATIONS",
    "DIVERGENCES",
    "BinFlow",
    "BitsPerDim",
    "Bound",
    "Cells",
    "Dequantisation",
    "Dequantised",
    "Divergence",
    "ExactTrace",
    "Examples",
    "FlowDequantisation",
    "GaussianReference",
    "Goal",
    "Hutchinson",
    "Interval",
    "LedgerOptions",
    "LedgerRow",
    "Levels",
    "Likelihood",
    "Outcome",
    "Points",
    "Scores",
    "Scoring",
    "Split",
    "Target",
    "TruncatedNormal",
    "UniformDequantisation",
    "chain_bound",
    "continuous_bound",
    "importance_weighted",
    "ledger",
    "log_likelihood",
    "mean_interval",
    "nested_split",
    "prior_gap",
    "probe_half_width",
    "t_quantile",
    "truncation_error",
]
