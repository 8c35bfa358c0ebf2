"""Time grids: where a fixed-step solver stops on its way. All are float64 on the CPU, both ends included."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_diffusion.errors import InputError, require_positive
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

    Reference: Karras et al. 2022, arXiv:2206.00364, eq. 5.
    """

    rho: float = 7.0

    def __post_init__(self) -> None:
        require_positive(rho=self.rho)

    def spread(self, sde: SDE, u: Tensor, t_from: float, t_to: float) -> Tensor:
        ends = torch.exp(-sde.half_log_snr(torch.tensor([t_from, t_to], dtype=torch.float64)) / self.rho)
        return sde.time_at(-self.rho * torch.log(ends[0] + u * (ends[1] - ends[0])))


GRIDS: dict[str, type[TimeGrid]] = {
    "uniform": UniformGrid,
    "quadratic": QuadraticGrid,
    "log_snr": LogSNRGrid,
    "karras": KarrasGrid,
}
