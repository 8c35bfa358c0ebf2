"""From values per image to a mean with an interval."""

import math
from typing import NamedTuple

from torch import Tensor

from sde_diffusion.errors import require


class Interval(NamedTuple):
    """mean ± half_width."""

    mean: float
    half_width: float

    def __str__(self) -> str:
        return f"{self.mean:.4f} ± {self.half_width:.4f}"

    def plain(self) -> tuple[float, float | None]:
        """The two as JSON knows them: None for a half-width that is not known."""
        return self.mean, None if math.isnan(self.half_width) else self.half_width


class BitsPerDim(Interval):
    """A mean number of bits per dimension with its interval, printed as `1.92 ± 0.03`."""

    def __str__(self) -> str:
        digits = 2
        if 0 < self.half_width < 0.01:
            digits = -math.floor(math.log10(self.half_width))
        return f"{self.mean:.{digits}f} ± {self.half_width:.{digits}f}"


def t_quantile(confidence: float, df: float) -> float:
    """The q with P(|t| ≤ q) = `confidence` for Student's t with `df` degrees of freedom; 1.96 for 0.95 and infinite df.

    Raises:
        InputError: `confidence` is not in (0, 1).
    """
    from scipy.special import stdtrit  # a quarter of a second to import: only who asks for an interval pays

    require(0 < confidence < 1, f"`confidence` must be in (0, 1), got {confidence}")
    return float(stdtrit(min(df, 1e16), 0.5 + 0.5 * confidence))


def mean_interval(values: Tensor, confidence: float = 0.95) -> Interval:
    """Mean of `values` (n,) with its interval q s/√n over the images, in the units of `values`.

    q is `t_quantile` with n − 1 degrees of freedom, so it covers normal values as often as stated from n = 2 on. It
    covers all that varies from image to image: the finite subset, dequantisation and random directions. The
    half-width of a single value is NaN.

    Raises:
        InputError: No values, one that is not finite, or a bad `confidence`.
    """
    _check("values", values)
    values = values.double()
    spread = float(values.std()) if len(values) > 1 else math.nan
    return Interval(float(values.mean()), t_quantile(confidence, len(values) - 1) * spread / math.sqrt(len(values)))


def probe_half_width(standard_errors: Tensor, confidence: float = 0.95) -> float:
    """Half-width that the random directions alone would give a mean, z √(Σ e_i²)/n with the normal quantile z.

    Args:
        standard_errors: e_i, (n,), `Likelihood.standard_error` in the units wanted: 0 for the exact trace.

    Raises:
        InputError: No values, one that is not finite (a single probe does not tell its error), or a bad `confidence`.
    """
    _check("standard_errors", standard_errors)
    return t_quantile(confidence, math.inf) * float(standard_errors.double().norm()) / len(standard_errors)


def _check(name: str, values: Tensor) -> None:
    finite = int(values.isfinite().sum())
    require(
        values.ndim == 1 and len(values) > 0 and finite == len(values),
        f"`{name}` must be finite numbers (n,) with n > 0, got shape {tuple(values.shape)}, {finite} of them finite",
    )
