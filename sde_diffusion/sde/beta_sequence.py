"""Noise rates β_1 … β_T of published chains, the share of the variance that each of T steps makes new.

Their ends do not scale with T: a chain of 300 steps leaves more of the data than one of 1000.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_diffusion.errors import require, require_positive


@dataclass(frozen=True)
class BetaSequence(ABC):
    """β_k ∈ (0, 1) for k = 1 … T, rising."""

    def __call__(self, steps: int) -> Tensor:
        """β_1 … β_T for T = `steps`, (T,) float64 on the CPU.

        Raises:
            InputError: `steps` < 1.
        """
        require_positive(steps=steps)
        return self.spread(steps)

    @abstractmethod
    def spread(self, steps: int) -> Tensor:
        """The same, for `steps` ≥ 1."""


@dataclass(frozen=True)
class _Between(BetaSequence):
    """β from `first` to `last`, which do not depend on T.

    Attributes:
        first: β_1, > 0.
        last: β_T, from `first` to 1.
    """

    first: float = 1e-4
    last: float = 0.02

    def __post_init__(self) -> None:
        require_positive(first=self.first)
        require(self.last < 1, f"`last` must be < 1, for β is the share of the variance made new, got {self.last}")
        require(self.first <= self.last, f"`last` must be ≥ `first` = {self.first}, got {self.last}")


@dataclass(frozen=True)
class LinearBetas(_Between):
    """β equally spaced, both ends included.

    Reference: Ho et al. 2020, arXiv:2006.11239, section 4.
    """

    def spread(self, steps: int) -> Tensor:
        return torch.linspace(self.first, self.last, steps, dtype=torch.float64)


@dataclass(frozen=True)
class QuadraticBetas(_Between):
    """√β equally spaced, both ends included.

    Reference: Ho et al. 2020, arXiv:2006.11239, published code.
    """

    def spread(self, steps: int) -> Tensor:
        return torch.linspace(math.sqrt(self.first), math.sqrt(self.last), steps, dtype=torch.float64) ** 2


@dataclass(frozen=True)
class SigmoidBetas(_Between):
    """β = first + (last − first) · sigmoid(u), u equally spaced in [−6, 6].

    Reference: Xu et al. 2022 (GeoDiff), arXiv:2203.02923, published code.
    """

    def spread(self, steps: int) -> Tensor:
        u = torch.linspace(-6, 6, steps, dtype=torch.float64)
        return self.first + (self.last - self.first) * torch.sigmoid(u)


@dataclass(frozen=True)
class CosineBetas(BetaSequence):
    """β_k = 1 − F(k/T)/F((k − 1)/T) held to [floor, cap], F(u) = cos²(½π (u + offset)/(1 + offset)).

    Attributes:
        offset: The offset in F, which keeps β_1 from vanishing.
        floor: Smallest β.
        cap: Largest β, < 1.

    Reference: Nichol & Dhariwal 2021, arXiv:2102.09672, section 3.2.
    """

    offset: float = 0.008
    floor: float = 0.0
    cap: float = 0.999

    def __post_init__(self) -> None:
        require(self.offset >= 0, f"`offset` must be ≥ 0, got {self.offset}")
        require(self.floor >= 0, f"`floor` must be ≥ 0, got {self.floor}")
        rule = f"in ({self.floor}, 1), for β is the share of the variance made new"
        require(self.floor < self.cap < 1, f"`cap` must be {rule}, got {self.cap}")

    def spread(self, steps: int) -> Tensor:
        u = torch.arange(steps + 1, dtype=torch.float64) / steps
        signal = torch.cos(0.5 * math.pi * (u + self.offset) / (1 + self.offset)) ** 2
        return (1 - signal[1:] / signal[:-1]).clamp(self.floor, self.cap)
