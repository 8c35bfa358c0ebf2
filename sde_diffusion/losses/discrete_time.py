"""Times on the levels of a chain, as DDPM was trained."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sde_diffusion.errors import InputError, require
from sde_diffusion.losses.time_sampling import TimeSampler
from sde_diffusion.losses.weighting import Weighting
from sde_diffusion.sde import SDE


@dataclass(frozen=True)
class DiscreteTime(TimeSampler):
    """t = k/T with k uniform on 1 … T, the levels of a chain. With the weighting `simple` this is DDPM's L_simple.

    r is 1 relative to that law, so the loss estimates (1/T) Σ_k λ/σ² E ρ, a mean over the levels: the Riemann sum of
    the integral of other time samplers at the right ends of T intervals. The two differ by O(1/T) where λ/σ² varies
    little from level to level; for `likelihood`, whose λ/σ² falls as 1/t, level 1 alone differs by as much as it is.

    Reference: Ho et al. 2020, arXiv:2006.11239, algorithm 1 and eq. 14.
    """

    def on_levels(self, sde: SDE) -> bool:
        return True

    def check(self, sde: SDE, weighting: Weighting, *, draws: int) -> None:
        require_levels(sde, "discrete")

    def draw(self, sde: SDE, weighting: Weighting, u: Tensor) -> tuple[Tensor, Tensor]:
        """See `TimeSampler.draw`.

        Raises:
            InputError: A process without levels, or that leaves some of them out.
        """
        levels = require_levels(sde, "discrete")
        return (torch.floor(u * levels) + 1) / levels, torch.ones_like(u)


def require_levels(sde: SDE, name: str) -> int:
    """T of a process whose levels the time sampler `name` draws.

    Raises:
        InputError: A process without levels, or that leaves some of them out.
    """
    if sde.levels is None:
        raise InputError(
            f"the time sampler `{name}` needs a process with levels, such as ddpm, and this one has none; take "
            f"uniform, or another"
        )
    require(
        sde.levels * sde.t_min < 1 + 1e-6,
        f"`sde.t_min` must be ≤ 1/{sde.levels}, where the time sampler `{name}` has level 1, got {sde.t_min}",
    )
    return sde.levels
