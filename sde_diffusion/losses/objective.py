"""What training descends: the weighted error of ε, or with it the variational bound of a chain, term by term.

With a learned variance Σ = exp(v log β + (1 − v) log β̃) the bound L_vlb = L_0 + Σ_{k ≥ 2} L_{k−1} of a chain has terms

    L_{k−1} = KL(q(x_{k−1} | x_k, x_0) ‖ p(x_{k−1} | x_k)),    L_0 = −log p(x_0 | x_1)

in bits/dim, of which T L_k/r at one random level is an unbiased estimate; L_T, which nothing trains, is left out.

Reference: Nichol & Dhariwal 2021, arXiv:2102.09672, sections 3.1 and 3.3.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from sde_diffusion.bin_mass import log_bin_mass, log_density
from sde_diffusion.errors import require, require_positive
from sde_diffusion.losses.noised import DSMLoss, Noised, noised
from sde_diffusion.losses.time_sampling import TimeSampler
from sde_diffusion.losses.weighting import Weighting
from sde_diffusion.rng import Draws
from sde_diffusion.score import ScoreFn
from sde_diffusion.sde import SDE
from sde_diffusion.sde.chain import DiscreteChain
from sde_diffusion.tensors import flat_sum


@dataclass(frozen=True)
class Objective(ABC):
    """A loss of a score function at random times and noise."""

    learns_variance: ClassVar[bool]

    def __call__(
        self,
        score_fn: ScoreFn,
        sde: SDE,
        x0: Tensor,
        *,
        weighting: Weighting,
        time_sampler: TimeSampler,
        generator: torch.Generator | Draws,
        distance: str = "l2",
        levels: int | None = None,
    ) -> DSMLoss:
        """Each sample's share of the loss at random times and noise; see `noised`. One score evaluation.

        Args:
            distance: ρ, a row of `DISTANCES`.
            levels: L of discrete data, which L_0 decodes; None for a density of x_0.
        """
        drawn = noised(
            score_fn,
            sde,
            x0,
            weighting=weighting,
            time_sampler=time_sampler,
            generator=generator,
            variance=self.learns_variance,
        )
        error = drawn.error(distance)
        return drawn.loss(self.integrand(drawn, weighting.of_eps(sde, drawn.t) * error, levels), error)

    @abstractmethod
    def integrand(self, drawn: Noised, weighted: Tensor, levels: int | None) -> Tensor:
        """The loss of each sample before it is divided by the density of its time, (B,).

        Args:
            drawn: What was drawn, and what the model said.
            weighted: λ/σ² · mean_D ρ, (B,).
            levels: As in `__call__`.
        """

    def check(self, sde: SDE, time_sampler: TimeSampler, *, learned_variance: bool) -> None:
        """Refuse what this loss cannot train.

        Raises:
            InputError: A model with another number of heads than the loss trains, a process without levels, or times
                that are none, where the loss is that of a chain.
        """
        require(
            learned_variance or not self.learns_variance,
            "`loss.objective` trains a variance, but the model has one head; set model.learned_variance = true, or "
            "loss.objective = denoising",
        )
        require(
            self.learns_variance or not learned_variance,
            "`model.learned_variance` must be false for loss.objective = denoising, which does not train the variance; "
            "take loss.objective = hybrid or vlb",
        )
        if self.learns_variance:
            require(
                sde.levels is not None,
                "`loss.objective` is a bound of a chain, and the process has no levels; take sde = ddpm",
            )
            require(
                time_sampler.on_levels(sde),
                "`loss.time_sampler` must draw the levels of the chain for this loss.objective; take discrete or "
                "loss_second_moment",
            )


@dataclass(frozen=True)
class Denoising(Objective):
    """λ/(σ² r) · mean_D ρ(ε̂ − ε), the weighted error of ε.

    Reference: Song et al. 2021, arXiv:2011.13456, eq. 7.
    """

    learns_variance: ClassVar[bool] = False

    def integrand(self, drawn: Noised, weighted: Tensor, levels: int | None) -> Tensor:
        return weighted


@dataclass(frozen=True)
class Hybrid(Objective):
    """The weighted error of ε plus `vlb_weight` · T L_k [bits/dim], whose gradient reaches the variance alone.

    With the weighting `simple` this is L_hybrid = L_simple + 0.001 L_vlb.

    Attributes:
        vlb_weight: Weight of the variational bound.

    Reference: Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 16.
    """

    learns_variance: ClassVar[bool] = True

    vlb_weight: float = 0.001

    def __post_init__(self) -> None:
        require_positive(vlb_weight=self.vlb_weight)

    def integrand(self, drawn: Noised, weighted: Tensor, levels: int | None) -> Tensor:
        return weighted + self.vlb_weight * _bound(drawn, drawn.residual.detach(), levels)


@dataclass(frozen=True)
class VLB(Objective):
    """T L_k [bits/dim] alone: mean and variance descend the bound. Noisy, so it wants the times `loss_second_moment`.

    The weighting and the distance have no part in it.

    Reference: Nichol & Dhariwal 2021, arXiv:2102.09672, section 3.3.
    """

    learns_variance: ClassVar[bool] = True

    def integrand(self, drawn: Noised, weighted: Tensor, levels: int | None) -> Tensor:
        return _bound(drawn, drawn.residual, levels)


def vlb_term(
    sde: SDE, x0: Tensor, t: Tensor, residual: Tensor, fraction: Tensor | None, *, levels: int | None = None
) -> Tensor:
    """T L_k in bits/dim at the level k = T t of each sample, whose mean over uniform levels is L_vlb, (B,).

    Args:
        x0: Clean data, (B, *D); of discrete data anywhere in their bins.
        t: Times k/T, (B,).
        residual: ε − ε̂, (B, *D).
        fraction: v of the variance, (B, *D).
        levels: L of discrete data, decoded by the mass of their bins; None for a density of x_0.
    """
    assert fraction is not None, "the bound needs the variance of a model of two heads"
    chain = _chain(sde)
    level = (t.double() * chain.steps).round().long()
    nats = flat_sum(chain.divergence(level.clamp(min=2), residual**2, fraction))
    (first,) = (level == 1).nonzero(as_tuple=True)
    if len(first):
        exact = x0[first].double()
        mean = exact + float(chain.std[0] / chain.mean_coef[0]) * residual[first].double()  # x̂0 = x0 + (σ/a)(ε − ε̂)
        std = chain.decoder_std(fraction[first].double())
        if levels is None:
            decoded = log_density(exact, mean, std)
        else:
            n = ((exact + 1) * (levels / 2)).floor().clamp(0, levels - 1)
            decoded = log_bin_mass(n, levels, mean, std)
        nats = nats.index_copy(0, first, -flat_sum(decoded).to(nats))
    return chain.steps * nats / (x0[0].numel() * math.log(2))


def _bound(drawn: Noised, residual: Tensor, levels: int | None) -> Tensor:
    return vlb_term(drawn.sde, drawn.x0, drawn.t, residual, drawn.fraction, levels=levels)


@lru_cache(maxsize=8)
def _chain(sde: SDE) -> DiscreteChain:
    return DiscreteChain.of_levels(sde)
