"""Heun's method on the probability flow in σ/a, with churn: the sampler of EDM."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sde_diffusion.errors import require, require_positive
from sde_diffusion.grids import KarrasGrid, TimeGrid
from sde_diffusion.sde import SDE
from sde_diffusion.solvers.base import GridSolver, columns
from sde_diffusion.solvers.process import ReverseProcess


class Row(NamedTuple):
    """From `t_from`, x ← raised x + spread z at `t`; then x ← kept x + gain ε̂, with ε̂ at `t` or the mean of two."""

    t_from: Tensor
    t_next: Tensor
    t: Tensor
    raised: float
    spread: float
    kept: float
    gain: float
    last: bool


@dataclass(frozen=True, kw_only=True)
class Heun(GridSolver):
    """dy/dς = ε̂ for y = x/a and ς = σ/a by the trapezoidal rule, after raising the noise level a little.

    Attributes:
        s_churn: Noise added over the whole run, as a share of ς: a step raises ς by min(s_churn/steps, √2 − 1).
        s_tmin, s_tmax: The range of ς in which noise is added.
        s_noise: Standard deviation of the added noise; 1 keeps the marginals.

    Cost: two score evaluations per step, one where it ends at σ = 0.

    Reference: Karras et al. 2022, arXiv:2206.00364, Algorithm 2.
    """

    order = 2
    evaluations = 2

    steps: int = 18
    grid: TimeGrid = KarrasGrid()
    s_churn: float = 0.0
    s_tmin: float = 0.0
    s_tmax: float = 1e6
    s_noise: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.s_churn >= 0, f"`s_churn` must be ≥ 0, got {self.s_churn}")
        require(0 <= self.s_tmin < self.s_tmax, f"`s_tmax` must be > `s_tmin` = {self.s_tmin} ≥ 0, got {self.s_tmax}")
        require_positive(s_noise=self.s_noise)

    @property
    def stochastic(self) -> bool:
        return self.s_churn > 0

    def plan(self, sde: SDE, times: Tensor) -> Sequence[Row]:
        """y' = y + (ς_n − ς) ε̂(y, ς),    y ← y + ½ (ς_n − ς) (ε̂(y, ς) + ε̂(y', ς_n)),    from ς raised by churn."""
        t = self._churned(sde, times)
        level_from, level = torch.exp(-sde.half_log_snr(times)), torch.exp(-sde.half_log_snr(t))
        a_from, a, a_next = sde.mean_coef(times[:-1]), sde.mean_coef(t), sde.mean_coef(times[1:])
        added = (level**2 - level_from[:-1] ** 2).clamp(min=0).sqrt()
        spread = torch.where(t > times[:-1], self.s_noise * a * added, 0.0)
        numbers = (a / a_from, spread, a_next / a, a_next * (level_from[1:] - level), level_from[1:] == 0)
        ends = zip(columns(times, *numbers), t.unbind(), strict=True)
        return [Row(t_from, t_next, t, *rest) for (t_from, t_next, *rest), t in ends]

    def update(self, process: ReverseProcess, x: Tensor, now: Row, state: None) -> tuple[Tensor, None]:
        """See `plan`. The method has no memory."""
        if now.spread > 0:
            x = torch.add(now.raised * x, process.noise(x, now.t_from, now.t_next), alpha=now.spread)
        slope = process.eps(x, now.t)
        x_next = torch.add(now.kept * x, slope, alpha=now.gain)
        if now.last:  # ε̂ is undefined without noise
            return x_next, None
        slope = 0.5 * (slope + process.eps(x_next, now.t_next))
        return torch.add(now.kept * x, slope, alpha=now.gain), None

    def _churned(self, sde: SDE, times: Tensor) -> Tensor:
        """The times of ς (1 + γ), (n,), or `t_max` where that comes first; those of the grid where γ = 0."""
        t = times[:-1]
        if not self.stochastic:
            return t
        half_log_snr = sde.half_log_snr(t)
        gamma = min(self.s_churn / self.steps, math.sqrt(2) - 1)
        level = torch.exp(-half_log_snr)
        churned = (level >= self.s_tmin) & (level <= self.s_tmax)
        raised = sde.time_at(half_log_snr - math.log1p(gamma))
        return torch.where(churned & (raised > t), raised, t)
