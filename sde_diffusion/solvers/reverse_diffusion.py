"""Reverse diffusion: the reverse process discretised as the forward one."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sde_diffusion.errors import require
from sde_diffusion.solvers.base import GridSolver, ReverseProcess


@dataclass(frozen=True, kw_only=True)
class ReverseDiffusion(GridSolver):
    """Undoes a step x_t = ρ x_s + √v z of the forward chain as Euler's method would: the predictor of score_sde.

    ρ = a_t/a_s and v = σ_t² − ρ² σ_s² are exact for any SDE; on a published DDPM or NCSN chain they are √(1 − β_i) and
    β_i, or 1 and σ_i² − σ_{i−1}².

    Attributes:
        eta: Share of the noise: 1 is the reverse SDE, 0 the probability flow.

    Cost: one score evaluation per step.

    Reference: Song et al. 2021, arXiv:2011.13456, eq. 46 and appendix E.
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
        """x ← (2 − ρ) x + ½ (1 + η²) v s + η √v z.

        Args:
            x: State at `t`, (B, *D).
            t, t_next: Times, () float64; `t_next < t` unless η = 0.
            state: None; the method has no memory.

        Returns:
            State at `t_next`, (B, *D), and None.
        """
        sde = process.sde
        fall = torch.expm1(sde.log_mean_coef(t) - sde.log_mean_coef(t_next))  # ρ − 1
        added = -(sde.std(t) ** 2) * torch.expm1(2 * (sde.half_log_snr(t) - sde.half_log_snr(t_next)))
        x_next = x - fall * x + 0.5 * (1 + self.eta**2) * added * process.score(x, t)
        if not self.stochastic:
            return x_next, None
        return x_next + self.eta * added.sqrt() * process.noise(x, t, t_next), None
