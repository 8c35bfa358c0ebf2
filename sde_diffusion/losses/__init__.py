"""Training objectives. A new one, a weighting or a time sampler is a class in its file and a row below."""

from sde_diffusion.losses.adaptive_times import SecondMomentTime
from sde_diffusion.losses.discrete_time import DiscreteTime
from sde_diffusion.losses.dsm import denoising_error, dsm_loss
from sde_diffusion.losses.edm import EDMWeighting, LogNormalTime
from sde_diffusion.losses.noised import DISTANCES, DSMLoss, Noised, noised
from sde_diffusion.losses.objective import VLB, Denoising, Hybrid, Objective, vlb_term
from sde_diffusion.losses.time_sampling import ImportanceTime, StratifiedTime, TimeSampler, UniformTime
from sde_diffusion.losses.uncertainty import UncertaintyWeighting, learned_loss
from sde_diffusion.losses.weighting import (
    LikelihoodWeighting,
    MinSNRWeighting,
    P2Weighting,
    SimpleWeighting,
    SNRPlusOneWeighting,
    SoftMinSNRWeighting,
    TruncatedSNRWeighting,
    Weighting,
)

OBJECTIVES: dict[str, type[Objective]] = {"denoising": Denoising, "hybrid": Hybrid, "vlb": VLB}
WEIGHTINGS: dict[str, type[Weighting]] = {
    "simple": SimpleWeighting,
    "likelihood": LikelihoodWeighting,
    "min_snr": MinSNRWeighting,
    "soft_min_snr": SoftMinSNRWeighting,
    "truncated_snr": TruncatedSNRWeighting,
    "snr_plus_one": SNRPlusOneWeighting,
    "p2": P2Weighting,
    "edm": EDMWeighting,
    "uncertainty": UncertaintyWeighting,
}
TIME_SAMPLERS: dict[str, type[TimeSampler]] = {
    "uniform": UniformTime,
    "stratified": StratifiedTime,
    "importance": ImportanceTime,
    "discrete": DiscreteTime,
    "log_normal": LogNormalTime,
    "loss_second_moment": SecondMomentTime,
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
    "EDMWeighting",
    "Hybrid",
    "ImportanceTime",
    "LikelihoodWeighting",
    "LogNormalTime",
    "MinSNRWeighting",
    "Noised",
    "Objective",
    "P2Weighting",
    "SNRPlusOneWeighting",
    "SecondMomentTime",
    "SimpleWeighting",
    "SoftMinSNRWeighting",
    "StratifiedTime",
    "TimeSampler",
    "TruncatedSNRWeighting",
    "UncertaintyWeighting",
    "UniformTime",
    "Weighting",
    "denoising_error",
    "dsm_loss",
    "learned_loss",
    "noised",
    "vlb_term",
]
