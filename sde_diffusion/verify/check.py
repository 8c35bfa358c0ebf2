"""What a check is, where it runs, and how one is judged.

A check measures an error and knows its bound. Bounds are derived and of three kinds: rounding, a multiple of the
dtype's ε; Monte Carlo, 4.5 standard errors of the sample at a fixed seed; discretisation, ±0.25 of the declared order.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sde_diffusion.rng import generator

STANDARD_ERRORS = 4.5  # by chance beyond, once in 150 000 checks
SLOPE = 0.25


class Measured(NamedTuple):
    """An error, and the bound that it must not exceed."""

    error: float
    bound: float


class NotShown(Exception):
    """What this dtype, device or installation cannot show; says why. The check is skipped."""


@dataclass(frozen=True, eq=False)
class Check:
    """One thing that must hold.

    Attributes:
        family: What is checked: a line of the table.
        case: On what, e.g. "vp ancestral".
        measure: Finds error and bound; may raise, which is a failure, or `NotShown`.
    """

    family: str
    case: str
    measure: Callable[[], Measured]


@dataclass(frozen=True)
class Setting:
    """Where the checks run: everything is made on `device` in `dtype`, from seeds alone."""

    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float64

    @property
    def eps(self) -> float:
        """Spacing of numbers next to 1."""
        return torch.finfo(self.dtype).eps

    def tensor(self, values: object) -> Tensor:
        """Numbers as a tensor."""
        return torch.as_tensor(values, dtype=self.dtype, device=self.device)

    def normal(self, *shape: int, seed: int = 1) -> Tensor:
        """Standard normal numbers, the same on every device."""
        return self.tensor(torch.randn(*shape, generator=generator(seed), dtype=torch.float64))

    def generator(self, *keys: int) -> torch.Generator:
        """A generator on the device."""
        return generator(*keys, device=self.device)


@dataclass(frozen=True)
class Outcome:
    """A check that has run.

    Attributes:
        status: ok, failed or skipped.
        note: Why it failed without a number, or was skipped.
    """

    area: str
    family: str
    case: str
    error: float
    bound: float
    status: str
    note: str
    seconds: float

    @property
    def share(self) -> float:
        """Error in bounds; a failure without a number is the worst."""
        if self.status == "skipped":
            return -1.0
        return self.error / self.bound if self.bound > 0 and math.isfinite(self.error) else float(self.error != 0) * 1e9


def run(area: str, check: Check) -> Outcome:
    """Judge one check; whatever it raises is its failure."""
    start = time.perf_counter()
    error, bound, note = math.nan, math.nan, ""
    try:
        error, bound = check.measure()
        status = "ok" if error <= bound else "failed"  # NaN fails
    except NotShown as reason:
        status, note = "skipped", str(reason)
    except Exception as raised:
        status, note = "failed", f"{type(raised).__name__}: {' '.join(str(raised).split())}"
    return Outcome(area, check.family, check.case, error, bound, status, note, time.perf_counter() - start)


def collect(area: str, checks: Callable[[Setting], Iterator[Check]], setting: Setting) -> list[Check]:
    """All checks of an area; if they cannot even be listed, that is a check that fails."""
    found: list[Check] = []
    try:
        found.extend(checks(setting))
    except Exception as raised:
        failure = raised

        def fail() -> Measured:
            raise failure

        found.append(Check(f"{area} can be set up", "all", fail))
    return found


def worst(found: Tensor, expected: Tensor | float, *, scale: Tensor | float = 1.0) -> float:
    """max |found − expected| / scale; NaN if there is one."""
    return float(((found.detach().double() - expected) / scale).detach().abs().max())


def relative(found: Tensor, expected: Tensor) -> float:
    """max |found/expected − 1|."""
    return worst(found, expected.double(), scale=expected.double())


def mean_off(values: Tensor, expected: float) -> Measured:
    """The sample mean of `values` (n,) against what it should be, to 4.5 standard errors."""
    values = values.double()
    error = abs(float(values.mean()) - expected)
    return Measured(error, STANDARD_ERRORS * float(values.std()) / math.sqrt(len(values)))


def order(counts: list[int], errors: list[float]) -> float:
    """The slope −d log error / d log count by least squares."""
    x, y = torch.tensor(counts).double().log(), torch.tensor(errors).double().log()
    x, y = x - x.mean(), y - y.mean()
    return -float((x * y).sum() / (x * x).sum())
