"""The reverse process that solvers see, the solver protocol and the one loop over a time grid.

A solver takes x_t at `t_from` to x_t at `t_to`. What a step needs besides the score depends on the time grid alone: a
solver plans the whole grid at once, in float64 on the CPU, and each step then takes its row of plain numbers, which
neither upcast nor synchronise. Solvers are frozen values: re-entrant, picklable, printable; multistep history is passed
through `state`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from sde_diffusion.errors import SolveError, require, require_positive
from sde_diffusion.grids import TimeGrid, UniformGrid
from sde_diffusion.score import Marginal, ScoreFn, ahead, on_device, reverse_drift, score_and_fraction
from sde_diffusion.sde import SDE
from sde_diffusion.solvers.noise import NoiseSource
from sde_diffusion.tensors import select

STATE = "the state left the range of floating-point numbers; take more steps, or clip the predicted data"
NETWORK = "the network gave NaN or infinity for a finite state; take other weights, such as an earlier checkpoint"

MOST_STEPS = 1_000_000  # more are a slip of the hand: their grid alone fills the memory

Observer = Callable[[Tensor, float], None]
"""Called with the state (B, *D) and its time after every step."""

X0Map = Callable[[Tensor], Tensor]
"""A map of the predicted clean sample (B, *D), e.g. clipping to the data range."""


class _Moment(NamedTuple):
    """A time that is known beforehand: as score functions take it, (B,), the score there, and a and σ as numbers."""

    times: Tensor
    score: Callable[[Tensor], Tensor]
    marginal: Marginal


class ReverseProcess:
    """An SDE with a score: everything a solver may ask for. The only place that counts score evaluations.

    Args:
        sde: The forward process.
        score_fn: (x, t) -> ∇ log p_t(x).
        noise: Source of z for stochastic solvers.
        project: Applied to every predicted x̂0; score and ε̂ follow it.
        observer: Called after every step.
    """

    def __init__(
        self,
        sde: SDE,
        score_fn: ScoreFn,
        *,
        noise: NoiseSource | None = None,
        project: X0Map | None = None,
        observer: Observer | None = None,
    ) -> None:
        self.sde = sde
        self.project = project
        self._calls = [0]  # shared with the processes that `select` gives
        self._score_fn = score_fn
        self._noise = noise
        self._observer = observer
        self._known: dict[float, _Moment] = {}

    @property
    def nfe(self) -> int:
        """Score evaluations so far."""
        return self._calls[0]

    def select(self, rows: Tensor) -> "ReverseProcess":
        """The process of the samples `rows` (n,) of the batch; it counts together with this one."""
        part = copy(self)
        part._score_fn, part._known = select(self._score_fn, rows), {}
        return part

    def along(self, times: Iterable[Tensor], x: Tensor) -> "ReverseProcess":
        """The same for batches like `x`, with what depends on `times`, each (), computed beforehand; counts together.

        At these times nothing is computed but the network, and nothing waits for the device.
        """
        stops = torch.tensor(sorted(set(map(float, times))), dtype=torch.float64)
        marginals = map(Marginal, self.sde.mean_coef(stops).tolist(), self.sde.std(stops).tolist())
        moments = map(_Moment, on_device(stops, x), ahead(self._score_fn, stops, x), marginals)
        known = copy(self)
        known._known = dict(zip(stops.tolist(), moments, strict=True))
        return known

    def score(self, x: Tensor, t: Tensor) -> Tensor:
        """∇ log p_t(x), (B, *D). Costs one score evaluation."""
        score = self._evaluate(x, t)
        return score if self.project is None else self._projected(score, x, t)

    def score_and_fraction(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The score, and v of the variance of a reverse step, each (B, *D). Costs one score evaluation.

        Raises:
            InputError: The score function does not know the variance.
        """
        self._calls[0] += 1
        known = self._moment(t)
        times = t.to(x).expand(len(x)) if known is None else known.times
        score, fraction = score_and_fraction(self._score_fn, x, times)
        return (score if self.project is None else self._projected(score, x, t)), fraction

    def eps(self, x: Tensor, t: Tensor) -> Tensor:
        """E[ε | x_t], (B, *D). Costs one score evaluation."""
        return self._marginal(x, t).eps(self.score(x, t))

    def x0(self, x: Tensor, t: Tensor) -> Tensor:
        """E[x_0 | x_t] by Tweedie's formula, (B, *D). Costs one score evaluation."""
        x0 = self._marginal(x, t).x0(self._evaluate(x, t), x)
        return x0 if self.project is None else self.project(x0)

    def drift(self, x: Tensor, t: Tensor, eta: float) -> Tensor:
        """f x − ½(1 + η²) g² s, (B, *D). Costs one score evaluation."""
        return reverse_drift(self.sde, self.score(x, t), x, t, eta)

    def noise(self, x: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
        """Fresh z ~ N(0, I) for the step from `t` to `t_next`, (B, *D)."""
        assert self._noise is not None, "a stochastic solver needs a noise source"
        return self._noise(x, t, t_next)

    @property
    def observed(self) -> bool:
        """Whether there is an observer."""
        return self._observer is not None

    def observe(self, x: Tensor, t: float) -> None:
        """Report a state to the observer, if there is one."""
        if self._observer is not None:
            self._observer(x, t)

    def watched(self) -> "ReverseProcess | None":
        """The process as at the start of a solve, which stops at the first score that is not finite.

        It looks at every score, which waits for the device. None where the noise cannot be drawn again.
        """
        noise = None if self._noise is None else self._noise.again()
        if noise is None and self._noise is not None:
            return None
        return ReverseProcess(self.sde, _Watched(self._score_fn), noise=noise, project=self.project)

    def _evaluate(self, x: Tensor, t: Tensor) -> Tensor:
        self._calls[0] += 1
        known = self._moment(t)
        return self._score_fn(x, t.to(x).expand(len(x))) if known is None else known.score(x)

    def _projected(self, score: Tensor, x: Tensor, t: Tensor) -> Tensor:
        assert self.project is not None
        marginal = self._marginal(x, t)
        return marginal.score(self.project(marginal.x0(score, x)), x)

    def _marginal(self, x: Tensor, t: Tensor) -> Marginal:
        known = self._moment(t)
        return Marginal.of(self.sde, t, x) if known is None else known.marginal

    def _moment(self, t: Tensor) -> _Moment | None:
        return self._known.get(float(t)) if self._known and t.ndim == 0 else None


@dataclass(frozen=True, eq=False)
class _Watched:
    """A score function that raises `SolveError` where the state or the score is not finite, and names the samples."""

    score_fn: ScoreFn
    rows: Tensor | None = None

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        score = self.score_fn(x, t)
        self._check(x, score, t)
        return score

    def score_and_fraction(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        score, fraction = score_and_fraction(self.score_fn, x, t)
        self._check(x, score + 0 * fraction, t)
        return score, fraction

    def _check(self, x: Tensor, score: Tensor, t: Tensor) -> None:
        check_finite(x, STATE, t, self.rows)
        check_finite(score, NETWORK, t, self.rows)

    def select(self, rows: Tensor) -> "_Watched":
        return _Watched(select(self.score_fn, rows), rows if self.rows is None else self.rows[rows])


@dataclass(frozen=True, kw_only=True)
class Solver(ABC):
    """Takes states from one time to another along the reverse process."""

    @property
    @abstractmethod
    def order(self) -> int:
        """Order of convergence in the step size with the exact score; of the distribution if the solver is stochastic.

        For an adaptive solver, that of the steps it takes.
        """

    @property
    @abstractmethod
    def stochastic(self) -> bool:
        """Whether it draws noise. Only deterministic solvers can `encode`."""

    @abstractmethod
    def solve(self, process: ReverseProcess, x: Tensor, t_from: float, t_to: float) -> Tensor:
        """The state at `t_to`, (B, *D), from the state `x` at `t_from`."""


class Row(Protocol):
    """What a step needs to know: its times, () float64 on the CPU, and the numbers of its method."""

    @property
    def t(self) -> Tensor: ...
    @property
    def t_next(self) -> Tensor: ...


class Walk(NamedTuple):
    """Where steps that are taken one by one have been, (), and what the last one left to the next."""

    times: tuple[Tensor, ...]
    state: Any


def columns(times: Tensor, *numbers: Tensor) -> Iterable[tuple[Any, ...]]:
    """(t, t_next, numbers of that step) for each step of the grid `times` (n + 1,), each of `numbers` (n,)."""
    return zip(times[:-1].unbind(), times[1:].unbind(), *(column.tolist() for column in numbers), strict=True)


@dataclass(frozen=True, kw_only=True)
class GridSolver(Solver):
    """A solver that takes a fixed number of steps along a time grid. Owns the loop; a subclass plans and updates.

    Attributes:
        steps: Number of steps.
        grid: How the times of the steps are spread.
    """

    steps: int = 1000
    grid: TimeGrid = UniformGrid()

    def __post_init__(self) -> None:
        require_positive(steps=self.steps)
        require(self.steps <= MOST_STEPS, f"`steps` must be ≤ {MOST_STEPS}, got {self.steps}")

    @property
    def evaluations(self) -> int:
        """Score evaluations of a step."""
        return 1

    @abstractmethod
    def plan(self, sde: SDE, times: Tensor) -> Sequence[Row]:
        """What each step along `times` (n + 1,), float64 on the CPU, needs to know: the formulas of the method."""

    @abstractmethod
    def update(self, process: ReverseProcess, x: Tensor, now: Any, state: Any) -> tuple[Tensor, Any]:
        """The state after the step of the row `now` of the plan, and what the next step should know.

        Args:
            x: State at `now.t`, (B, *D).
            state: Of the last step, None at the start.
        """

    def step(
        self, process: ReverseProcess, x: Tensor, t: Tensor, t_next: Tensor, state: Walk | None
    ) -> tuple[Tensor, Walk]:
        """One step by itself from `t` to `t_next`, () float64 on the CPU; plans all steps so far, so for few of them.

        Args:
            x: State at `t`, (B, *D).
            state: What the last step gave, or None at the start.
        """
        times = (*(state.times if state else (t,)), t_next)
        now = self.plan(process.sde, torch.stack(times))[-1]
        x, left = self.update(process, x, now, state.state if state else None)
        return x, Walk(times, left)

    def solve(self, process: ReverseProcess, x: Tensor, t_from: float, t_to: float) -> Tensor:
        """See `Solver.solve`.

        Raises:
            InputError: Two times of the grid coincide.
            SolveError: The end is not finite.
        """
        times = self.grid(process.sde, t_from, t_to, self.steps)
        plan, state = self.plan(process.sde, times), None
        process = process.along([t for row in plan for t in (row.t, row.t_next)], x)
        process.observe(x, t_from)
        for now in plan:
            x, state = self.update(process, x, now, state)
            process.observe(x, float(now.t_next))
        rows = not_finite(x)  # once for the whole solve, for it waits for the device
        if rows:
            raise SolveError("the solve", "the state is not finite", t=t_to, samples=rows, traced=False)
        return x


def not_finite(x: Tensor) -> list[int]:
    """The samples of `x` (B, *D) with a number that is not finite. Waits for the device."""
    if bool(x.isfinite().all()):
        return []
    rows: list[int] = (~x.flatten(1).isfinite().all(1)).nonzero()[:, 0].tolist()
    return rows


def check_finite(x: Tensor, reason: str, t: Tensor, rows: Tensor | None = None) -> None:
    """Raise `SolveError` where `x` (n, *D) is not finite at the times `t` (n,).

    Args:
        rows: Which samples of the batch these are, (n,); None for all.
    """
    found = not_finite(x)
    if found:
        samples = found if rows is None else rows[found].tolist()
        raise SolveError("the solve", reason, t=float(t[found[0]]), samples=samples)


def traced(solve: Callable[[], Tensor], again: Callable[[], Tensor], *, t_from: float, start: int = 0) -> Tensor:
    """`solve()`, whose errors name the time and the sample at which something was not finite first.

    Nothing is looked at on the way: a solve that failed and cannot tell is done `again`, looking at every score.

    Args:
        again: The same solve, which raises where something is not finite.
        t_from: Where the solve begins.
        start: Index of the first sample of the batch in its run.

    Raises:
        SolveError: The solve failed.
    """
    try:
        return solve()
    except SolveError as error:
        failure = error
    if not failure.traced:
        try:
            again()
        except SolveError as error:
            if error.traced:  # a solver with steps of its own may have looked ahead and come back before it failed
                ahead = abs(error.t - t_from) > abs(failure.t - t_from)
                failure = failure.because(error) if ahead else error
    raise failure.counted_from(start)


def as_time(t: float) -> Tensor:
    """A time as solvers hold it: () float64 on the CPU."""
    return torch.tensor(t, dtype=torch.float64)
