"""What the error of a mean over images is made of: nested variance components, and where more work pays.

The score of image i in replicate j (its own dequantisation) along probe k is y_ijk; a cell (i, j) holds k_ij of them:

    y_ijk = μ + A_i + D_ij + P_ijk,    variances S² over the N images, d, p

The mean of image i is that of its m_i cells, and the mean of n images drawn without replacement has the variance

    (1 − n/N) S²/n + W/n,    W = mean_i [d/m_i + p/m_i² Σ_j 1/k_ij],

for the target is the mean over the N images: with all of them scored, only W is left.

Reference: Cochran 1977, Sampling Techniques, section 10.3 (two-stage sampling); Searle, Casella & McCulloch 1992,
Variance Components, section 3.6; Satterthwaite 1946 for the degrees of freedom.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor

from sde_diffusion.errors import require
from sde_diffusion.likelihood.summary import t_quantile

SOURCES = ("images", "dequantisation", "probes")


@dataclass(frozen=True, eq=False)
class Cells:
    """Scores of C cells, each of one image in one replicate; float64, on the CPU.

    Attributes:
        image: Which image, (C,) int64, any numbering.
        probes: k, (C,) int64.
        mean: Mean over the probes, (C,).
        squares: Σ over the probes of squared deviations from it, (C,).
    """

    image: Tensor
    probes: Tensor
    mean: Tensor
    squares: Tensor

    @classmethod
    def of(cls, image: Tensor, values: Tensor) -> Self:
        """The cells of scores `values` (C, k) of the images `image` (C,)."""
        values = values.double().cpu()
        mean = values.mean(1)
        probes = torch.full((len(values),), values.shape[1])
        return cls(image.cpu(), probes, mean, (values - mean[:, None]).square().sum(1))

    @classmethod
    def join(cls, parts: Iterable["Cells"]) -> Self:
        """All cells of `parts`."""
        parts = list(parts)
        return cls(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(cls)))


@dataclass(frozen=True)
class Split:
    """A mean, its interval and what the interval is made of; the units are those of the scores.

    Attributes:
        mean: Unweighted over the images.
        images, dequantisation, probes: The components S², d and p, without bias, so an estimate may be below 0; NaN
            where the cells cannot tell it. It is then counted with the one before it.
        shares: Their parts of `variance`, in the order of `SOURCES`; below 0 where the component is.
        variance: Of the mean.
        df: Degrees of freedom of `variance`.
        confidence: Level of the interval.
        count: Images n.
    """

    mean: float
    images: float
    dequantisation: float
    probes: float
    shares: tuple[float, float, float]
    variance: float
    df: float
    confidence: float
    count: int

    @property
    def quantile(self) -> float:
        """Half-width in standard errors: of Student's t with `df` degrees of freedom."""
        return t_quantile(self.confidence, self.df)

    @property
    def half_width(self) -> float:
        """Of the interval of the mean; NaN where one image in one cell does not tell its spread."""
        return self.quantile * math.sqrt(self.variance)

    @property
    def half_widths(self) -> dict[str, float]:
        """That of each source alone; their squares add up to that of the whole. Components below 0 count as 0."""
        return {
            name: math.nan if math.isnan(share) else self.quantile * math.sqrt(max(0.0, share))
            for name, share in zip(SOURCES, self.shares, strict=True)
        }


def nested_split(
    cells: Cells,
    *,
    population: int | None = None,
    confidence: float = 0.95,
    dequantised: bool = True,
    probed: bool = True,
) -> Split:
    """The mean of the cells' images and its variance components by a nested analysis of variance.

    With s² the sample variance of the image means, E s² = S² + W; so the variance of the mean is estimated by
    (1 − n/N) s²/n + W/N, which is never below 0 where W is not, whatever the sizes of the cells.

    Args:
        cells: Of n images; those with several replicates or probes must have been chosen by chance.
        population: N, the images that the mean is to stand for; None for infinitely many.
        confidence: Level of the interval.
        dequantised: Whether replicates differ in their dequantisation; if not, d = 0.
        probed: Whether the trace has random directions; if not, p = 0.

    Raises:
        InputError: No cells, a score that is not finite, or a bad `confidence`.
    """
    _check(cells, population)
    _, image = torch.unique(cells.image, return_inverse=True)
    n = int(image.max()) + 1

    def per_image(values: Tensor) -> Tensor:
        return torch.zeros(n, dtype=torch.float64).index_add_(0, image, values.double())

    m, inverse = per_image(torch.ones_like(cells.mean)), 1 / cells.probes.double()
    means = per_image(cells.mean) / m
    p, df_p = _pooled(cells.squares.sum(), (cells.probes - 1).sum()) if probed else (0.0, 0.0)
    between = (cells.mean - means[image]).square().sum()
    v, df_v = _pooled(between, (m - 1).sum()) if dequantised else (0.0, 0.0)
    known_p = 0.0 if math.isnan(p) else p
    # E between = Σ (m_i − 1) d + p Σ_ij (1 − 1/m_i)/k_ij
    mixed = float(((1 - 1 / m[image]) * inverse).sum()) / df_v if df_v else 0.0
    d = v - mixed * known_p
    known_d = 0.0 if math.isnan(d) else d
    over_m, over_k = float((1 / m).mean()), float((per_image(inverse) / m**2).mean())
    spread = float(means.var()) if n > 1 else 0.0
    s2 = spread - known_d * over_m - known_p * over_k
    told = not (math.isnan(p) or math.isnan(d))
    sampled = n / population if population is not None and told else 0.0
    upper = (1 - sampled) * spread / n
    within = (max(known_d, 0.0) * over_m + known_p * over_k) * sampled / n
    parts = [(upper, n - 1), (over_m * v * sampled / n if df_v else 0.0, df_v)]
    parts.append(((over_k - (over_m * mixed if df_v else 0.0)) * known_p * sampled / n, df_p))
    alone = n == 1 and sampled < 1
    return Split(
        mean=float(means.mean()),
        images=math.nan if n == 1 else s2,
        dequantisation=d,
        probes=p,
        shares=((1 - sampled) * s2 / n, d * over_m / n, p * over_k / n),
        variance=math.nan if alone else upper + within,
        df=_satterthwaite(parts),
        confidence=confidence,
        count=n,
    )


def coupling_ratio(dequantisation: float, spread: float, draws: int) -> float:
    """Variance of the mean of coupled draws over that of as many independent ones.

    Coupled draws D_c of variance σ² and correlation ρ have d = σ² (1 + (m − 1) ρ)/m and spread σ² (1 − ρ) about their
    mean, so σ² = d + (1 − 1/m) spread, and the ratio is m d/σ².

    Args:
        dequantisation: d, of a replicate, the mean of m draws.
        spread: Mean sample variance of the draws of a cell, without that of the probes.
        draws: m > 1.

    Returns:
        The ratio, NaN where the draws do not vary.
    """
    single = dequantisation + (1 - 1 / draws) * spread
    return draws * dequantisation / single if single > 0 else math.nan


def best_probes(fixed: float, probe: float, *, cost: float, most: int = 64) -> int:
    """The number k of probes that buys the least variance for the work: minimises (1 + `cost` k)(`fixed` + `probe`/k).

    Its real minimum is at √(probe/(cost · fixed)); here the better of the whole numbers beside it.

    Args:
        fixed: The variance of a solve that probes do not change.
        probe: That of one probe, p.
        cost: Of one more probe, in solves without any.
        most: A bound.
    """
    if probe <= 0:
        return 1
    root = math.sqrt(probe / (cost * fixed)) if fixed > 0 else math.inf
    near = {min(max(k, 1), most) for k in ((most,) if root >= most else (math.floor(root), math.ceil(root)))}
    return min(near, key=lambda k: (1 + cost * k) * (max(fixed, 0.0) + probe / k))


def images_needed(split: Split, probes: int, variance: float, population: int) -> int:
    """How many images, of one cell with `probes` each, bring the variance of the mean down to `variance`.

        n = (S² + d + p/k)/(variance + S²/N)

    May exceed `population`: then replicates are needed as well.
    """
    total = max(0.0, split.images + split.dequantisation) + max(0.0, split.probes) / probes
    return 0 if total == 0 else math.ceil(total / (variance + max(0.0, split.images) / population))


def _pooled(squares: Tensor, df: Tensor) -> tuple[float, float]:
    """Mean square and its degrees of freedom; NaN without any."""
    return (float(squares / df), float(df)) if df > 0 else (math.nan, 0.0)


def _satterthwaite(parts: list[tuple[float, float]]) -> float:
    """Degrees of freedom of a sum of independent estimates (value, df): (Σ v)²/Σ v²/df."""
    doubt = sum(value**2 / df for value, df in parts if df > 0)
    return sum(value for value, df in parts if df > 0) ** 2 / doubt if doubt > 0 else math.inf


def _check(cells: Cells, population: int | None) -> None:
    finite = int(cells.mean.isfinite().sum())
    require(
        len(cells.mean) > 0 and finite == len(cells.mean),
        f"scores must be finite and at least one, got {len(cells.mean)}, {finite} of them finite",
    )
    assert population is None or len(torch.unique(cells.image)) <= population
