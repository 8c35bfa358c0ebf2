"""DDPM's chain of T noise levels as the variance-preserving process that visits them.

A process in continuous time is what losses, solvers and likelihoods of this package take. The one here has the levels
of the published chain exactly, at t = k/T, so that whatever stops at these times alone is the published discretisation;
between them it goes smoothly, so that everything else serves it too.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from sde_diffusion.errors import require
from sde_diffusion.sde.beta_sequence import BetaSequence, LinearBetas
from sde_diffusion.sde.vp import VariancePreserving


@dataclass(frozen=True)
class DDPM(VariancePreserving):
    """VP through the levels of a chain of T `steps`: B(k/T) = −log ᾱ_k, ᾱ_k = ∏_{i ≤ k} (1 − β_i), a cubic between.

    The cubic in each interval has the slopes of the parabola through a level and its two neighbours, kept between ½ and
    3 times the smaller of the chain's own slopes beside the level. So β(t) = B′(t) is continuous and positive, whatever
    the chain (the last step of the cosine is five times the one before it), and is off a smooth β by O(T⁻²): solvers
    keep their order and adaptive ones their steps. A spline with a continuous second derivative would overshoot there.

    Attributes:
        steps: T.
        beta: β_1 … β_T.
        t_min: 0 stands for level 1, the time 1/T.
        t_max: At most 1, the time of level T.

    Reference: Ho et al. 2020, arXiv:2006.11239, eqs. 2–4; Hyman 1983, doi:10.1137/0904045, for the monotone cubic.
    """

    steps: int = 1000
    beta: BetaSequence = LinearBetas()
    t_min: float = 0.0

    def __post_init__(self) -> None:
        require(self.steps >= 2, f"`steps` of a chain must be ≥ 2, got {self.steps}")
        require(self.t_max <= 1, f"`t_max` of a chain must be ≤ 1, the time of its last level, got {self.t_max}")
        if self.t_min == 0:
            object.__setattr__(self, "t_min", 1 / self.steps)
        super().__post_init__()

    @property
    def levels(self) -> int:
        return self.steps

    def rate(self, t: Tensor) -> Tensor:
        u, (_, slope, square, cube) = self._place(t)
        return self.steps * (slope + u * (2 * square + u * (3 * cube)))

    def integral(self, t: Tensor) -> Tensor:
        u, (start, slope, square, cube) = self._place(t)
        return start + u * (slope + u * (square + u * cube))

    def _place(self, t: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The place u ∈ [0, 1] of `t` between two levels, and the coefficients of 1, u, u² and u³ in B there."""
        table = _tabulate(self.beta, self.steps, t.dtype, t.device)
        row = table[(t.detach() * self.steps).long().clamp(0, self.steps - 1)]
        time, rest, *cubic = row.unbind(-1)
        return ((t - time) - rest) * self.steps, tuple(cubic)  # t − time is exact, so u is as good as t


@lru_cache(maxsize=32)
def _tabulate(beta: BetaSequence, steps: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """For each of T intervals: where it begins, what rounding took off that, and the cubic, (T, 6)."""
    chord = -torch.log1p(-beta(steps))  # of B, per level
    ends = torch.stack([1.5 * chord[0] - 0.5 * chord[1], 1.5 * chord[-1] - 0.5 * chord[-2]])
    slopes = torch.cat([ends[:1], 0.5 * (chord[1:] + chord[:-1]), ends[1:]])
    smaller = torch.minimum(torch.cat([chord[:1], chord]), torch.cat([chord, chord[-1:]]))
    slopes = slopes.clamp(0.5 * smaller, 3 * smaller)
    times = torch.arange(steps, dtype=torch.float64) / steps
    start = torch.cat([torch.zeros(1, dtype=torch.float64), chord.cumsum(0)[:-1]])
    low, high = slopes[:-1], slopes[1:]
    columns = (times, times - times.to(dtype).double(), start, low, 3 * chord - 2 * low - high, low + high - 2 * chord)
    return torch.stack(columns, 1).to(dtype).to(device)
