"""Weightings λ(t) of the score error in denoising score matching.

The loss is ∫ λ(t) E‖s_θ − ∇ log p(x_t | x_0)‖² / D dt; with ∇ log p(x_t | x_0) = −ε/σ the error of ε carries λ/σ², and
that of x0, which is (σ/a)² times the one of ε, carries λ a²/σ⁴.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sde_diffusion.errors import require_positive
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

    def proposal(self, sde: SDE, t: Tensor) -> Tensor:
        """The density of times in which the weighting counts noise levels; uniform, unless it says otherwise."""
        return torch.full_like(t, 1 / (sde.t_max - sde.t_min))

    def part(self) -> nn.Module | None:
        """What is trained beside the model for this weighting, u(sde, t); None if nothing is. See `uncertainty`."""
        return None

    def check(self, sde: SDE) -> None:  # noqa: B027  most work for all
        """Raise `InputError` if it cannot work for this process."""


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


@dataclass(frozen=True)
class NoiseRatioWeighting(Weighting):
    """A weight of the error of ε that depends on q = σ²/a² = 1/SNR alone, and so on no detail of the process.

    A weight w of the error of x0 is q w of the error of ε.
    """

    @abstractmethod
    def of_ratio(self, q: Tensor) -> Tensor:
        """λ/σ² at q = σ²/a² > 0, shape of `q`."""

    def of_eps(self, sde: SDE, t: Tensor) -> Tensor:
        return self.of_ratio((sde.std(t) / sde.mean_coef(t)) ** 2)

    def __call__(self, sde: SDE, t: Tensor) -> Tensor:
        return self.of_eps(sde, t) * sde.std(t) ** 2


@dataclass(frozen=True)
class MinSNRWeighting(NoiseRatioWeighting):
    """λ/σ² = min(SNR, γ)/SNR, min(SNR, γ) of the error of x0: simple, but falling with the noise where SNR > γ.

    Attributes:
        gamma: γ, the SNR at which it turns.

    Reference: Hang et al. 2023, arXiv:2303.09556, section 3.4.
    """

    gamma: float = 5.0

    def __post_init__(self) -> None:
        require_positive(gamma=self.gamma)

    def of_ratio(self, q: Tensor) -> Tensor:
        return (self.gamma * q).clamp(max=1)


@dataclass(frozen=True)
class SoftMinSNRWeighting(NoiseRatioWeighting):
    """λ/σ² = γ/(γ + SNR), γ SNR/(γ + SNR) of the error of x0: `min_snr` without its kink.

    Attributes:
        gamma: γ; the 4 of the paper is 1/σ_d² for data of standard deviation σ_d = ½.

    Reference: Crowson et al. 2024 (HDiT), arXiv:2401.11605, the loss weighting "soft-min-snr".
    """

    gamma: float = 4.0

    def __post_init__(self) -> None:
        require_positive(gamma=self.gamma)

    def of_ratio(self, q: Tensor) -> Tensor:
        return self.gamma * q / (1 + self.gamma * q)


@dataclass(frozen=True)
class TruncatedSNRWeighting(NoiseRatioWeighting):
    """λ/σ² = max(SNR, 1)/SNR: the larger of the errors of ε and of x0, so that x̂0 is learnt at high noise too.

    Reference: Salimans & Ho 2022, arXiv:2202.00512, section 4, "truncated SNR".
    """

    def of_ratio(self, q: Tensor) -> Tensor:
        return q.clamp(min=1)


@dataclass(frozen=True)
class SNRPlusOneWeighting(NoiseRatioWeighting):
    """λ/σ² = (SNR + 1)/SNR: the errors of ε and of x0 together; for VP that of v.

    Reference: Salimans & Ho 2022, arXiv:2202.00512, section 4, "SNR+1".
    """

    def of_ratio(self, q: Tensor) -> Tensor:
        return 1 + q


@dataclass(frozen=True)
class P2Weighting(NoiseRatioWeighting):
    """λ/σ² = 1/(k + SNR)^γ, perception-prioritised: little weight on the low noise that the eye does not see.

    For γ = 1 it is `soft_min_snr` with γ = k, but for the constant k.

    Attributes:
        k: Bounds the weight at high noise by k^−γ.
        gamma: γ, how fast the weight falls where SNR > k.

    Reference: Choi et al. 2022, arXiv:2204.00227, section 3.3.
    """

    k: float = 1.0
    gamma: float = 1.0

    def __post_init__(self) -> None:
        require_positive(k=self.k, gamma=self.gamma)

    def of_ratio(self, q: Tensor) -> Tensor:
        return (q / (1 + self.k * q)) ** self.gamma
