"""The solver protocol and the one loop over a time grid.

A solver takes x_t at `t_from` to x_t at `t_to`. What a step needs besides the score depends on the time grid alone: a
solver plans the whole grid at once, in float64 on the CPU, and each step then takes its row of plain numbers, which
neither upcast nor synchronise. Solvers are frozen values: re-entrant, picklable, printable; multistep history is passed
through `state`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from sde_diffusion.errors import SolveError, require, require_positive
from sde_diffusion.grids import TimeGrid, UniformGrid
from sde_diffusion.sde import SDE
from sde_diffusion.solvers.failures import STATE, not_finite
from sde_diffusion.solvers.process import ReverseProcess

MOST_STEPS = 1_000_000  # more are a slip of the hand: their grid alone fills the memory


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


class AffineStep(NamedTuple):
    """One step x ← kept x + gain D + spread z from `t` to `t_next`, () float64 on the CPU each."""

    t: Tensor
    t_next: Tensor
    kept: float
    gain: float
    spread: float


def affine(times: Tensor, kept: Tensor, gain: Tensor, spread: Tensor) -> list[AffineStep]:
    """The steps along the grid `times` (n + 1,) with these coefficients, (n,) each."""
    return [AffineStep(*row) for row in columns(times, kept, gain, spread)]


@dataclass(frozen=True, kw_only=True)
class AffineSolver(GridSolver):
    """A solver of steps x ← kept x + gain D + spread z without memory: a subclass writes `plan` alone, by `affine`.

    D is the score at the beginning of the step, or E[x_0 | x_t]: `estimate` says which. One evaluation a step. Noise is
    drawn where the solver is `stochastic`.
    """

    estimate: ClassVar[Literal["score", "x0"]] = "score"

    @abstractmethod
    def plan(self, sde: SDE, times: Tensor) -> Sequence[AffineStep]:
        """The coefficients of all steps along `times` (n + 1,), float64 on the CPU: the formulas of the method."""

    def update(self, process: ReverseProcess, x: Tensor, now: AffineStep, state: None) -> tuple[Tensor, None]:
        """See `GridSolver.update`."""
        found = process.score(x, now.t) if self.estimate == "score" else process.x0(x, now.t)
        x_next = torch.add(now.kept * x, found, alpha=now.gain)
        if not self.stochastic:
            return x_next, None
        return x_next.add_(process.noise(x, now.t, now.t_next), alpha=now.spread), None
