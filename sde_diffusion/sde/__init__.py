"""Processes. A new one is a file here and a row in `SDES`; a new β(t) is a class in `beta.py` and a row in `BETAS`."""

from sde_diffusion.sde.base import SDE
from sde_diffusion.sde.beta import BetaSchedule, CosineBeta, LinearBeta
from sde_diffusion.sde.subvp import SubVPSDE
from sde_diffusion.sde.ve import VESDE
from sde_diffusion.sde.vp import VPSDE

SDES: dict[str, type[SDE]] = {"vp": VPSDE, "subvp": SubVPSDE, "ve": VESDE}
BETAS: dict[str, type[BetaSchedule]] = {"linear": LinearBeta, "cosine": CosineBeta}

__all__ = ["BETAS", "SDE", "SDES", "VESDE", "VPSDE", "BetaSchedule", "CosineBeta", "LinearBeta", "SubVPSDE"]
