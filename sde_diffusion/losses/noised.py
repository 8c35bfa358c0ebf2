"""A batch as a loss sees it: clean data, random times and noise, and what the model says there.

Reference: Song et al. 2021, arXiv:2011.13456, eq. 7.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sde_diffusion.losses.time_sampling import TimeSampler
from sde_diffusion.losses.weighting import Weighting
from sde_diffusion.registry import lookup
from sde_diffusion.rng import Draws, draws_of
from sde_diffusion.score import ScoreFn, score_and_fraction
from sde_diffusion.sde import SDE
from sde_diffusion.tensors import expand, flat_mean

DISTANCES: dict[str, Callable[[Tensor], Tensor]] = {
    "l2": torch.square,
    "l1": torch.abs,
    "huber": lambda error: F.huber_loss(error, torch.zeros_like(error), reduction="none"),
}
"""ρ(e) elementwise: e², |e|, and Huber's ½e² for |e| ≤ 1, |e| − ½ beyond."""


class DSMLoss(NamedTuple):
    """One draw of the loss for a batch.

    Attributes:
        loss: λ/(σ² r) · mean_D ρ, (B,); its mean estimates the integral.
        error: mean_D ρ(σ s_θ + ε) alone, (B,).
        t: The times drawn, (B,).
        density: r(t), (B,); loss · r is the integrand at t.
        trained: What training descends, (B,); the loss itself, unless its weighting is learned.
    """

    loss: Tensor
    error: Tensor
    t: Tensor
    density: Tensor
    trained: Tensor

    def mean(self) -> Tensor:
        """The mean of `trained`, (): what an optimizer descends."""
        return self.trained.mean()


@dataclass(frozen=True, eq=False)
class Noised:
    """Times and noise that were drawn for a batch, and how far the model's estimate of the noise is off.

    Attributes:
        sde: The process.
        x0: Clean data, (B, *D).
        t: Times, (B,).
        density: r(t), (B,).
        residual: σ s_θ(x_t, t) + ε = ε − ε̂, (B, *D).
        fraction: v of the variance of a reverse step, (B, *D), of a model of two heads; otherwise None.
    """

    sde: SDE
    x0: Tensor
    t: Tensor
    density: Tensor
    residual: Tensor
    fraction: Tensor | None = None

    def error(self, distance: str) -> Tensor:
        """mean_D ρ(ε − ε̂), (B,), for ρ a row of `DISTANCES`."""
        return flat_mean(lookup(DISTANCES, distance, "distance")(self.residual))

    def loss(self, integrand: Tensor, error: Tensor) -> DSMLoss:
        """The loss of an `integrand` at the times, (B,): the one place that divides by their density."""
        loss = integrand / self.density
        return DSMLoss(loss, error, self.t, self.density, trained=loss)


def noised(
    score_fn: ScoreFn,
    sde: SDE,
    x0: Tensor,
    *,
    weighting: Weighting,
    time_sampler: TimeSampler,
    generator: torch.Generator | Draws,
    variance: bool = False,
) -> Noised:
    """Draw t ~ r and ε ~ N(0, I), and ask the model at x_t = a x0 + σ ε. One score evaluation.

    Args:
        x0: Clean data, (B, *D), on the generator's device.
        weighting: λ(t), which some time samplers follow.
        time_sampler: r(t).
        generator: Source of t and ε: of a whole batch, or of the rows of one that `x0` are.
        variance: Whether the model is asked for the variance of a reverse step too.

    Raises:
        InputError: A variance is asked for, and the model has one head.
    """
    draws = draws_of(generator, len(x0))
    t, density = time_sampler(sde, weighting, len(x0), generator=draws)
    eps = draws.normal(x0.shape[1:], x0.dtype)
    x_t = sde.perturb(x0, t, eps)
    score, fraction = score_and_fraction(score_fn, x_t, t) if variance else (score_fn(x_t, t), None)
    return Noised(sde, x0, t, density, residual(sde, score, t, eps), fraction)


def residual(sde: SDE, score: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """ε − ε̂ = σ s + ε, (B, *D)."""
    return expand(sde.std(t), eps) * score + eps
