"""Solvers of the reverse process. A new one is a file here and a row in `SOLVERS`."""

from sde_diffusion.solvers.ancestral import Ancestral
from sde_diffusion.solvers.base import GridSolver, ReverseProcess, Solver
from sde_diffusion.solvers.euler_maruyama import EulerMaruyama
from sde_diffusion.solvers.noise import NoiseSource, SeededNoise
from sde_diffusion.solvers.ode import AdaptiveODE, ODESolver
from sde_diffusion.solvers.per_sample_ode import PerSampleODE

SOLVERS: dict[str, type[Solver]] = {
    "em": EulerMaruyama,
    "ancestral": Ancestral,
    "ode": ODESolver,
    "ode_per_sample": PerSampleODE,
}

__all__ = [
    "SOLVERS",
    "AdaptiveODE",
    "Ancestral",
    "EulerMaruyama",
    "GridSolver",
    "NoiseSource",
    "ODESolver",
    "PerSampleODE",
    "ReverseProcess",
    "SeededNoise",
    "Solver",
]
