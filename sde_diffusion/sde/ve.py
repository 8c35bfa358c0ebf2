"""The variance-exploding process, the continuous limit of NCSN's noise levels."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_diffusion.errors import require, require_positive
from sde_diffusion.sde.base import SDE


@dataclass(frozen=True)
class VESDE(SDE):
    """dx = σ(t) √(2 log(σ_max/σ_min)) dw:  a = 1,  std = σ(t) = σ_min (σ_max/σ_min)^t.

    At t = 0 the standard deviation is σ_min, not zero: "data" at t = 0 already carries that noise.

    Attributes:
        sigma_min: Standard deviation of the noise at t = 0.
        sigma_max: Standard deviation of the noise at t = 1.

    Reference: Song et al. 2021, arXiv:2011.13456, eqs. 9, 30 and 31.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def __post_init__(self) -> None:
        require_positive(sigma_min=self.sigma_min, sigma_max=self.sigma_max)
        require(
            self.sigma_min < self.sigma_max,
            f"`sigma_max` must be > `sigma_min` = {self.sigma_min}, got {self.sigma_max}",
        )
        super().__post_init__()

    @property
    def _log_ratio(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def log_mean_coef(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def std(self, t: Tensor) -> Tensor:
        return self.sigma_min * torch.exp(self._log_ratio * t)

    def drift_coef(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def diffusion(self, t: Tensor) -> Tensor:
        return self.std(t) * math.sqrt(2 * self._log_ratio)

    @property
    def prior_std(self) -> float:
        return self.sigma_max * math.exp(self._log_ratio * (self.t_max - 1))
