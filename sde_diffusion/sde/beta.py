"""Noise rates β(t) of the variance-preserving processes, each with its exact integral B(t) = ∫₀ᵗ β.

B must be right to the last digits of float32 near t = 0, where std = √(1 − e^{−B}) ≈ √B.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_diffusion.errors import require, require_positive


@dataclass(frozen=True)
class BetaSchedule(ABC):
    """β(t) ≥ 0 on t ∈ [0, 1], in units of 1/time."""

    @abstractmethod
    def rate(self, t: Tensor) -> Tensor:
        """β(t), shape of `t`."""

    @abstractmethod
    def integral(self, t: Tensor) -> Tensor:
        """B(t) = ∫₀ᵗ β(u) du, shape of `t`."""


@dataclass(frozen=True)
class LinearBeta(BetaSchedule):
    """β(t) = β_min + t (β_max − β_min): the limit of DDPM's 1e-4 … 0.02 over 1000 steps.

    Attributes:
        min: β(0), > 0.
        max: β(1), ≥ `min`.

    Reference: Song et al. 2021, arXiv:2011.13456, eq. 32.
    """

    min: float = 0.1
    max: float = 20.0

    def __post_init__(self) -> None:
        require_positive(min=self.min, max=self.max)
        require(self.min <= self.max, f"`max` must be ≥ `min` = {self.min}, got {self.max}")

    def rate(self, t: Tensor) -> Tensor:
        return self.min + t * (self.max - self.min)

    def integral(self, t: Tensor) -> Tensor:
        return t * (self.min + 0.5 * t * (self.max - self.min))


@dataclass(frozen=True)
class CosineBeta(BetaSchedule):
    """The cosine ᾱ(t) = cos²(φ(t)) / cos²(φ(0)), φ(t) = ½π (t + s)/(1 + s), with β capped.

    β(t) = −d log ᾱ/dt = π/(1 + s) · tan φ(t) diverges at t = 1; past the time where it reaches `max` it stays there.
    The default cap, 999, is the published β_i ≤ 0.999 over 1000 steps.

    Attributes:
        offset: The s of the formula, which keeps β from vanishing at t = 0.
        max: Largest β.

    Reference: Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 17.
    """

    offset: float = 0.008
    max: float = 999.0

    def __post_init__(self) -> None:
        require(self.offset >= 0, f"`offset` must be ≥ 0, got {self.offset}")
        least = self._speed * 2 * math.tan(self._phase)
        require(self.max > least, f"`max` must be > β(0) = {least:.4g}, got {self.max}")

    @property
    def _speed(self) -> float:  # dφ/dt
        return 0.5 * math.pi / (1 + self.offset)

    @property
    def _phase(self) -> float:  # φ(0)
        return self._speed * self.offset

    @property
    def _cap_left(self) -> float:  # 1 − t where β reaches `max`
        return math.atan(2 * self._speed / self.max) / self._speed

    def rate(self, t: Tensor) -> Tensor:
        # tan φ(t) = cot(½π − φ(t)) and ½π − φ(t) = speed · (1 − t): each half is well conditioned where it is used
        left = (1 - t).clamp(min=self._cap_left)
        early = torch.tan(self._phase + self._speed * t.clamp(max=0.5))
        return 2 * self._speed * torch.where(t < 0.5, early, 1 / torch.tan(self._speed * left))

    def integral(self, t: Tensor) -> Tensor:
        # cos φ(t) / cos φ(0) = 1 − (2 sin²(½·angle) + tan φ(0) sin(angle)): no cancellation as t → 0
        left = (1 - t).clamp(min=self._cap_left)
        angle = self._speed * t.clamp(max=0.5)
        fall = 2 * torch.sin(0.5 * angle) ** 2 + math.tan(self._phase) * torch.sin(angle)
        late = torch.log(torch.sin(self._speed * left) / math.cos(self._phase))
        return -2 * torch.where(t < 0.5, torch.log1p(-fall), late) + self.max * (left - (1 - t))
