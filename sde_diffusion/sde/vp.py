"""The variance-preserving processes, the continuous limit of DDPM."""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_diffusion.sde.base import SDE
from sde_diffusion.sde.beta import BetaSchedule, LinearBeta


@dataclass(frozen=True)
class VariancePreserving(SDE):
    """dx = −½ β(t) x dt + √β(t) dw for any β(t) and its integral B(t) = ∫₀ᵗ β:  a = e^{−B/2},  std² = 1 − e^{−B}."""

    @abstractmethod
    def rate(self, t: Tensor) -> Tensor:
        """β(t), shape of `t`."""

    @abstractmethod
    def integral(self, t: Tensor) -> Tensor:
        """B(t), shape of `t`."""

    def log_mean_coef(self, t: Tensor) -> Tensor:
        return -0.5 * self.integral(t)

    def std(self, t: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(-self.integral(t)))

    def drift_coef(self, t: Tensor) -> Tensor:
        return -0.5 * self.rate(t)

    def diffusion(self, t: Tensor) -> Tensor:
        return torch.sqrt(self.rate(t))

    @property
    def prior_std(self) -> float:
        return 1.0


@dataclass(frozen=True)
class VPSDE(VariancePreserving):
    """dx = −½ β(t) x dt + √β(t) dw:  a = e^{−B/2},  std² = 1 − e^{−B},  B(t) = ∫₀ᵗ β.

    Attributes:
        beta: The schedule β(t).

    Reference: Song et al. 2021, arXiv:2011.13456, eqs. 11 and 29.
    """

    beta: BetaSchedule = LinearBeta()

    def rate(self, t: Tensor) -> Tensor:
        return self.beta.rate(t)

    def integral(self, t: Tensor) -> Tensor:
        return self.beta.integral(t)
