"""Time grids: where a fixed-step solver stops on its way. All are float64 on the CPU, both ends included."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sde_diffusion.errors import InputError, require, require_positive
from sde_diffusion.sde import SDE


@dataclass(frozen=True)
class TimeGrid(ABC):
    """A rule that spreads steps between two times."""

    @abstractmethod
    def spread(self, sde: SDE, u: Tensor, t_from: float, t_to: float) -> Tensor:
        """Times for u ∈ [0, 1], monotone, `t_from` at u = 0 and `t_to` at u = 1; float64, shape of `u`."""

    def __call__(self, sde: SDE, t_from: float, t_to: float, steps: int) -> Tensor:
        """The `steps` + 1 times from `t_from` to `t_to`, (steps + 1,) float64 on the CPU; the ends are exact.

        Raises:
            InputError: Two times coincide: there are too many steps, or the ends are too close.
        """
        require_positive(steps=steps)
        times = self.spread(sde, torch.linspace(0, 1, steps + 1, dtype=torch.float64), t_from, t_to)
        times[0], times[-1] = t_from, t_to
        ahead = times.diff() * math.copysign(1, t_to - t_from) > 0
        if not ahead.all():
            step = int((~ahead).nonzero()[0])
            raise InputError(
                f"the times of a grid must be distinct and in order, but step {step + 1} of {steps} of {self} from "
                f"t = {t_from!r} to {t_to!r} goes from {float(times[step])!r} to {float(times[step + 1])!r}; take "
                f"fewer steps, ends further apart, or another grid"
            )
        return times


@dataclass(frozen=True)
class UniformGrid(TimeGrid):
    """Equal steps in t."""

    def spread(self, sde: SDE, u: Tensor, t_from: float, t_to: float) -> Tensor:
        return t_from + u * (t_to - t_from)


@dataclass(frozen=True)
class QuadraticGrid(TimeGrid):
    """Equal steps in √t: finer near the data.

    Reference: Song et al. 2021 (DDIM), arXiv:2010.02502, appendix D.2.
    """

    def spread(self, sde: SDE, u: Tensor, t_from: float, t_to: float) -> Tensor:
        start, end = math.sqrt(t_from), math.sqrt(t_to)
        return (start + u * (end - start)) ** 2


@dataclass(frozen=True)
class LogSNRGrid(TimeGrid):
    """Equal steps in λ = log(a/std).

    Reference: Lu et al. 2022, arXiv:2206.00927, section 3.3.
    """

    def spread(self, sde: SDE, u: Tensor, t_from: float, t_to: float) -> Tensor:
        start, end = sde.half_log_snr(torch.tensor([t_from, t_to], dtype=torch.float64))
        return sde.time_at(start + u * (end - start))


@dataclass(frozen=True)
class KarrasGrid(TimeGrid):
    """Equal steps in (std/a)^{1/ρ}: ρ = 7 puts most steps at low noise.

    Attributes:
        rho: The ρ of the formula; a larger one puts more steps at low noise.

    Reference: Karras et al. 2022, arXiv:2206.00364, eq. 5.
    """

    rho: float = 7.0

    def __post_init__(self) -> None:
        require_positive(rho=self.rho)

    def spread(self, sde: SDE, u: Tensor, t_from: float, t_to: float) -> Tensor:
        ends = torch.exp(-sde.half_log_snr(torch.tensor([t_from, t_to], dtype=torch.float64)) / self.rho)
        return sde.time_at(-self.rho * torch.log(ends[0] + u * (ends[1] - ends[0])))


@dataclass(frozen=True)
class LevelsGrid(TimeGrid):
    """Levels of a chain, times k/T alone: `even` takes every c-th, `quadratic` √k evenly and so more near the data.

    Spread evenly in k or √k, rounded, and moved up where two would fall together: as many levels as are asked for, all
    of them if asked for all. From level T to 1 these are the published subsets: N levels are N − 1 steps, and the final
    denoising is the N-th evaluation. A run that ends at level c (`t_end` = c/T) has the published `trailing` spacing.
    At ends that are no levels the grid stops nevertheless.

    Attributes:
        spacing: Whether the levels are even in k or in √k (`quadratic`).

    Reference: Song et al. 2021 (DDIM), arXiv:2010.02502, appendix D.2; Nichol & Dhariwal 2021, arXiv:2102.09672,
    section 4, published code.
    """

    spacing: Literal["even", "quadratic"] = "even"

    def spread(self, sde: SDE, u: Tensor, t_from: float, t_to: float) -> Tensor:
        """See `TimeGrid.spread`.

        Raises:
            InputError: A process without levels, or more steps than there are between the ends.
        """
        if sde.levels is None:
            raise InputError(
                "the grid `levels` needs a process with levels, such as ddpm, and this one has none; take another grid"
            )
        low, high = (sde.levels * t for t in sorted((t_from, t_to)))
        most, steps = round(math.floor(high + ROUNDING) - math.ceil(low - ROUNDING)), len(u) - 1
        require(
            steps <= most,
            f"`steps` of the grid `levels` must be ≤ {most}, the steps from level {high:g} to {low:g}, got {steps}",
        )
        order = torch.arange(steps + 1, dtype=torch.float64)  # from the low end, whichever way it goes
        if self.spacing == "even":
            places = low + order / steps * (high - low)
        else:
            places = (math.sqrt(low) + order / steps * (math.sqrt(high) - math.sqrt(low))) ** 2
        times = ((places.round() - order).cummax(0).values + order) / sde.levels
        return times if t_from < t_to else times.flip(0)


ROUNDING = 1e-6  # part of a level that is taken for rounding

GRIDS: dict[str, type[TimeGrid]] = {
    "uniform": UniformGrid,
    "quadratic": QuadraticGrid,
    "log_snr": LogSNRGrid,
    "karras": KarrasGrid,
    "levels": LevelsGrid,
}
