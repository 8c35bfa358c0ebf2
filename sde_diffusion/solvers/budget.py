"""What to do with a given number of score evaluations: `DETERMINISTIC` and `STOCHASTIC` are the answer, as data.

The solvers chosen see a process through λ = log(a/σ) alone, so a choice serves every SDE alike; for that reason the end
of a run, too, is chosen as a noise level ς = σ/a. Below it the final denoising does the rest, with few evaluations
better than steps would. docs/numerics.md has the measurements.
"""

from dataclasses import dataclass, replace

import torch

from sde_diffusion.errors import InputError, require, require_whole
from sde_diffusion.sde import SDE
from sde_diffusion.solvers.base import GridSolver, Solver
from sde_diffusion.solvers.dpmpp_sde_2m import DPMppSDE2M
from sde_diffusion.solvers.unipc import UniPC


@dataclass(frozen=True)
class Choice:
    """One row of a table of budgets.

    Attributes:
        up_to: The largest number of score evaluations that it is for; None for any.
        solver: Its steps are set by the budget; its grid is uniform in λ.
        level: ς = σ/a at which the run ends and the final denoising begins; None for `sde.t_min`.
    """

    up_to: int | None
    solver: GridSolver
    level: float | None


_SECOND = UniPC(lower_final="always")
_THIRD = UniPC(p=3, lower_final="always")
DETERMINISTIC = (
    Choice(7, _THIRD, 0.06),
    Choice(9, _SECOND, 0.06),
    Choice(17, _SECOND, 0.025),
    Choice(27, _THIRD, 0.02),
    Choice(44, _THIRD, 0.01),
    Choice(69, _THIRD, 0.005),
    Choice(None, _THIRD, 0.0025),
)
STOCHASTIC = (
    Choice(14, DPMppSDE2M(eta=0.7), 0.03),  # too few steps to renew all of the noise
    Choice(44, DPMppSDE2M(), 0.02),
    Choice(None, DPMppSDE2M(), 0.01),
)


@dataclass(frozen=True)
class Plan:
    """How a budget is spent.

    Attributes:
        solver: With its steps.
        denoise: Whether the final denoising is part of it.
        level: ς = σ/a at the end of the steps; None for `sde.t_min`.
    """

    solver: GridSolver
    denoise: bool
    level: float | None = None

    @property
    def nfe(self) -> int:
        """Score evaluations of the whole."""
        return self.solver.steps * self.solver.evaluations + self.denoise

    def t_end(self, sde: SDE) -> float | None:
        """Where the steps end, for `sample`: the time of `level` if that is later than `sde.t_min`, else None."""
        if self.level is None:
            return None
        t = float(sde.time_at(-torch.tensor(self.level, dtype=torch.float64).log()))
        return t if t > sde.t_min else None


def within(solver: GridSolver, nfe: int, *, denoise: bool | None = None, level: float | None = None) -> Plan:
    """`solver` with as many steps as `nfe` score evaluations allow.

    Args:
        nfe: Score evaluations, the final denoising included.
        denoise: Whether there is one; None for one if a step is left beside it.
        level: See `Plan`.

    Raises:
        InputError: `nfe` is not enough for one step.
    """
    require_whole(nfe=nfe)
    cost = solver.evaluations
    if denoise is None:
        denoise = nfe > cost
    steps = (nfe - denoise) // cost
    require(
        steps > 0,
        f"`nfe` must be ≥ {cost + denoise}, got {nfe}: a step of {type(solver).__name__} takes {cost}"
        f"{' and the final denoising 1' if denoise else ''}",
    )
    return Plan(replace(solver, steps=steps), denoise, level if denoise else None)


def spend(nfe: int, solver: Solver | None = None, *, denoise: bool | None = None) -> Plan:
    """How `nfe` score evaluations are spent: by `for_budget`, or in as many steps of `solver` as they allow.

    Raises:
        InputError: `nfe` is not enough for one step, or `solver` chooses its own steps.
    """
    if solver is None:
        return for_budget(nfe, denoise=denoise)
    if not isinstance(solver, GridSolver):
        raise InputError(
            f"`nfe` cannot set the steps of {type(solver).__name__}, which chooses them by its tolerances; "
            f"leave `solver` or `nfe` out"
        )
    return within(solver, nfe, denoise=denoise)


def for_budget(nfe: int, *, stochastic: bool = False, denoise: bool | None = None) -> Plan:
    """The solver, its grid and the end of its run that do best with `nfe` score evaluations, for any SDE.

    Args:
        nfe: Score evaluations, the final denoising included.
        stochastic: Whether the solver is to draw noise.
        denoise: See `within`; without a final denoising the run ends at `sde.t_min`.

    Raises:
        InputError: `nfe` is not enough for one step.
    """
    require_whole(nfe=nfe)
    table = STOCHASTIC if stochastic else DETERMINISTIC
    choice = next(row for row in table if row.up_to is None or nfe <= row.up_to)
    return within(choice.solver, nfe, denoise=denoise, level=choice.level)
