"""Linear diffusion processes in continuous time: dx = f(t) x dt + g(t) dw, t from 0 (data) to t_max (noise).

Their transition from clean data is Gaussian, x_t | x_0 ~ N(a(t) x_0, std(t)² I), and everything this package does with
a process (training, every solver, likelihoods) follows from a, std, f and g. In formulas α = a, σ = std and
λ = log(α/σ), half the log signal-to-noise ratio.

Reference: Song et al. 2021, "Score-Based Generative Modeling through SDEs", arXiv:2011.13456.
"""

import inspect
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sde_diffusion.errors import require
from sde_diffusion.tensors import expand, flat_sum

BISECTIONS = 64  # halvings of [0, 1]: below the spacing of float64 near t_min


class Moment(NamedTuple):
    """A process at a time: what everybody asks about it there, computed once.

    Attributes:
        t: The time, () or (B,).
        log_mean_coef, std: log a(t) and std(t), shape of `t`.
        levels: T of a chain; None for a process that stands for none.
    """

    t: Tensor
    log_mean_coef: Tensor
    std: Tensor
    levels: int | None

    @property
    def mean_coef(self) -> Tensor:
        """a(t)."""
        return self.log_mean_coef.exp()

    @property
    def half_log_snr(self) -> Tensor:
        """λ(t) = log(a/std)."""
        return self.log_mean_coef - self.std.log()


@dataclass(frozen=True, kw_only=True)
class SDE(ABC):
    """dx = f(t) x dt + g(t) dw. A subclass gives five formulas; the rest is derived here, once.

    Attributes:
        t_min: The smallest time that losses, solvers and likelihoods use.
        t_max: The largest one, where sampling starts from the prior. Something of the data must be left, a(t_max) > 0.

    Raises:
        InputError: Ends that are not in order, or a(t_max) = 0 in float32.
    """

    t_min: float = 1e-5
    t_max: float = 1.0

    def __init_subclass__(cls) -> None:
        """A subclass that only writes `t_max = 0.999` gives that field another default."""
        ends = {name: float for name in ("t_min", "t_max") if name in vars(cls)}
        cls.__annotations__ = inspect.get_annotations(cls) | ends

    def __post_init__(self) -> None:
        require(0 < self.t_min < self.t_max, f"`t_min` must be in (0, {self.t_max}), got {self.t_min}")
        end = float(self.log_mean_coef(torch.tensor(self.t_max, dtype=torch.float32)))
        require(
            math.isfinite(end),
            f"`t_max` must be a time at which something of the data is left, a(t_max) > 0, but log a({self.t_max:g}) = "
            f"{end:g} in float32; lower it, e.g. `t_max` = {0.999 * self.t_max:g}",
        )

    @abstractmethod
    def log_mean_coef(self, t: Tensor) -> Tensor:
        """log a(t), shape of `t`."""

    @abstractmethod
    def std(self, t: Tensor) -> Tensor:
        """Standard deviation of x_t given x_0, shape of `t`."""

    @abstractmethod
    def drift_coef(self, t: Tensor) -> Tensor:
        """f(t) = d log a / dt, shape of `t`."""

    @abstractmethod
    def diffusion(self, t: Tensor) -> Tensor:
        """g(t) = √(d std²/dt − 2 f std²), shape of `t`."""

    @property
    @abstractmethod
    def prior_std(self) -> float:
        """Standard deviation of the prior N(0, prior_std² I) that stands in for p(x) at t_max."""

    @property
    def levels(self) -> int | None:
        """T of a process that stands for a chain of T noise levels, at the times k/T; None for one that does not."""
        return None

    def at(self, t: Tensor) -> Moment:
        """The process at `t`, () or (B,)."""
        return Moment(t, self.log_mean_coef(t), self.std(t), self.levels)

    def mean_coef(self, t: Tensor) -> Tensor:
        """a(t), shape of `t`."""
        return self.log_mean_coef(t).exp()

    def half_log_snr(self, t: Tensor) -> Tensor:
        """λ(t) = log(a/std), strictly falling in t; shape of `t`."""
        return self.log_mean_coef(t) - self.std(t).log()

    def time_at(self, half_log_snr: Tensor) -> Tensor:
        """The time t ∈ [0, t_max] at which λ(t) = `half_log_snr`, by bisection; shape and dtype kept.

        Works in float64. Values beyond λ(0) and λ(t_max) give the ends. Costs 64 evaluations of λ and no score.
        """
        target = half_log_snr.double()
        low, high = torch.zeros_like(target), torch.full_like(target, self.t_max)
        for _ in range(BISECTIONS):
            middle = 0.5 * (low + high)
            early = self.half_log_snr(middle) > target
            low, high = torch.where(early, middle, low), torch.where(early, high, middle)
        return (0.5 * (low + high)).to(half_log_snr.dtype)

    def perturb(self, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """x_t = a(t) x0 + std(t) eps, (B, *D)."""
        return expand(self.mean_coef(t), x0) * x0 + expand(self.std(t), x0) * eps

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        """f(t) x, the drift of the forward process, (B, *D)."""
        return expand(self.drift_coef(t), x) * x

    def prior_log_prob(self, z: Tensor) -> Tensor:
        """log N(z; 0, prior_std² I) in nats, (B, *D) -> (B,)."""
        dims = z[0].numel()
        return -0.5 * flat_sum((z / self.prior_std) ** 2) - dims * (
            math.log(self.prior_std) + 0.5 * math.log(2 * math.pi)
        )
