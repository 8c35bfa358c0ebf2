"""Solvers of the reverse process. A new one is a file here and a row in `SOLVERS`."""

from sde_diffusion.solvers.adaptive import AdaptiveODE
from sde_diffusion.solvers.adaptive_sde import AdaptiveSDE
from sde_diffusion.solvers.ancestral import Ancestral
from sde_diffusion.solvers.base import AffineSolver, GridSolver, Solver
from sde_diffusion.solvers.budget import Plan, for_budget, spend, within
from sde_diffusion.solvers.correctors import CORRECTORS, AnnealedLangevin, Corrector, Langevin
from sde_diffusion.solvers.ddim import DDIM
from sde_diffusion.solvers.deis import DEIS
from sde_diffusion.solvers.dpmpp_2m import DPMpp2M
from sde_diffusion.solvers.dpmpp_3m import DPMpp3M
from sde_diffusion.solvers.dpmpp_sde_2m import DPMppSDE2M
from sde_diffusion.solvers.euler_maruyama import EulerMaruyama
from sde_diffusion.solvers.heun import Heun
from sde_diffusion.solvers.noise import NoiseSource, SeededNoise
from sde_diffusion.solvers.ode import PerSampleODE
from sde_diffusion.solvers.pc import PredictorCorrector
from sde_diffusion.solvers.process import ReverseProcess
from sde_diffusion.solvers.reverse_diffusion import ReverseDiffusion
from sde_diffusion.solvers.scipy_ode import ScipyODE
from sde_diffusion.solvers.torchdiffeq_ode import TorchdiffeqODE
from sde_diffusion.solvers.unipc import UniPC

SOLVERS: dict[str, type[Solver]] = {
    "em": EulerMaruyama,
    "ancestral": Ancestral,
    "reverse_diffusion": ReverseDiffusion,
    "pc": PredictorCorrector,
    "ddim": DDIM,
    "heun": Heun,
    "dpmpp_2m": DPMpp2M,
    "dpmpp_3m": DPMpp3M,
    "dpmpp_sde_2m": DPMppSDE2M,
    "unipc": UniPC,
    "deis": DEIS,
    "adaptive_sde": AdaptiveSDE,
    "ode": PerSampleODE,
    "torchdiffeq": TorchdiffeqODE,
    "scipy": ScipyODE,
}
ODES: dict[str, type[AdaptiveODE]] = {
    name: row for name, row in SOLVERS.items() if issubclass(row, AdaptiveODE)
}  # what a likelihood can be integrated by

__all__ = [
    "CORRECTORS",
    "DDIM",
    "DEIS",
    "ODES",
    "SOLVERS",
    "AdaptiveODE",
    "AdaptiveSDE",
    "AffineSolver",
    "Ancestral",
    "AnnealedLangevin",
    "Corrector",
    "DPMpp2M",
    "DPMpp3M",
    "DPMppSDE2M",
    "EulerMaruyama",
    "GridSolver",
    "Heun",
    "Langevin",
    "NoiseSource",
    "PerSampleODE",
    "Plan",
    "PredictorCorrector",
    "ReverseDiffusion",
    "ReverseProcess",
    "ScipyODE",
    "SeededNoise",
    "Solver",
    "TorchdiffeqODE",
    "UniPC",
    "for_budget",
    "spend",
    "within",
]
