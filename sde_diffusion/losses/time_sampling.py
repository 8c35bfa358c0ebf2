"""Time samplers: densities r(t) on [t_min, t_max] from which training draws its times.

The loss divides by r, so every sampler estimates the same integral; they differ in variance alone.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from sde_diffusion.errors import require
from sde_diffusion.losses.weighting import Weighting
from sde_diffusion.rng import Draws, draws_of
from sde_diffusion.sde import SDE

WORST = 30.0  # draws that may be worth one of uniform


@dataclass(frozen=True)
class TimeSampler(ABC):
    """Draws times and tells their density.

    One that learns from the losses is a value as any other: what it has learnt is a tensor, its state, which the
    trainer keeps, saves and hands to `at`. By itself it draws as at the start.
    """

    def initial_state(self, sde: SDE) -> Tensor | None:
        """What it knows at the start, of any shape and dtype; None if it never learns."""
        return None

    def at(self, state: Tensor | None) -> "TimeSampler":
        """The time sampler that draws with what `state` knows."""
        return self

    def updated(self, sde: SDE, state: Tensor, t: Tensor, *, loss: Tensor) -> Tensor:
        """The state after a training step with the times `t`, (B,); a new tensor.

        Args:
            loss: λ/σ² · mean_D ρ at each of them, the loss without its division by r; (B,), no gradient.
        """
        return state

    def on_levels(self, sde: SDE) -> bool:
        """Whether it draws the levels k/T of a chain alone; r is then relative to drawing each with probability 1/T."""
        return False

    def check(self, sde: SDE, weighting: Weighting, *, draws: int) -> None:  # noqa: B027  most work for all
        """Raise `InputError` if it cannot work for this process and weighting, in a run of so many draws."""

    @abstractmethod
    def draw(self, sde: SDE, weighting: Weighting, u: Tensor) -> tuple[Tensor, Tensor]:
        """Times and their densities r(t) > 0 from independent uniform numbers `u` ∈ [0, 1), each (B,)."""

    @property
    def in_strata(self) -> bool:
        """Whether the uniform numbers of a batch of B are drawn one in each of B equal strata."""
        return False

    def __call__(
        self, sde: SDE, weighting: Weighting, count: int, *, generator: torch.Generator | Draws
    ) -> tuple[Tensor, Tensor]:
        """`count` times on the generator's device and their densities, each (B,) float32."""
        draws = draws_of(generator, count)
        u = draws.uniform((), torch.float64)
        u = stratify(u, draws.start, draws.total) if self.in_strata else u
        t, density = self.draw(sde, weighting, u)
        return t.float().clamp(sde.t_min, sde.t_max), density.float()


def stratify(u: Tensor, start: int, total: int) -> Tensor:
    """Move the uniform numbers of the rows `start`, `start` + 1, … of a batch of B each into a stratum of its own.

    Row i has [s/B, (s + 1)/B) with s = i m mod B, m prime to B and near B/φ, φ the golden ratio: so all strata are
    taken, any few rows in a row cover all times evenly, and a number stays uniform over a random place in the batch.
    """
    rows = torch.arange(start, start + len(u), device=u.device)
    return (rows * _stride(total) % total + u) / total


@lru_cache(maxsize=32)
def _stride(total: int) -> int:
    wanted = max(1, round(total * (math.sqrt(5) - 1) / 2))
    return next(stride for stride in range(wanted, 0, -1) if math.gcd(stride, total) == 1)


@dataclass(frozen=True)
class UniformTime(TimeSampler):
    """r = 1/(t_max − t_min), independent draws."""

    def draw(self, sde: SDE, weighting: Weighting, u: Tensor) -> tuple[Tensor, Tensor]:
        span = sde.t_max - sde.t_min
        return sde.t_min + span * u, torch.full_like(u, 1 / span)


@dataclass(frozen=True)
class StratifiedTime(UniformTime):
    """r = 1/(t_max − t_min), one draw in each of B equal strata: the batch covers all times evenly.

    Reference: Kingma et al. 2021, arXiv:2107.00630, appendix I.1 (there with one offset for the batch).
    """

    @property
    def in_strata(self) -> bool:
        return True


@dataclass(frozen=True)
class ImportanceTime(TimeSampler):
    """r ∝ λ/σ², the weight of the error of ε: each draw then weighs the same. For `simple` it is uniform.

    The density is tabulated: constant within each of 4096 cells, half of them uniform in t and half in log t. So r is
    the exact density of the draws, and the loss is unbiased whatever the table's resolution. The error of ε is taken to
    be the same at all times. Where a weight grows with the noise (`truncated_snr`, `snr_plus_one`) the draws then go
    where the error vanishes: training refuses that.

    Attributes:
        stratified: One draw in each of B strata of equal probability.

    Reference: Song et al. 2021b, arXiv:2101.09258, section 4.2, for VP in closed form; here for every process.
    """

    stratified: bool = True

    @property
    def in_strata(self) -> bool:
        return self.stratified

    def check(self, sde: SDE, weighting: Weighting, *, draws: int) -> None:
        require_worth(sde, weighting, lambda t: weighting.of_eps(sde, t), name="importance")

    def draw(self, sde: SDE, weighting: Weighting, u: Tensor) -> tuple[Tensor, Tensor]:
        edges, cdf = _tabulate(sde, weighting, u.device)
        cell = (torch.searchsorted(cdf, u, right=True) - 1).clamp(0, len(edges) - 2)
        width, mass = edges.diff()[cell], cdf.diff()[cell]
        return edges[cell] + (u - cdf[cell]) / mass * width, mass / width


@lru_cache(maxsize=32)
def _tabulate(sde: SDE, weighting: Weighting, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cell edges (cells + 1,) and the cumulative share of λ/σ² up to each, float64, once for a device."""
    edges = cell_edges(sde)
    middle = 0.5 * (edges[1:] + edges[:-1])
    cdf = torch.cat([torch.zeros(1, dtype=torch.float64), (weighting.of_eps(sde, middle) * edges.diff()).cumsum(0)])
    return edges.to(device), (cdf / cdf[-1]).to(device)


def cell_edges(sde: SDE, cells: int = 4096) -> Tensor:
    """Edges of about `cells` cells from t_min to t_max, half of them even in t and half in log t, (cells,) float64."""
    linear = torch.linspace(sde.t_min, sde.t_max, cells // 2 + 1, dtype=torch.float64)
    logarithmic = torch.logspace(math.log10(sde.t_min), math.log10(sde.t_max), cells // 2 + 1, dtype=torch.float64)
    edges = torch.cat([linear, logarithmic[1:-1]]).sort().values
    edges[0], edges[-1] = sde.t_min, sde.t_max
    return edges


def require_worth(sde: SDE, weighting: Weighting, density: Callable[[Tensor], Tensor], *, name: str) -> None:
    """Refuse times that lie where a weight is large but the error is not.

    The second moment of the loss is ∫ (λ/σ² e)²/r dt with the error e of ε. Of the right score for data N(0, ¼ I) it is
    e = 1/(1 + 4/SNR), which vanishes at high noise; a trained score's error is of that kind. r and uniform times are
    compared by it.

    Args:
        density: r(t), up to a constant.
        name: Of the time sampler.

    Raises:
        InputError: One uniform draw is worth more than 30 of these.
    """
    edges = cell_edges(sde)
    t, width = 0.5 * (edges[1:] + edges[:-1]), edges.diff()
    square = (weighting.of_eps(sde, t) / (1 + 4 * (sde.std(t) / sde.mean_coef(t)) ** 2)) ** 2
    r, even = density(t), 1 / (sde.t_max - sde.t_min)
    cost = float((width * square / r).sum() * (width * r).sum() / ((width * square).sum() / even))
    require(
        cost <= WORST,
        f"`loss.time_sampler` {name} draws times where the weight is large and the error vanishes: with this "
        f"loss.weighting about {cost:.3g} draws are worth one of uniform; take stratified or loss_second_moment",
    )
