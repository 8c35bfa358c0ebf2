"""Weightings λ(t) of the score error in denoising score matching.

The loss is ∫ λ(t) E‖s_θ − ∇ log p(x_t | x_0)‖² / D dt; with ∇ log p(x_t | x_0) = −ε/σ the error of ε carries λ/σ².
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_diffusion.sde import SDE


@dataclass(frozen=True)
class Weighting(ABC):
    """A positive weight of the squared score error at time t."""

    @abstractmethod
    def __call__(self, sde: SDE, t: Tensor) -> Tensor:
        """λ(t) > 0, shape of `t`."""

    def of_eps(self, sde: SDE, t: Tensor) -> Tensor:
        """λ(t)/σ(t)², the weight of the squared error of ε, shape of `t`."""
        return self(sde, t) / sde.std(t) ** 2


@dataclass(frozen=True)
class SimpleWeighting(Weighting):
    """λ = σ²: the plain error of ε, DDPM's L_simple; favours pictures.

    Reference: Ho et al. 2020, arXiv:2006.11239, eq. 14.
    """

    def __call__(self, sde: SDE, t: Tensor) -> Tensor:
        return sde.std(t) ** 2

    def of_eps(self, sde: SDE, t: Tensor) -> Tensor:
        return torch.ones_like(t)


@dataclass(frozen=True)
class LikelihoodWeighting(Weighting):
    """λ = g² (β(t) for VP): the loss bounds the negative log-likelihood; favours bits/dim.

    Reference: Song et al. 2021b, arXiv:2101.09258, theorem 1.
    """

    def __call__(self, sde: SDE, t: Tensor) -> Tensor:
        return sde.diffusion(t) ** 2
