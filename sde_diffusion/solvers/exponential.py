"""Exponential integration in λ = log(a/σ), half the log signal-to-noise ratio: what the multistep solvers share.

Given x̂0 as a function of λ the probability flow is solved exactly: from t to t_n, with h = λ_n − λ,

    x_n = (σ_n/σ) x + a_n ∫₀¹ h e^{(s−1)h} x̂0(λ + s h) ds.

The solvers replace x̂0 by the polynomial through values they know, which leaves one weight for each of these.

Reference: Lu et al. 2022, arXiv:2211.01095, eq. 9; Hochbruck & Ostermann 2010, Acta Numerica 19, section 2, for φ.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from sde_diffusion.errors import require_one_of
from sde_diffusion.grids import LogSNRGrid, TimeGrid
from sde_diffusion.sde import SDE
from sde_diffusion.solvers.base import GridSolver

History = tuple[tuple[Tensor, Tensor], ...]
"""Known pairs of λ, (), and x̂0 (or ε̂), (B, *D); at most four, the newest first."""


class Last(NamedTuple):
    """What the last step knew.

    Attributes:
        x, t: Its start, as corrected.
        history: The predictions up to there.
        used: How many of them it took.
        taken: Steps up to its end.
    """

    x: Tensor
    t: Tensor
    history: History
    used: int
    taken: int


def follow(state: Last | None, x: Tensor, t: Tensor, history: History, used: int = 1) -> Last:
    """What the step from (x, t) leaves to the next, after `state`."""
    return Last(x, t, history, used, state.taken + 1 if state else 1)


SHORT = 15  # steps: published codes lower the last orders of shorter runs


@dataclass(frozen=True, kw_only=True)
class Multistep(GridSolver):
    """A solver whose steps use the predictions of those before, on a grid uniform in λ unless told otherwise.

    Attributes:
        lower_final: Whether the last steps use no more predictions than there are steps left, so that the very last is
            DDIM: `short` runs of fewer than 15 steps do, or `always`, or `never`. Long steps near the data do not bear
            extrapolation: on a grid uniform in t, ten steps of order 3 are up to 30 times better for it.

    Reference: Lu et al. 2022, arXiv:2211.01095, appendix B ("lower order final").
    """

    steps: int = 20
    grid: TimeGrid = LogSNRGrid()
    lower_final: Literal["short", "always", "never"] = "short"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_one_of("lower_final", self.lower_final, ("short", "always", "never"))

    def allowed(self, values: int, state: Last | None) -> int:
        """How many of `values` predictions the next step may use."""
        lowered = self.lower_final == "always" or (self.lower_final == "short" and self.steps < SHORT)
        left = self.steps - (state.taken if state else 0)
        return min(values, left) if lowered else values


Slope = Callable[[Tensor], Tensor]
"""h -> the weight of a linear term: m_1, or what a published method has in its place."""

TERMS = 18  # of the series for |h| < ½: the next is below 1e-21


def moments(h: Tensor, count: int) -> Tensor:
    """m_k = ∫₀¹ h e^{(s−1)h} s^k ds for k < `count`, (count,) float64; `h` is () and may be negative or infinite.

    By m_k = 1 − (k/h) m_{k−1} from m_0 = 1 − e^{−h}; by their series in h where that cancels. φ_k = m_{k−1}/(h (k−1)!).
    """
    if h.abs() < 0.5:
        powers = h * (-h) ** torch.arange(TERMS)
        series = [[math.factorial(k) / math.factorial(j + k + 1) for j in range(TERMS)] for k in range(count)]
        return h.new_tensor(series) @ powers
    rows = [-torch.expm1(-h)]
    for k in range(1, count):
        rows.append(1 - k / h * rows[-1])
    return torch.stack(rows)


def exact_slope(h: Tensor) -> Tensor:
    """m_1 = 1 − (1 − e^{−h})/h, the weight of a linear term."""
    return moments(h, 2)[1]


def midpoint_slope(h: Tensor) -> Tensor:
    """½ (1 − e^{−h}): a linear term taken at its value in the middle of the step."""
    return -0.5 * torch.expm1(-h)


def weights(nodes: Tensor, h: Tensor, slope: Slope = exact_slope, curvature: float = 1.0) -> Tensor:
    """w_j with Σ_j w_j p(s_j) = ∫₀¹ h e^{(s−1)h} p(s) ds for polynomials p through the nodes s_j, (n,).

    Args:
        nodes: Distinct s_j, (n,); 0 is the start of the step and 1 its end.
        h: Length of the step in λ, ().
        slope: With two nodes, the integral of p(s) = s.
        curvature: With three, a factor of the integral of p(s) = s².
    """
    count = len(nodes)
    integrals = moments(h, count)
    if count == 2:
        integrals[1] = slope(h)
    elif count == 3:
        integrals[2] *= curvature
    found: Tensor = torch.linalg.solve(nodes ** torch.arange(count)[:, None], integrals)
    return found


def advance(
    sde: SDE,
    x: Tensor,
    t: Tensor,
    t_next: Tensor,
    history: History,
    *,
    slope: Slope = exact_slope,
    curvature: float = 1.0,
) -> Tensor:
    """x ← (σ_n/σ) x + a_n Σ_j w_j x̂0_j: the flow from `t` to `t_next` under the polynomial through `history`.

    One pair at `t` gives DDIM. A pair at `t_next` makes the step implicit: a corrector.

    Args:
        x: State at `t`, (B, *D).
        t, t_next: Times, () float64.
        history: Pairs of λ and x̂0.
        slope: How a polynomial of degree one is integrated.
        curvature: Factor of the quadratic term of a polynomial of degree two.

    Returns:
        State at `t_next`, (B, *D).
    """
    start = sde.half_log_snr(t)
    h = sde.half_log_snr(t_next) - start
    nodes = torch.stack([(half_log_snr - start) / h for half_log_snr, _ in history])
    terms = [w * x0 for w, (_, x0) in zip(weights(nodes, h, slope, curvature), history, strict=True)]
    return sde.std(t_next) / sde.std(t) * x + sde.mean_coef(t_next) * torch.stack(terms).sum(0)
