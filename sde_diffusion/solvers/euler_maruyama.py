"""Euler–Maruyama on the reverse SDE, and Euler on its probability flow."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from sde_diffusion.errors import require
from sde_diffusion.sde import SDE
from sde_diffusion.solvers.base import AffineSolver, AffineStep, affine


@dataclass(frozen=True, kw_only=True)
class EulerMaruyama(AffineSolver):
    """The reverse SDE dx = [f x − ½(1 + η²) g² s] dt + η g dw̄ by first-order steps.

    Attributes:
        eta: Share of the noise: 1 is the reverse SDE, 0 the probability-flow ODE by Euler's method.

    Cost: one score evaluation per step.

    Reference: Song et al. 2021, arXiv:2011.13456, eq. 6 and appendix E.
    """

    order = 1

    eta: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.eta >= 0, f"`eta` must be ≥ 0, got {self.eta}")

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    def plan(self, sde: SDE, times: Tensor) -> Sequence[AffineStep]:
        """x ← x + [f x − ½(1 + η²) g² s] h + η g √|h| z,  h = t_next − t."""
        t, h = times[:-1], times.diff()
        f, g = sde.drift_coef(t), sde.diffusion(t)
        pull = -0.5 * (1 + self.eta**2) * g**2 * h
        spread = self.eta * g * h.abs().sqrt()
        return affine(times, 1 + f * h, pull, spread)
