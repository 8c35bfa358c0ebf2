"""A weighting that is learned with the model: each noise level is divided by the loss that is expected there.

Reference: Kendall et al. 2018, arXiv:1705.07115, section 3; Karras et al. 2024 (EDM2), arXiv:2312.02696, eqs. 14–16.
"""

import math
from dataclasses import dataclass

from torch import Tensor, nn

from sde_diffusion.errors import require
from sde_diffusion.losses.edm import EDMWeighting
from sde_diffusion.losses.noised import DSMLoss
from sde_diffusion.losses.weighting import Weighting
from sde_diffusion.networks.embedding import GaussianFourier
from sde_diffusion.sde import SDE


class LogVariance(nn.Module):
    """u(t), linear in random Fourier features of c_noise = −λ/4; 0 at the start.

    Args:
        features: Number of features, even.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.waves = GaussianFourier(features, scale=2 * math.pi)
        self.weight = nn.Linear(features, 1)
        nn.init.zeros_(self.weight.weight)
        nn.init.zeros_(self.weight.bias)

    def forward(self, sde: SDE, t: Tensor) -> Tensor:
        """(B,) -> (B,)."""
        u: Tensor = self.weight(self.waves(-0.25 * sde.half_log_snr(t)))
        return u[:, 0]


@dataclass(frozen=True)
class UncertaintyWeighting(Weighting):
    """λ = e^{−u(t)} λ_base with a learned u(t): no noise level dominates the gradient, whatever its loss.

    Training descends ∫ e^{−u} λ_base/σ² E[mean_D ρ] + p u dt, p the proposal of the base. Its minimum over u is the
    logarithm of the base's loss at t over p, so that in the end the base decides by p alone how much a noise level
    counts: uniformly in t, or as `edm` says. What is reported and validated is the loss of the base, which runs share;
    the log has what is descended (`trained_loss`) and u(t) beside it.

    Attributes:
        base: The weighting at the start. The default is EDM2's; with `log_normal` of the same law it is its training.
        features: Number of Fourier features of u.

    Reference: Karras et al. 2024, arXiv:2312.02696, eqs. 14–16; Kendall et al. 2018, arXiv:1705.07115, section 3.
    """

    base: Weighting = EDMWeighting(p_mean=-0.4, p_std=1.0)
    features: int = 128

    def __post_init__(self) -> None:
        even = self.features > 0 and self.features % 2 == 0
        require(even, f"`features` must be even and ≥ 2, got {self.features}")
        require(self.base.part() is None, "`base` must be a weighting without a learned part, got `uncertainty` again")

    def __call__(self, sde: SDE, t: Tensor) -> Tensor:
        return self.base(sde, t)

    def of_eps(self, sde: SDE, t: Tensor) -> Tensor:
        return self.base.of_eps(sde, t)

    def proposal(self, sde: SDE, t: Tensor) -> Tensor:
        return self.base.proposal(sde, t)

    def part(self) -> LogVariance:
        return LogVariance(self.features)

    def check(self, sde: SDE) -> None:
        self.base.check(sde)


def learned_loss(sde: SDE, weighting: Weighting, log_variance: nn.Module, terms: DSMLoss) -> Tensor:
    """e^{−u} ℓ + u p/r, (B,): what is descended in place of the loss ℓ, whose division by r it has already."""
    u: Tensor = log_variance(sde, terms.t)
    return u.neg().exp() * terms.loss + u * weighting.proposal(sde, terms.t) / terms.density
