"""Adaptive Runge–Kutta in which every sample has its own time, step size, error, count of evaluations and status.

All live samples try one step at once, each its own; then each accepts or rejects its own. Finished samples leave the
batch, which shrinks. What sample i gets depends on sample i alone: with a right-hand side that is so too, bit for bit,
for every operation here is elementwise or a reduction over one sample. (Powers are written exp(p log x): `torch.pow`
rounds differently at the end of a vector, with the batch size.)

The control of the step is h' = h · safety · err^(−α) · err_last^β with α = 1/p − ¾β, bounded, and no growth right after
a rejection; err counts in tolerances, and a step is accepted when err ≤ 1. The one synchronisation with the device in a
step reads how many samples are left.

Reference: Hairer, Nørsett & Wanner 1993, Solving Ordinary Differential Equations I, section II.4 (eqs. 4.11–4.14) and
II.10 (eq. 10.19); Hairer & Wanner 1996, volume II, section IV.2, eq. 2.43c, for β.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from enum import IntEnum

import torch
from torch import Tensor

from sde_diffusion.solvers.tableaux import Tableau
from sde_diffusion.tensors import expand, flat_mean, select

Rhs = Callable[[Tensor, Tensor], Tensor]
"""(t: () or (B,), y: (B, …)) -> dy/dt: (B, …)."""

Norm = Callable[[Tensor], Tensor]
"""Size of each sample's scaled error, (B, …) -> (B,); a step is good enough for a sample where it is at most 1."""

SMALLEST = 16 * torch.finfo(torch.float64).eps  # step in units of the largest time: below it a sample is given up
STRETCH = 1.01  # a step this much too short for the end is stretched to it


class Status(IntEnum):
    """How the solve of one sample ended."""

    DONE = 0
    NON_FINITE = 1
    MAX_NFE = 2
    STEP_TOO_SMALL = 3


def sample_rms(y: Tensor) -> Tensor:
    """Each sample's root mean square, (B, …) -> (B,); on the CPU the same bits for every B and number of threads."""
    squares = y.square()
    if len(y) == 1:  # the sum over a single row would be cut among threads; over one of two it is not
        return flat_mean(squares.expand(2, *y.shape[1:]))[:1].sqrt()
    return flat_mean(squares).sqrt()


@dataclass(frozen=True, eq=False)
class Solution:
    """Where every sample is, and why it stopped there.

    Attributes:
        y: (B, …); of a sample that is not done, its last accepted state.
        t: Time of each row of `y`, (B,) float64.
        nfe: Evaluations of the right-hand side for each sample, (B,) int64.
        status: `Status`, (B,) int64.
    """

    y: Tensor
    t: Tensor
    nfe: Tensor
    status: Tensor


@dataclass(frozen=True, eq=False)
class Integrator:
    """The pair, the tolerance and what else does not change in a solve.

    Attributes:
        tableau: The pair.
        rtol, atol: A step's error is measured in units of atol + rtol max(|y|, |y'|), elementwise.
        norm: Makes one number of each sample's scaled errors.
        max_nfe: Evaluations per sample before it is given up.
        compact: Whether finished samples leave the batch. If not, they stand still and cost as much as the others: for
            right-hand sides bound to the whole batch.
    """

    tableau: Tableau
    rtol: float
    atol: float
    norm: Norm = sample_rms
    max_nfe: int = 100_000
    compact: bool = True

    @torch.no_grad()
    def solve(self, rhs: Rhs, y: Tensor, t_from: float, t_to: float, *, watch: "Path | None" = None) -> Solution:
        """Solve dy/dt = rhs(t, y) from `t_from` to `t_to`, in either direction; no evaluation lies outside.

        Args:
            rhs: Called with t (n,) float64 and y (n, …) of the n live samples, in their order in the batch. If it is
                `PerSample`, its `select` is called when samples leave.
            y: (B, …), floating point, at least two dimensions.
            watch: Reads states at common times off the steps.

        Returns:
            `Solution`. Costs 2 + (s − 1) evaluations per step tried, s − 1 = 6 for order 5 and 12 for order 8.
        """
        live = _Live.begin(y, t_from)
        end = Solution(y.clone(), live.t.clone(), torch.zeros_like(live.rows), torch.zeros_like(live.rows))
        if len(y) == 0 or t_from == t_to:
            return end
        ends = live.t.new_tensor([t_from, t_to])
        nodes = live.t.new_tensor(self.tableau.nodes[1:])[:, None]
        smallest = SMALLEST * max(abs(t_from), abs(t_to))
        live.slope = rhs(live.t, live.y)
        live.h = self._first_step(rhs, live, ends).clamp(min=smallest) * math.copysign(1, t_to - t_from)
        nfe, left = 2, len(y)
        while left and nfe + len(nodes) <= self.max_nfe:
            last = (STRETCH * live.h).abs() >= (ends[1] - live.t).abs()
            t_next = torch.where(last, ends[1], live.t + live.h)
            step = t_next - live.t
            slopes, y_next, error = self._try(rhs, live, step, self._stage_times(live.t, t_next, step, nodes, ends))
            nfe += len(nodes)
            good = (error <= 1) & live.active
            change = self._control(live, error)
            if watch is not None:
                watch(live, good, t_next, y_next, slopes[-1])
            live.accept(good, t_next, y_next, slopes[-1], step * change)
            lost = live.active & ~good & (live.h.abs() < smallest)
            running = live.active & ~lost & ~(good & last)
            remaining = int(running.sum())  # the one synchronisation
            if remaining < left:
                cause = torch.where(error.isfinite(), Status.STEP_TOO_SMALL, Status.NON_FINITE)
                live.write(end, nfe, torch.where(lost, cause, Status.DONE))
                live.active, left = running, remaining
                if self.compact:
                    rows = torch.argsort(running.byte(), descending=True, stable=True)[:left]
                    live, rhs = live.select(rows), select(rhs, rows)
        if left:
            live.write(end, nfe, torch.full_like(live.rows, Status.MAX_NFE))
        end.status[~end.y.flatten(1).isfinite().all(1)] = Status.NON_FINITE
        return end

    def _stage_times(self, t: Tensor, t_next: Tensor, step: Tensor, nodes: Tensor, ends: Tensor) -> list[Tensor]:
        """t + c_i h of the stages after the first, s − 1 times (n,), exactly t_next where c_i = 1."""
        times = torch.where(nodes == 1, t_next, t + nodes * step)
        return list(times.clamp(ends.min(), ends.max()).unbind())

    def _try(self, rhs: Rhs, live: "_Live", step: Tensor, times: list[Tensor]) -> tuple[list[Tensor], Tensor, Tensor]:
        """Slopes k_1 … k_s, the next state and the size of its error in tolerances, (n,) float64."""
        h = expand(step, live.y)
        slopes, y_next = [live.slope], live.y
        for weights, time in zip(self.tableau.stages[1:], times, strict=True):
            y_next = _combine(weights, slopes).mul_(h).add_(live.y)
            slopes.append(rhs(time, y_next))
        scale = torch.maximum(live.y.abs(), y_next.abs()).mul_(self.rtol).add_(self.atol)
        sizes = [self.norm(_combine(weights, slopes).mul_(h).div_(scale)).to(step) for weights in self.tableau.errors]
        if len(sizes) == 1:
            return slopes, y_next, sizes[0]
        fine, coarse = sizes
        return slopes, y_next, fine * fine / (fine * fine + 0.01 * coarse * coarse).sqrt().clamp(min=1e-100)

    def _control(self, live: "_Live", error: Tensor) -> Tensor:
        """The factor from this step to the next, (n,): above 1 only where this step and the one before were good."""
        tableau = self.tableau
        log_error = error.nan_to_num(nan=math.inf).clamp(1e-10, 1e10).log()
        alpha = 1 / tableau.order - 0.75 * tableau.memory
        good = log_error <= 0
        growth = math.log(tableau.safety) - alpha * log_error
        if tableau.memory:
            growth = torch.where(good, growth + tableau.memory * live.log_error, growth)
            live.log_error = torch.where(good, log_error.clamp(min=math.log(1e-4)), live.log_error)
        growth = growth.clamp(math.log(tableau.slowest), math.log(tableau.fastest))
        growth = torch.where(good & ~live.rejected, growth, growth.clamp(max=0))
        live.rejected = ~good
        return growth.exp()

    def _first_step(self, rhs: Rhs, live: "_Live", ends: Tensor) -> Tensor:
        """A first step whose error should be 1 % of the tolerance, (n,) ≥ 0; 0 where the slope is not finite.

        Costs one evaluation. Reference: Hairer, Nørsett & Wanner 1993, section II.4, "Starting step size".
        """
        width = (ends[1] - ends[0]).abs()
        scale = live.y.abs().mul_(self.rtol).add_(self.atol)
        size, speed = self.norm(live.y / scale).to(width), self.norm(live.slope / scale).to(width)
        probe = torch.where((size < 1e-5) | (speed < 1e-5), 1e-6, 0.01 * size / speed).minimum(width)
        ahead = (live.t + probe * (ends[1] - ends[0]).sign()).clamp(ends.min(), ends.max())
        ahead = torch.where(ahead.isnan(), live.t, ahead)
        slope = rhs(ahead, live.y + expand(ahead - live.t, live.y) * live.slope)
        bend = self.norm((slope - live.slope) / scale).to(width) / probe
        steepest = torch.maximum(speed, bend)
        h = ((0.01 / steepest.clamp(min=1e-15)).log() / self.tableau.order).exp()
        h = torch.where(steepest <= 1e-15, (1e-3 * probe).clamp(min=1e-6), h)
        return h.minimum(100 * probe).minimum(width).nan_to_num(nan=0.0)


def _combine(weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    """Σ_j w_j k_j, a new tensor."""
    (first, weight), *others = [(slope, w) for slope, w in zip(slopes, weights, strict=False) if w]
    total = first * weight
    for slope, weight in others:
        total.add_(slope, alpha=weight)
    return total


@dataclass(eq=False)
class _Live:
    """The samples that are still in the batch, n of them.

    Attributes:
        rows: Where they are in the whole batch, (n,) int64.
        y, t: Last accepted states, (n, …), and their times, (n,) float64.
        slope: rhs(t, y), (n, …).
        h: Step to try next, signed, (n,) float64.
        log_error: Of the last accepted step, (n,).
        rejected: Whether the last step was, (n,) bool.
        active: False for samples that stand still because the batch is not compacted, (n,) bool.
    """

    rows: Tensor
    y: Tensor
    t: Tensor
    slope: Tensor
    h: Tensor
    log_error: Tensor
    rejected: Tensor
    active: Tensor

    @classmethod
    def begin(cls, y: Tensor, t_from: float) -> "_Live":
        rows = torch.arange(len(y), device=y.device)
        t = torch.full_like(rows, t_from, dtype=torch.float64)
        no = torch.zeros_like(rows, dtype=torch.bool)
        return cls(rows, y, t, y, t, torch.full_like(t, math.log(1e-4)), no, ~no)

    def accept(self, good: Tensor, t: Tensor, y: Tensor, slope: Tensor, h: Tensor) -> None:
        """Go on from (t, y) where `good`; the next step is `h`."""
        wide = good.reshape(-1, *(1,) * (y.ndim - 1))
        self.t, self.h = torch.where(good, t, self.t), h
        self.y, self.slope = torch.where(wide, y, self.y), torch.where(wide, slope, self.slope)

    def select(self, rows: Tensor) -> "_Live":
        """The samples `rows` (m,) of these n."""
        return _Live(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    def write(self, end: Solution, nfe: int, status: Tensor) -> None:
        """Note where the active samples are; what has not finished is written again later."""
        end.y[self.rows], end.t[self.rows] = self.y, self.t
        end.nfe[self.rows] = torch.where(self.active, nfe, end.nfe[self.rows])
        end.status[self.rows] = torch.where(self.active, status, end.status[self.rows])


class Path:
    """States of the whole batch at common times, read off the accepted steps by cubic Hermite interpolation.

    Their error is O(h⁴): for pictures. Watching changes no step; each step watched costs a synchronisation.

    Args:
        times: When, (M,) float64, after the start.
        y: The start, (B, …): tells shape, dtype and device.

    Attributes:
        states: (M, B, …); NaN where a sample did not come that far.
    """

    def __init__(self, times: Tensor, y: Tensor) -> None:
        self.times = times.to(y.device)
        self.states = y.new_full((len(times), *y.shape), math.nan)

    def __call__(self, live: _Live, good: Tensor, t_next: Tensor, y_next: Tensor, slope_next: Tensor) -> None:
        share = (self.times[:, None] - live.t) / (t_next - live.t)
        m, i = ((share > 0) & (share <= 1) & good).nonzero(as_tuple=True)
        y, h = live.y[i], expand(t_next[i] - live.t[i], live.y)
        s = expand(share[m, i], y)
        rise = y_next[i] - y
        bends = (1 - s) * (h * live.slope[i] - rise) - s * (h * slope_next[i] - rise)
        self.states[m, live.rows[i]] = y + s * rise + s * (1 - s) * bends
