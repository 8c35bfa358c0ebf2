"""The sub-variance-preserving process: VP's mean with a smaller variance, favoured for likelihoods."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sde_diffusion.sde.base import SDE
from sde_diffusion.sde.beta import BetaSchedule, LinearBeta


@dataclass(frozen=True)
class SubVPSDE(SDE):
    """dx = −½ β(t) x dt + √(β(t)(1 − e^{−2B(t)})) dw:  a = e^{−B/2},  std = 1 − e^{−B},  B(t) = ∫₀ᵗ β.

    Attributes:
        beta: The schedule β(t).

    Reference: Song et al. 2021, arXiv:2011.13456, eqs. 28 and 29.
    """

    beta: BetaSchedule = LinearBeta()

    def log_mean_coef(self, t: Tensor) -> Tensor:
        return -0.5 * self.beta.integral(t)

    def std(self, t: Tensor) -> Tensor:
        return -torch.expm1(-self.beta.integral(t))

    def drift_coef(self, t: Tensor) -> Tensor:
        return -0.5 * self.beta.rate(t)

    def diffusion(self, t: Tensor) -> Tensor:
        return torch.sqrt(self.beta.rate(t) * -torch.expm1(-2 * self.beta.integral(t)))

    @property
    def prior_std(self) -> float:
        return 1.0
