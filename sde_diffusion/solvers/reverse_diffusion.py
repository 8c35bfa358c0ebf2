"""Reverse diffusion: the reverse process discretised as the forward one."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_diffusion.errors import require
from sde_diffusion.sde import SDE
from sde_diffusion.solvers.base import AffineSolver, AffineStep, affine


@dataclass(frozen=True, kw_only=True)
class ReverseDiffusion(AffineSolver):
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

    def plan(self, sde: SDE, times: Tensor) -> Sequence[AffineStep]:
        """x ← (2 − ρ) x + ½ (1 + η²) v s + η √v z;  `t_next < t` unless η = 0."""
        log_mean, std, half_log_snr = sde.log_mean_coef(times), sde.std(times), sde.half_log_snr(times)
        fall = torch.expm1(-log_mean.diff())  # ρ − 1
        added = -(std[:-1] ** 2) * torch.expm1(-2 * half_log_snr.diff())
        pull = 0.5 * (1 + self.eta**2) * added
        spread = self.eta * added.sqrt() if self.stochastic else torch.zeros_like(added)
        return affine(times, 1 - fall, pull, spread)
