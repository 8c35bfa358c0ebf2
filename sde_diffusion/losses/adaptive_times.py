"""Times drawn as often as their losses ask for: importance sampling by what was seen of the loss."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sde_diffusion.errors import require, require_positive
from sde_diffusion.losses.discrete_time import require_levels
from sde_diffusion.losses.time_sampling import TimeSampler
from sde_diffusion.losses.weighting import Weighting
from sde_diffusion.sde import SDE


@dataclass(frozen=True)
class SecondMomentTime(TimeSampler):
    """r ∝ √E[ℓ²] by the last losses ℓ = λ/σ² · mean_D ρ of each noise level, and a little of the uniform density.

    The levels are those of the chain for a process that has them, t = k/T, and else equal bins of time with uniform
    draws inside. Until every level has its full history the draws are uniform. The density is that of the draws, so the
    loss is unbiased at all times. A weight that varies much inside a bin, as g² does at t → 0, wants `importance`.

    Attributes:
        bins: Number of bins of a process without levels.
        history: Losses remembered for each level.
        uniform: Share of the uniform density.
        stratified: One draw in each of B strata of equal probability.

    Reference: Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 18 and section 3.3.
    """

    bins: int = 100
    history: int = 10
    uniform: float = 0.001
    stratified: bool = True

    def __post_init__(self) -> None:
        require_positive(bins=self.bins, history=self.history)
        require(0 < self.uniform <= 1, f"`uniform` must be in (0, 1], got {self.uniform}")

    def check(self, sde: SDE, weighting: Weighting, *, draws: int) -> None:
        levels = require_levels(sde, "loss_second_moment") if self.on_levels(sde) else self.bins
        require(
            draws >= levels * self.history,
            f"`loss_second_moment` must see each of {levels} levels {self.history} times before it learns, "
            f"got {draws} draws in all; give more training.steps, a larger training.batch, or fewer `bins`",
        )

    @property
    def in_strata(self) -> bool:
        return self.stratified

    def on_levels(self, sde: SDE) -> bool:
        return sde.levels is not None

    def initial_state(self, sde: SDE) -> Tensor:
        """How many losses each level has seen, and the last of them, (levels, 1 + history)."""
        return torch.zeros(sde.levels or self.bins, 1 + self.history, dtype=torch.float64)

    def at(self, state: Tensor | None) -> TimeSampler:
        return self if state is None else _Levels(self, self.probabilities(state))

    def probabilities(self, state: Tensor) -> Tensor:
        """The share of draws at each level, (levels,)."""
        seen, losses = state[:, 0], state[:, 1:]
        even = torch.full_like(seen, 1 / len(seen))
        moment = losses.square().mean(1).sqrt()
        learnt = (1 - self.uniform) * moment / moment.sum() + self.uniform * even
        return torch.where((seen >= self.history).all() & (moment.sum() > 0), learnt, even)

    def draw(self, sde: SDE, weighting: Weighting, u: Tensor) -> tuple[Tensor, Tensor]:
        return self.at(self.initial_state(sde).to(u.device)).draw(sde, weighting, u)

    def updated(self, sde: SDE, state: Tensor, t: Tensor, *, loss: Tensor) -> Tensor:
        level, order = _level_of(sde, len(state), t).sort(stable=True)
        rank = torch.arange(len(t), device=t.device) - torch.searchsorted(level, level)  # among those of its level
        count = torch.zeros(len(state), dtype=torch.int64, device=t.device).index_add(0, level, torch.ones_like(level))
        last = rank >= count[level] - self.history  # only these are kept, so no place is written twice
        place = 1 + (state[level, 0].long() + rank) % self.history
        new = state.clone()
        new[level[last], place[last]] = loss[order][last].to(state)
        new[:, 0] += count
        return new


@dataclass(frozen=True, eq=False)
class _Levels(TimeSampler):
    """Times at the levels of `sampler` with given probabilities, (levels,) float64."""

    sampler: SecondMomentTime
    probabilities: Tensor

    @property
    def in_strata(self) -> bool:
        return self.sampler.in_strata

    def on_levels(self, sde: SDE) -> bool:
        return self.sampler.on_levels(sde)

    def draw(self, sde: SDE, weighting: Weighting, u: Tensor) -> tuple[Tensor, Tensor]:
        count = len(self.probabilities)
        cdf = torch.cat([torch.zeros_like(u[:1]), self.probabilities.cumsum(0)])
        level = (torch.searchsorted(cdf, u, right=True) - 1).clamp(0, count - 1)
        share = self.probabilities[level]
        if self.on_levels(sde):
            return (level + 1).double() / count, count * share
        span = sde.t_max - sde.t_min
        return sde.t_min + span / count * (level + (u - cdf[level]) / share), count * share / span


def _level_of(sde: SDE, count: int, t: Tensor) -> Tensor:
    """The level of each time, (B,) int64."""
    if sde.levels:
        return (t.double() * count).round().long() - 1
    return ((t.double() - sde.t_min) / (sde.t_max - sde.t_min) * count).long().clamp(0, count - 1)
