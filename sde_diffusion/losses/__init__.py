"""Training objectives. A new weighting or time sampler is a class in its file and a row below."""

from sde_diffusion.losses.discrete_time import DiscreteTime
from sde_diffusion.losses.dsm import DISTANCES, DSMLoss, denoising_error, dsm_loss
from sde_diffusion.losses.time_sampling import ImportanceTime, StratifiedTime, TimeSampler, UniformTime
from sde_diffusion.losses.weighting import LikelihoodWeighting, SimpleWeighting, Weighting

WEIGHTINGS: dict[str, type[Weighting]] = {"simple": SimpleWeighting, "likelihood": LikelihoodWeighting}
TIME_SAMPLERS: dict[str, type[TimeSampler]] = {
    "uniform": UniformTime,
    "stratified": StratifiedTime,
    "importance": ImportanceTime,
    "discrete": DiscreteTime,
}

__all__ = [
    "DISTANCES",
    "TIME_SAMPLERS",
    "WEIGHTINGS",
    "DSMLoss",
    "DiscreteTime",
    "ImportanceTime",
    "LikelihoodWeighting",
    "SimpleWeighting",
    "StratifiedTime",
    "TimeSampler",
    "UniformTime",
    "Weighting",
    "denoising_error",
    "dsm_loss",
]
