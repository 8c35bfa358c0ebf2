"""Training objectives. A new one, a weighting or a time sampler is a class in its file and a row below."""

from sde_diffusion.losses.discrete_time import DiscreteTime
from sde_diffusion.losses.dsm import DISTANCES, DSMLoss, denoising_error, dsm_loss
from sde_diffusion.losses.objective import VLB, Denoising, Hybrid, Objective, vlb_term
from sde_diffusion.losses.time_sampling import ImportanceTime, StratifiedTime, TimeSampler, UniformTime
from sde_diffusion.losses.weighting import LikelihoodWeighting, SimpleWeighting, Weighting

OBJECTIVES: dict[str, type[Objective]] = {"denoising": Denoising, "hybrid": Hybrid, "vlb": VLB}
WEIGHTINGS: dict[str, type[Weighting]] = {"simple": SimpleWeighting, "likelihood": LikelihoodWeighting}
TIME_SAMPLERS: dict[str, type[TimeSampler]] = {
    "uniform": UniformTime,
    "stratified": StratifiedTime,
    "importance": ImportanceTime,
    "discrete": DiscreteTime,
}

__all__ = [
    "DISTANCES",
    "OBJECTIVES",
    "TIME_SAMPLERS",
    "VLB",
    "WEIGHTINGS",
    "DSMLoss",
    "Denoising",
    "DiscreteTime",
    "Hybrid",
    "ImportanceTime",
    "LikelihoodWeighting",
    "Objective",
    "SimpleWeighting",
    "StratifiedTime",
    "TimeSampler",
    "UniformTime",
    "Weighting",
    "denoising_error",
    "dsm_loss",
    "vlb_term",
]
