"""Averages over training by a power of time, and how one is found from others after training.

The average of length σ_rel at time t [steps] weighs the weights θ(τ) by the density (γ + 1) τ^γ / t^(γ+1) on (0, t].
That is of one shape at all times: its standard deviation is σ_rel · t. In steps, θ(τ) being constant on (k − 1, k],

    θ̂(t) = β θ̂(t − 1) + (1 − β) θ(t),    β = (1 − 1/t)^(γ+1),    t = 1, 2, …

is that integral exactly; the first weights are not remembered, for β(1) = 0.

Reference: Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models", arXiv:2312.02696,
section 3.1 and appendix C.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sde_diffusion.errors import require

LONGEST = 1 / math.sqrt(12)  # σ_rel of the mean over all of training, γ = 0


class Profile(NamedTuple):
    """The density of one average: of length σ_rel, at a time [steps]."""

    length: float
    time: float


@dataclass(frozen=True)
class Synthesis:
    """Σ c_i p_i ≈ p for profiles p_i.

    Attributes:
        coefficients: c_i, in the order of the profiles; their sum is 1.
        error: ‖Σ c_i p_i − p‖ / ‖p‖ in L²(dτ).
    """

    coefficients: tuple[float, ...]
    error: float


def exponent(length: float) -> float:
    """γ ≥ 0 of a length σ_rel, the greatest root of γ³ + 7γ² + (16 − σ⁻²) γ + 12 − σ⁻² = 0.

    Raises:
        InputError: `length` outside (0, 12^(−½)), the length of the plain mean.
    """
    require(0 < length < LONGEST, f"the length of an average must be in (0, {LONGEST:.4f}), got {length}")
    inverse = length**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


def length_of(gamma: float) -> float:
    """σ_rel = (γ + 1)^½ (γ + 2)^(−1) (γ + 3)^(−½), the standard deviation of the profile over t."""
    return math.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2)


def decay(gamma: float, time: int) -> float:
    """β at t = `time`, counted from 1."""
    return float((1 - 1 / time) ** (gamma + 1))


def synthesise(profiles: Sequence[Profile], wanted: Profile) -> Synthesis:
    """The combination of `profiles` that is nearest to `wanted` in L²(dτ), among those whose coefficients sum to 1.

    The inner products are closed forms, with m = min(t_i, t_j):

        ⟨p_i, p_j⟩ = (γ_i + 1)(γ_j + 1)/(γ_i + γ_j + 1) · m/(t_i t_j) · (m/t_i)^γ_i (m/t_j)^γ_j

    The condition on the sum is ours: weights that do not change must come out as they are. With it every weight is off
    by at most ‖Σ c_i p_i − p‖ (∫ (θ − c)² dτ)^½, the integral up to the latest of the times, for any constant c.

    Raises:
        InputError: A length out of range, or no profiles.

    Reference: Karras et al. 2024, appendix C.3.
    """
    require(len(profiles) > 0, "an average can only be found from others, got none")
    gram = _products([*profiles, wanted])
    scale = gram[-1, -1]
    inner, aim = gram[:-1, :-1] / scale, gram[:-1, -1] / scale
    # c = c_0 + N y with Σ c_0 = 1 and the columns of N orthonormal of sum 0
    count = len(profiles)
    start = np.full(count, 1 / count)
    free = np.linalg.qr(np.eye(count) - 1 / count)[0][:, : count - 1]
    y = np.linalg.lstsq(free.T @ inner @ free, free.T @ (aim - inner @ start), rcond=None)[0]
    found = start + free @ y
    squared = 1 - 2 * found @ aim + found @ inner @ found
    return Synthesis(tuple(found.tolist()), math.sqrt(max(0.0, float(squared))))


def _products(profiles: Sequence[Profile]) -> npt.NDArray[np.float64]:
    """⟨p_i, p_j⟩, (n, n)."""
    gamma = np.array([exponent(profile.length) for profile in profiles])
    time = np.array([profile.time for profile in profiles], dtype=np.float64)
    least = np.minimum(time[:, None], time)
    tails = (least / time[:, None]) ** gamma[:, None]
    norms = (gamma[:, None] + 1) * (gamma + 1) / (gamma[:, None] + gamma + 1)
    products: npt.NDArray[np.float64] = norms * least / (time[:, None] * time) * tails * tails.T
    return products
