"""Predictor–corrector sampling: any solver's steps with Langevin steps between them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import Tensor

from sde_diffusion.errors import require
from sde_diffusion.sde import SDE
from sde_diffusion.solvers import base
from sde_diffusion.solvers.base import GridSolver, Solver
from sde_diffusion.solvers.correctors import Corrector, Langevin, Level
from sde_diffusion.solvers.process import ReverseProcess
from sde_diffusion.solvers.reverse_diffusion import ReverseDiffusion


class Row(NamedTuple):
    """The level at which to correct, and the predictor's own row, if there is a predictor."""

    t: Tensor
    t_next: Tensor
    level: Level
    own: base.Row | None


@dataclass(frozen=True, kw_only=True)
class PredictorCorrector(GridSolver):
    """At each time corrects towards p_t, then predicts the next state.

    The order is the predictor's down to the corrector's bias: its steps do not shrink with the grid's, so what they
    leave, of order snr², stays.

    Attributes:
        predictor: A solver with a grid; steps and grid are set here, not there. None leaves annealed Langevin dynamics.
        corrector: A row of `CORRECTORS`.

    Cost: the evaluations of the predictor and of the corrector per step.

    Reference: Song et al. 2021, arXiv:2011.13456, Algorithms 2 and 3, in the order of the published code: the corrector
    first, so that the last state is a predicted one.
    """

    stochastic = True

    predictor: Solver | None = ReverseDiffusion()
    corrector: Corrector = Langevin()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.predictor is None:
            return
        name = type(self.predictor).__name__
        require(
            isinstance(self.predictor, GridSolver) and not isinstance(self.predictor, PredictorCorrector),
            f"`predictor` must be a solver with a grid, got {name}; try ReverseDiffusion",
        )
        default = type(self.predictor)()
        require(
            all(getattr(self.predictor, option) == getattr(default, option) for option in ("steps", "grid")),
            f"`predictor` must leave `steps` and `grid` alone, got a {name} that sets them; set those of the whole",
        )

    @property
    def order(self) -> int:
        return self.predictor.order if self.predictor is not None else 0

    @property
    def evaluations(self) -> int:
        predictor = self.predictor
        return self.corrector.repeats + (predictor.evaluations if isinstance(predictor, GridSolver) else 0)

    def plan(self, sde: SDE, times: Tensor) -> Sequence[Row]:
        """x ← predict(correct(x, t), t, t_next),  `t_next < t`."""
        levels = self.corrector.plan(sde, times)
        own: Sequence[base.Row | None] = [None] * len(levels)
        if isinstance(self.predictor, GridSolver):
            own = replace(self.predictor, steps=self.steps).plan(sde, times)  # it may count the steps that are left
        return [Row(level.t, level.t_next, level, row) for level, row in zip(levels, own, strict=True)]

    def update(self, process: ReverseProcess, x: Tensor, now: Row, state: Any) -> tuple[Tensor, Any]:
        """See `plan`; the state is the predictor's."""
        x = self.corrector.update(process, x, now.level)
        if not isinstance(self.predictor, GridSolver):
            return x, None
        return self.predictor.update(process, x, now.own, state)
