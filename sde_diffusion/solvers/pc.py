"""Predictor–corrector sampling: any solver's steps with Langevin steps between them."""

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from sde_diffusion.errors import require
from sde_diffusion.solvers.base import GridSolver, ReverseProcess, Solver
from sde_diffusion.solvers.correctors import Corrector, Langevin
from sde_diffusion.solvers.reverse_diffusion import ReverseDiffusion


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

    def step(self, process: ReverseProcess, x: Tensor, t: Tensor, t_next: Tensor, state: Any) -> tuple[Tensor, Any]:
        """x ← predict(correct(x, t), t, t_next).

        Args:
            x: State at `t`, (B, *D).
            t, t_next: Times, () float64, `t_next < t`.
            state: The predictor's.

        Returns:
            State at `t_next`, (B, *D), and the predictor's state.
        """
        x = self.corrector.correct(process, x, t, t_next)
        if self.predictor is None:
            return x, None
        assert isinstance(self.predictor, GridSolver)
        predictor = replace(self.predictor, steps=self.steps)  # one that lowers its last orders counts them
        return predictor.step(process, x, t, t_next, state)
