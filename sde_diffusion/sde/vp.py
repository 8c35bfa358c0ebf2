"""The variance-preserving process, the continuous limit of DDPM."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sde_diffusion.sde.base import SDE
from sde_diffusion.sde.beta import BetaSchedule, LinearBeta


@dataclass(frozen=True)
class VPSDE(SDE):
    """dx = −½ β(t) x dt + √β(t) dw:  a = e^{−B/2},  std² = 1 − e^{−B},  B(t) = ∫₀ᵗ β.

    Reference: Song et al. 2021, arXiv:2011.13456, eqs. 11 and 29.
    """

    beta: BetaSchedule = LinearBeta()

    def log_mean_coef(self, t: Tensor) -> Tensor:
        return -0.5 * self.beta.integral(t)

    def std(self, t: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(-self.beta.integral(t)))

    def drift_coef(self, t: Tensor) -> Tensor:
        return -0.5 * self.beta.rate(t)

    def diffusion(self, t: Tensor) -> Tensor:
        return torch.sqrt(self.beta.rate(t))

    @property
    def prior_std(self) -> float:
        return 1.0
