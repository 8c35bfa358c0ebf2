"""The mean score of a set of images to a stated tolerance, by as few solves as its own variances allow.

A pilot, a few images in two replicates of two probes each, tells the variance components and how loose the ODE solve
may be. Then work goes where the variance is: to unseen images while there are any, each solved once along the number of
probes that pays best, and after that to further replicates of all. The components are estimated anew after every
round, until half-width + ODE error ≤ the tolerance.

The images must come in random order, for the first of a sorted set stand for nothing. All decisions follow from the
scores alone, so a run that is repeated asks the same and ends at the same numbers.

Reference: Cochran 1977, Sampling Techniques, section 10.6 (optimum allocation); Chow & Robbins 1965 for stopping at a
fixed width.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from sde_diffusion.errors import require, require_positive
from sde_diffusion.likelihood.audit.variance import Cells, Split, best_probes, images_needed, nested_split
from sde_diffusion.likelihood.summary import Interval, t_quantile

ODE_SHARE = 0.1  # of the tolerance, that the ODE error may take where its tolerance is chosen here
PILOT_REPLICATES = PILOT_PROBES = 2  # the fewest that tell a variance
LEAST_ROUND, GROWTH = 32, 0.1  # images of a round: at least these many, and this share of those scored


class Tolerance(NamedTuple):
    """Of one ODE solve."""

    rtol: float
    atol: float


LADDER = tuple(Tolerance(tol, tol) for tol in (1e-2, 1e-3, 1e-4, 1e-5, 1e-6))
"""To try, loosest first; the last only measures the one before it."""


@dataclass(frozen=True)
class Request:
    """Scores that are wanted: of the images `first` … `first` + `count` − 1 in random order, in one replicate.

    A score must depend on the image, the replicate, the probe's number and the ODE alone.
    """

    first: int
    count: int
    replicate: int
    probes: int
    ode: Tolerance


Score = Callable[[Request], Tensor]
"""Request -> scores in bits/dim or any other unit, (count, probes)."""


@dataclass(frozen=True, kw_only=True)
class Goal:
    """When to stop.

    Attributes:
        tol: Half-width wanted, in the units of the scores.
        confidence: Level of the interval.
        max_solves: Solves of one image before the mean is given as it is; None for no bound.
        pilot: Images of the pilot.
    """

    tol: float
    confidence: float = 0.95
    max_solves: int | None = None
    pilot: int = 64

    def __post_init__(self) -> None:
        require_positive(tol=self.tol, pilot=self.pilot)
        require(0 < self.confidence < 1, f"`confidence` must be in (0, 1), got {self.confidence}")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run came to.

    Attributes:
        split: Mean and interval of the scores.
        ode: Mean error of the ODE solve, scored − tighter, with its interval; NaN where there is none to measure.
        tolerance: Of the solves.
        status: `met`; `budget`: the solves were spent; `ode`: the ODE error alone is as large as the tolerance.
        solves: Spent, of one image each.
        probes: Probes of a solve, last chosen.
    """

    split: Split
    ode: Interval
    tolerance: Tolerance
    status: Literal["met", "budget", "ode"]
    solves: int
    probes: int

    @property
    def ode_share(self) -> float:
        """|mean error| + half-width of the ODE solve: a bias, so it is added, not its square."""
        return abs(self.ode.mean) + self.ode.half_width

    @property
    def half_width(self) -> float:
        """Of the whole: that of the split, and the error of the ODE."""
        return self.split.half_width + self.ode_share


Tell = Callable[[Outcome], None]


class Scoring:
    """A run to a tolerance.

    Args:
        score: Gives the scores that are asked for.
        population: Images there are, N.
        goal: When to stop.
        ladder: ODE tolerances to choose from, loosest first; the last is the measure of the one before it. Of two, the
            first is taken, whatever its error.
        dequantised: Whether replicates have a dequantisation each.
        probed: Whether the trace is estimated along random directions.
        probe_cost: Of one more probe in score evaluations.
        draws: Solves in one replicate of an image.
        tell: Is told how far it is after each round.

    Raises:
        InputError: A budget that cannot hold the pilot.
    """

    def __init__(
        self,
        score: Score,
        population: int,
        goal: Goal,
        *,
        ladder: Sequence[Tolerance] = LADDER,
        dequantised: bool = True,
        probed: bool = True,
        probe_cost: float = 1.1,
        draws: int = 1,
        tell: Tell | None = None,
    ) -> None:
        assert population > 0
        assert len(ladder) > 1
        self._score, self._population, self._goal, self._ladder = score, population, goal, ladder
        self._dequantised, self._probed, self._draws, self._tell = dequantised, probed, draws, tell
        self._probe_cost = probe_cost
        self._pilot = min(goal.pilot, population)
        self._replicates = PILOT_REPLICATES if dequantised else 1
        self._probes = PILOT_PROBES if probed else 1
        self._covered = [0]  # how many images, in their order, have each replicate
        self._cells: list[Cells] = []
        self._solves = 0
        least = self._pilot * draws * (self._replicates + 1)
        require(
            goal.max_solves is None or goal.max_solves >= least,
            f"`max_solves` must be ≥ {least}, what the pilot of {self._pilot} examples takes, got {goal.max_solves}; "
            "raise it, or leave --tol out",
        )

    def run(self) -> Outcome:
        """Score until the goal is met or cannot be. Costs what `Outcome.solves` says."""
        self._tolerance, self._ode = self._climb()
        for replicate in range(1, self._replicates):
            self._take(0, self._pilot, replicate)
        while True:
            outcome = self._outcome()
            if self._tell is not None:
                self._tell(outcome)
            if outcome.status != "budget":
                return outcome
            wanted = self._next(outcome)
            if wanted is None:
                return outcome
            self._take(*wanted)

    def _climb(self) -> tuple[Tolerance, Interval]:
        """The loosest ODE tolerance whose error is small enough, and that error; its scores become the pilot's first.

        Every rung is the measure of the one before it, on the same noise and directions.
        """
        rungs = [self._ask(0, self._pilot, 0, self._ladder[0])]
        for finer in self._ladder[1:]:
            rungs.append(self._ask(0, self._pilot, 0, finer))
            error = self._ode_error(rungs[-2] - rungs[-1])
            good = abs(error.mean) + error.half_width <= ODE_SHARE * self._goal.tol
            if good or finer == self._ladder[-1] or not self._afford(1 + self._replicates - 1):
                break
        self._put(0, 0, rungs[-2])
        return self._ladder[len(rungs) - 2], error

    def _ode_error(self, difference: Tensor) -> Interval:
        means = difference.double().mean(1)
        n = len(means)
        if n == self._population and not (self._dequantised or self._probed):
            return Interval(float(means.mean()), 0.0)  # these are all there is
        spread = float(means.std()) if n > 1 else float(means.abs().max())
        quantile = t_quantile(self._goal.confidence, max(n - 1, 1))
        return Interval(float(means.mean()), quantile * spread / math.sqrt(n))

    def _afford(self, pilots: int) -> bool:
        left = math.inf if self._goal.max_solves is None else self._goal.max_solves - self._solves
        return pilots * self._pilot * self._draws <= left

    def _outcome(self) -> Outcome:
        split = nested_split(
            Cells.join(self._cells),
            population=self._population,
            confidence=self._goal.confidence,
            dequantised=self._dequantised,
            probed=self._probed,
        )
        share = abs(self._ode.mean) + self._ode.half_width
        met = split.half_width + share <= self._goal.tol
        status: Literal["met", "budget", "ode"] = "met" if met else "ode" if share >= self._goal.tol else "budget"
        return Outcome(
            split=split,
            ode=self._ode,
            tolerance=self._tolerance,
            status=status,
            solves=self._solves,
            probes=self._probes,
        )

    def _next(self, outcome: Outcome) -> tuple[int, int, int] | None:
        """(first, count, replicate) of the next round, and how many probes it takes; None where no solve is left."""
        split, seen = outcome.split, self._covered[0]
        variance = ((self._goal.tol - outcome.ode_share) / split.quantile) ** 2
        both, p = max(0.0, split.images + split.dequantisation), max(0.0, split.probes)
        d = min(max(0.0, split.dequantisation), both)  # the sum is known from every image, d from the pilot alone
        least = max(LEAST_ROUND, math.ceil(GROWTH * seen))
        if seen < self._population:
            self._probes = best_probes(both, p, cost=self._probe_cost)
            needed = images_needed(split, self._probes, variance, self._population)
            if needed > self._population:  # all images will be scored, so that they differ costs nothing
                self._probes = best_probes(d, p, cost=self._probe_cost)
            replicate, first, needed = 0, seen, needed - seen
        else:
            self._probes = best_probes(d, p, cost=self._probe_cost)
            replicate = next((j for j, n in enumerate(self._covered) if n < self._population), len(self._covered))
            first = self._covered[replicate] if replicate < len(self._covered) else 0
            gain = (d + p / self._probes) / (replicate * (replicate + 1) * seen**2)  # of one more cell
            needed = math.ceil((split.variance - variance) / gain) if gain > 0 else least
        count = min(max(needed, least), max(seen, least), self._population - first)
        if self._goal.max_solves is not None:
            count = min(count, (self._goal.max_solves - self._solves) // self._draws)
        return (first, count, replicate) if count > 0 else None

    def _take(self, first: int, count: int, replicate: int) -> None:
        self._put(first, replicate, self._ask(first, count, replicate, self._tolerance))

    def _put(self, first: int, replicate: int, values: Tensor) -> None:
        if replicate == len(self._covered):
            self._covered.append(0)
        assert first == self._covered[replicate]
        self._covered[replicate] += len(values)
        self._cells.append(Cells.of(torch.arange(first, first + len(values)), values))

    def _ask(self, first: int, count: int, replicate: int, ode: Tolerance) -> Tensor:
        values = self._score(Request(first, count, replicate, self._probes, ode))
        assert values.shape == (count, self._probes)
        self._solves += count * self._draws
        return values
