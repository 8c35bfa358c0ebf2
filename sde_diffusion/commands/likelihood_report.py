"""What `likelihood` says of its error: the split of the half-width, and what no half-width covers."""

import math
import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sde_diffusion.config.build import Trained
from sde_diffusion.likelihood import Divergence, Examples, Interval, Split, mean_interval, prior_gap, truncation_error

NAMES = {"images": "finite subset", "dequantisation": "dequantisation", "probes": "trace probes"}


@dataclass(frozen=True)
class Ends:
    """What the two ends of the flow do to the mean, in bits/dim, over some of the examples.

    Attributes:
        truncation: Bits/dim under p at t_min minus those under p at 0, to first order.
        prior_gap: Upper bound of what the prior in place of p_T adds, for an exact score.
    """

    truncation: Interval
    prior_gap: Interval

    def facts(self) -> dict[str, Any]:
        """For the JSON file."""
        return {
            name: dict(zip(("mean", "half_width"), interval.plain(), strict=True))
            for name, interval in (("truncation", self.truncation), ("prior_gap_bound", self.prior_gap))
        }


def ends_of(trained: Trained, examples: Examples, divergence: Divergence, *, first: int, count: int) -> Ends:
    """Truncation and prior gap over the first draw of `count` examples. Costs one score with its trace for each."""
    sde, spec, options = trained.model.sde, trained.spec, trained.config.likelihood
    batch, confidence = options.batch, options.confidence
    truncation, gap = [], []
    for start in range(first, first + count, batch):
        x = examples.noised(start, min(batch, first + count - start), sde).x[0]
        score_fn = examples.score_fn(trained.model.bind, start, len(x))
        error = truncation_error(score_fn, sde, x, divergence=divergence, seed=examples.seed, start=start)
        truncation.append(-error.cpu() / (spec.dims * math.log(2)))
        gap.append(prior_gap(sde, x).cpu() / (spec.dims * math.log(2)))
    return Ends(mean_interval(torch.cat(truncation), confidence), mean_interval(torch.cat(gap), confidence))


def finite(value: float) -> float | None:
    """A number that JSON knows, or null."""
    return value if math.isfinite(value) else None


def split_facts(split: Split) -> dict[str, Any]:
    """The split for the JSON file: half-widths, and the variance of one draw from each source."""
    variances = (split.images, split.dequantisation, split.probes)
    return {
        name: {"half_width": finite(width), "variance": finite(variance)}
        for (name, width), variance in zip(split.half_widths.items(), variances, strict=True)
    }


def split_rows(split: Split, notes: dict[str, str]) -> list[tuple[str, str, str]]:
    """Rows (source, what, half-width) of the random sources; `notes` says what each is, and one without is left out."""
    of_probes = "dequantisation" if "dequantisation" in notes else "finite subset"
    unknown = {"dequantisation": "included in the finite subset", "probes": f"included in the {of_probes}"}
    return [
        (NAMES[name], notes[name], unknown[name] if math.isnan(width) else f"{width:.5f}")
        for name, width in split.half_widths.items()
        if name in notes
    ]


def end_rows(ends: Ends, trained: Trained) -> list[tuple[str, str, str]]:
    """Rows of what the half-width does not cover."""
    sde = trained.model.sde
    shift, gap = ends.truncation, ends.prior_gap
    return [
        ("truncation", f"p at t_min = {sde.t_min:g} for p at 0, first order", signed(shift)),
        ("prior gap", f"N(0, {sde.prior_std:g}² I) for p at t = {sde.t_max:g}, upper bound", f"≤ {gap.mean:+.5f}"),
    ]


def signed(interval: Interval) -> str:
    """A bias with its interval."""
    return f"{interval.mean:+.5f}" + ("" if math.isnan(interval.half_width) else f" ± {interval.half_width:.5f}")


def aligned(*blocks: Sequence[Sequence[str]], numbers: Collection[int] = ()) -> str:
    """Aligned columns, with a rule between blocks of rows; those of `numbers` are aligned at the right."""
    widths = [max(map(_width, column)) for column in zip(*(row for block in blocks for row in block), strict=True)]

    def cell(text: str, column: int) -> str:
        space = " " * (widths[column] - _width(text))
        return space + text if column in numbers else text + space

    lines = [
        "\n".join("  ".join(map(cell, row, range(len(row)))).rstrip() for row in block) for block in blocks if block
    ]
    return f"\n{'─' * sum(widths, 2 * len(widths) - 2)}\n".join(lines)


def _width(text: str) -> int:
    """Columns that a terminal gives a text: combining marks have none."""
    return sum(not unicodedata.combining(c) for c in text)
