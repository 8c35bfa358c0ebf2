"""Solvers of the reverse process. A new one is a file here and a row in `SOLVERS`."""

from sde_diffusion.solvers.ancestral import Ancestral
from sde_diffusion.solvers.base import GridSolver, ReverseProcess, Solver
from sde_diffusion.solvers.euler_maruyama import EulerMaruyama
from sde_diffusion.solvers.noise import NoiseSource, SeededNoise
from sde_diffusion.solvers.ode import ODESolver

SOLVERS: dict[str, type[Solver]] = {"em": EulerMaruyama, "ancestral": Ancestral, "ode": ODESolver}

__all__ = [
    "SOLVERS",
    "Ancestral",
    "EulerMaruyama",
    "GridSolver",
    "NoiseSource",
    "ODESolver",
    "ReverseProcess",
    "SeededNoise",
    "Solver",
]
