"""Euler–Maruyama on the reverse SDE, and Euler on its probability flow."""

from dataclasses import dataclass

from torch import Tensor

from sde_diffusion.errors import require
from sde_diffusion.solvers.base import GridSolver, ReverseProcess


@dataclass(frozen=True, kw_only=True)
class EulerMaruyama(GridSolver):
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

    def step(self, process: ReverseProcess, x: Tensor, t: Tensor, t_next: Tensor, state: None) -> tuple[Tensor, None]:
        """x ← x + [f x − ½(1 + η²) g² s] h + η g √|h| z,  h = t_next − t.

        Args:
            x: State at `t`, (B, *D).
            t, t_next: Times, () float64.
            state: None; the method has no memory.

        Returns:
            State at `t_next`, (B, *D), and None.
        """
        h = t_next - t
        x_next = x + h * process.drift(x, t, self.eta)
        if not self.stochastic:
            return x_next, None
        spread = self.eta * process.sde.diffusion(t) * h.abs().sqrt()
        return x_next + spread * process.noise(x, t, t_next), None
