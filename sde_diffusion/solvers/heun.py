"""Heun's method on the probability flow in σ/a, with churn: the sampler of EDM."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_diffusion.errors import require, require_positive
from sde_diffusion.grids import KarrasGrid, TimeGrid
from sde_diffusion.solvers.base import GridSolver, ReverseProcess


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

    def step(self, process: ReverseProcess, x: Tensor, t: Tensor, t_next: Tensor, state: None) -> tuple[Tensor, None]:
        """y' = y + (ς_n − ς) ε̂(y, ς),    y ← y + ½ (ς_n − ς) (ε̂(y, ς) + ε̂(y', ς_n)).

        Args:
            x: State at `t`, (B, *D).
            t, t_next: Times, () float64; `t_next < t` with churn.
            state: None; the method has no memory.

        Returns:
            State at `t_next`, (B, *D), and None.
        """
        sde = process.sde
        if self.stochastic:
            x, t = self._churn(process, x, t, t_next)
        level, level_next = torch.exp(-sde.half_log_snr(t)), torch.exp(-sde.half_log_snr(t_next))
        y, a_next = x / sde.mean_coef(t), sde.mean_coef(t_next)
        slope = process.eps(x, t)
        x_next = a_next * (y + (level_next - level) * slope)
        if level_next == 0:  # ε̂ is undefined without noise
            return x_next, None
        slope = 0.5 * (slope + process.eps(x_next, t_next))
        return a_next * (y + (level_next - level) * slope), None

    def _churn(self, process: ReverseProcess, x: Tensor, t: Tensor, t_next: Tensor) -> tuple[Tensor, Tensor]:
        """The state at ς (1 + γ), or at `t_max` if that comes first; time and state as they are if γ = 0."""
        sde = process.sde
        level = torch.exp(-sde.half_log_snr(t))
        if not self.s_tmin <= level <= self.s_tmax:
            return x, t
        gamma = min(self.s_churn / self.steps, math.sqrt(2) - 1)
        raised = sde.time_at(sde.half_log_snr(t) - math.log1p(gamma))
        if raised <= t:
            return x, t
        added = (torch.exp(-2 * sde.half_log_snr(raised)) - level**2).sqrt()
        z = self.s_noise * process.noise(x, t, t_next)
        return sde.mean_coef(raised) * (x / sde.mean_coef(t) + added * z), raised
