"""Exponential integration in λ = log(a/σ), half the log signal-to-noise ratio: what the multistep solvers share.

Given x̂0 as a function of λ the probability flow is solved exactly: from t to t_n, with h = λ_n − λ,

    x_n = (σ_n/σ) x + a_n ∫₀¹ h e^{(s−1)h} x̂0(λ + s h) ds.

The solvers replace x̂0 by the polynomial through values they know, which leaves one weight for each of these.

Reference: Lu et al. 2022, arXiv:2211.01095, eq. 9; Hochbruck & Ostermann 2010, Acta Numerica 19, section 2, for φ.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from sde_diffusion.errors import require_one_of
from sde_diffusion.grids import LogSNRGrid, TimeGrid
from sde_diffusion.solvers.base import GridSolver, columns
from sde_diffusion.solvers.process import ReverseProcess


class Flow(NamedTuple):
    """x ← kept x + Σ_j weights_j D_j, with the newest predictions D (x̂0 or ε̂) first."""

    kept: float
    weights: tuple[float, ...]

    def __call__(self, x: Tensor, predictions: Sequence[Tensor]) -> Tensor:
        """The state at the end, (B, *D)."""
        x = self.kept * x
        for weight, prediction in zip(self.weights, predictions, strict=False):
            x.add_(prediction, alpha=weight)
        return x


class Row(NamedTuple):
    """The last step taken `anew`, if at all, now that the prediction at its end is known; then the step, then noise."""

    t: Tensor
    t_next: Tensor
    anew: Flow | None
    flow: Flow
    spread: float


class Memory(NamedTuple):
    """What the last step leaves: where it began, as corrected, (B, *D), and the predictions, the newest first."""

    x: Tensor
    predictions: tuple[Tensor, ...]


MOST = 4  # predictions of a step

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

    def used(self, values: int, count: int) -> list[int]:
        """How many of at most `values` predictions each of the first `count` steps uses."""
        lowered = self.lower_final == "always" or (self.lower_final == "short" and self.steps < SHORT)
        left = [self.steps - i if lowered else values for i in range(count)]
        return [min(values, known + 1, left[known]) for known in range(count)]

    def predict(self, process: ReverseProcess, x: Tensor, t: Tensor) -> Tensor:
        """D, what the polynomial goes through: x̂0."""
        return process.x0(x, t)

    def update(self, process: ReverseProcess, x: Tensor, now: Row, state: Memory | None) -> tuple[Tensor, Memory]:
        """See `plan`; the state is that of the last step."""
        predictions: tuple[Tensor, ...] = (self.predict(process, x, now.t),)
        if state is not None:
            predictions += state.predictions[: MOST - 1]
            if now.anew is not None:
                x = now.anew(state.x, predictions)
        x_next = now.flow(x, predictions)
        if self.stochastic:
            x_next.add_(process.noise(x, now.t, now.t_next), alpha=now.spread)
        return x_next, Memory(x, predictions)


def rows(times: Tensor, taken: Sequence[Flow], anew: Sequence[Flow] = (), spread: Tensor | None = None) -> list[Row]:
    """The plan of the steps `taken` (n,) along `times` (n + 1,), the first ones `anew` (m < n,), with noise (n,)."""
    later = [None, *anew, *[None] * len(taken)][: len(taken)]
    noise = torch.zeros(len(taken)) if spread is None else spread
    found = zip(columns(times, noise), later, taken, strict=True)
    return [Row(t, t_next, again, flow, width) for (t, t_next, width), again, flow in found]


Slope = Callable[[Tensor], Tensor]
"""h -> the weight of a linear term: m_1, or what a published method has in its place."""

TERMS = 18  # of the series for |h| < ½: the next is below 1e-21


def moments(h: Tensor, count: int) -> Tensor:
    """m_k = ∫₀¹ h e^{(s−1)h} s^k ds for k < `count`, (…, count) float64; `h` is (…) and may be negative or infinite.

    By m_k = 1 − (k/h) m_{k−1} from m_0 = 1 − e^{−h}; by their series in h where that cancels. φ_k = m_{k−1}/(h (k−1)!).
    """
    rows = [-torch.expm1(-h)]
    for k in range(1, count):
        rows.append(1 - k / h * rows[-1])
    short = h.clamp(-0.5, 0.5)[..., None]
    powers = short * (-short) ** torch.arange(TERMS)
    series = [[math.factorial(k) / math.factorial(j + k + 1) for j in range(TERMS)] for k in range(count)]
    return torch.where(h.abs()[..., None] < 0.5, powers @ h.new_tensor(series).T, torch.stack(rows, -1))


def exact_slope(h: Tensor) -> Tensor:
    """m_1 = 1 − (1 − e^{−h})/h, the weight of a linear term."""
    return moments(h, 2)[..., 1]


def midpoint_slope(h: Tensor) -> Tensor:
    """½ (1 − e^{−h}): a linear term taken at its value in the middle of the step."""
    return -0.5 * torch.expm1(-h)


def weights(nodes: Tensor, h: Tensor, slope: Slope = exact_slope, curvature: float = 1.0) -> Tensor:
    """w_j with Σ_j w_j p(s_j) = ∫₀¹ h e^{(s−1)h} p(s) ds for polynomials p through the nodes s_j, (…, n).

    Args:
        nodes: Distinct s_j, (…, n); 0 is the start of the step and 1 its end.
        h: Length of the step in λ, (…).
        slope: With two nodes, the integral of p(s) = s.
        curvature: With three, a factor of the integral of p(s) = s².
    """
    count = nodes.shape[-1]
    integrals = moments(h, count)
    if count == 2:
        integrals[..., 1] = slope(h)
    elif count == 3:
        integrals[..., 2] *= curvature
    found: Tensor = torch.linalg.solve(nodes[..., None, :] ** torch.arange(count)[:, None], integrals)
    return found


def flows(
    half_log_snr: Tensor,
    kept: Tensor,
    gain: Tensor,
    used: Sequence[int],
    *,
    implicit: bool = False,
    sign: int = 1,
    slope: Slope = exact_slope,
    curvature: float = 1.0,
) -> list[Flow]:
    """x ← kept x + gain Σ_j w_j D_j for each step: the flow under the polynomial, in λ, through its predictions D_j.

    With kept = σ_n/σ and gain = a_n one prediction x̂0 at the start gives DDIM.

    Args:
        half_log_snr: λ of the grid, (n + 1,).
        kept, gain: Of each step, (n,).
        used: How many predictions each step uses, (n,).
        implicit: Whether the newest of them is at the end of the step, which makes it a corrector.
        sign: −1 for predictions ε̂, for which a and σ change places, and so h and −h.
        slope: How a polynomial of degree one is integrated.
        curvature: Factor of the quadratic term of a polynomial of degree two.
    """
    h, found = half_log_snr.diff(), [Flow(one, ()) for one in kept.tolist()]
    for count in sorted(set(used)):
        step = torch.tensor([i for i, own in enumerate(used) if own == count])
        at = step[:, None] + implicit - torch.arange(count)
        nodes = (half_log_snr[at] - half_log_snr[step, None]) / h[step, None]
        scaled = gain[step, None] * weights(nodes, sign * h[step], slope, curvature)
        for i, row in zip(step.tolist(), scaled.tolist(), strict=True):
            found[i] = found[i]._replace(weights=tuple(row))
    return found
