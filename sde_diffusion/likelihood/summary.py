"""From values per image to a mean with an interval."""

import math
from statistics import NormalDist
from typing import NamedTuple

from torch import Tensor

from sde_diffusion.errors import require


class Interval(NamedTuple):
    """mean ± half_width."""

    mean: float
    half_width: float

    def __str__(self) -> str:
        return f"{self.mean:.4f} ± {self.half_width:.4f}"


def normal_quantile(confidence: float) -> float:
    """The z with P(|N(0, 1)| ≤ z) = `confidence`: 1.96 for 0.95.

    Raises:
        InputError: `confidence` is not in (0, 1).
    """
    require(0 < confidence < 1, f"`confidence` must be in (0, 1), got {confidence}")
    return NormalDist().inv_cdf(0.5 + 0.5 * confidence)


def mean_interval(values: Tensor, confidence: float = 0.95) -> Interval:
    """Mean of `values` (n,) with its normal interval z s/√n over the images, in the units of `values`.

    It covers all that varies from image to image: the finite subset, dequantisation and random directions. The
    half-width of a single value is NaN.

    Raises:
        InputError: No values, one that is not finite, or a bad `confidence`.
    """
    _check("values", values)
    values = values.double()
    spread = float(values.std()) if len(values) > 1 else math.nan
    return Interval(float(values.mean()), normal_quantile(confidence) * spread / math.sqrt(len(values)))


def probe_half_width(standard_errors: Tensor, confidence: float = 0.95) -> float:
    """The part of `mean_interval`'s half-width that comes from the random directions, z √(Σ e_i²)/n.

    Args:
        standard_errors: e_i, (n,), `Likelihood.standard_error` in the units wanted: 0 for the exact trace.

    Raises:
        InputError: No values, one that is not finite (a single probe does not tell its error), or a bad `confidence`.
    """
    _check("standard_errors", standard_errors)
    return normal_quantile(confidence) * float(standard_errors.double().norm()) / len(standard_errors)


def _check(name: str, values: Tensor) -> None:
    finite = int(values.isfinite().sum())
    require(
        values.ndim == 1 and len(values) > 0 and finite == len(values),
        f"`{name}` must be finite numbers (n,) with n > 0, got shape {tuple(values.shape)}, {finite} of them finite",
    )
