"""Processes. A new one is a file here and a row in `SDES`; a new β(t) is a class in `beta.py` and a row in `BETAS`, new
rates of a chain β_1 … β_T a class in `beta_sequence.py` and a row in `BETA_SEQUENCES`."""

from sde_diffusion.sde.base import SDE, Moment
from sde_diffusion.sde.beta import BetaSchedule, CosineBeta, LinearBeta
from sde_diffusion.sde.beta_sequence import BetaSequence, CosineBetas, LinearBetas, QuadraticBetas, SigmoidBetas
from sde_diffusion.sde.ddpm import DDPM
from sde_diffusion.sde.subvp import SubVPSDE
from sde_diffusion.sde.ve import VESDE
from sde_diffusion.sde.vp import VPSDE

SDES: dict[str, type[SDE]] = {"vp": VPSDE, "subvp": SubVPSDE, "ve": VESDE, "ddpm": DDPM}
BETAS: dict[str, type[BetaSchedule]] = {"linear": LinearBeta, "cosine": CosineBeta}
BETA_SEQUENCES: dict[str, type[BetaSequence]] = {
    "linear": LinearBetas,
    "cosine": CosineBetas,
    "quadratic": QuadraticBetas,
    "sigmoid": SigmoidBetas,
}

__all__ = [
    "BETAS",
    "BETA_SEQUENCES",
    "DDPM",
    "SDE",
    "SDES",
    "VESDE",
    "VPSDE",
    "BetaSchedule",
    "BetaSequence",
    "CosineBeta",
    "CosineBetas",
    "LinearBeta",
    "LinearBetas",
    "Moment",
    "QuadraticBetas",
    "SigmoidBetas",
    "SubVPSDE",
]
