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
from sde_diffusion.solvers.failures import STATE, not_finite
from sde_diffusion.solvers.noise import NoiseSource
from sde_diffusion.tensors import select

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
            raise SolveError("the solve", STATE, samples=rows)
        return x


def as_time(t: float) -> Tensor:
    """A time as solvers hold it: () float64 on the CPU."""
    return torch.tensor(t, dtype=torch.float64)
