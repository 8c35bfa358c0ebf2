"""Log-likelihoods of a score model. A new trace estimator is a class here and a row in `DIVERGENCES`."""

from sde_diffusion.likelihood.divergence import Divergence, ExactTrace, Hutchinson
from sde_diffusion.likelihood.flow import Likelihood, log_likelihood
from sde_diffusion.likelihood.gaussian import GaussianReference
from sde_diffusion.likelihood.summary import Interval, mean_interval, probe_half_width

DIVERGENCES: dict[str, type[Divergence]] = {"hutchinson": Hutchinson, "exact": ExactTrace}

__all__ = [
    "DIVERGENCES",
    "Divergence",
    "ExactTrace",
    "GaussianReference",
    "Hutchinson",
    "Interval",
    "Likelihood",
    "log_likelihood",
    "mean_interval",
    "probe_half_width",
]
