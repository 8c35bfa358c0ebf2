"""The probability-flow ODE with an own step size for every sample, on tensors.

Reference: Song et al. 2021, arXiv:2011.13456, section 4.3; Lienen & Günnemann 2022 (torchode), arXiv:2210.12375, for
solving the samples of a batch independently.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from sde_diffusion.errors import require_one_of, require_positive
from sde_diffusion.grids import LogSNRGrid
from sde_diffusion.registry import lookup
from sde_diffusion.solvers.adaptive import AdaptiveODE, Flow
from sde_diffusion.solvers.process import ReverseProcess
from sde_diffusion.solvers.runge_kutta import Integrator, Norm, Path, Rhs, Solution, Status, sample_rms
from sde_diffusion.solvers.tableaux import TABLEAUX
from sde_diffusion.tensors import expand, select

MEANING = {
    Status.NON_FINITE: "the state or its drift is not finite",
    Status.MAX_NFE: "max_nfe = {max_nfe} were not enough",
    Status.STEP_TOO_SMALL: "the step size fell to zero",
}


WATCHED = 64  # steps of the grid, uniform in log-SNR, on which an observer sees the states


@dataclass(frozen=True, eq=False)
class _SqrtClock:
    """dy/du = 2u rhs(u², y), with u² kept in [low, high] whatever its rounding."""

    rhs: Rhs
    low: float
    high: float

    def __call__(self, u: Tensor, y: Tensor) -> Tensor:
        return self.rhs((u * u).clamp(self.low, self.high), y) * expand(2 * u, y)

    def select(self, rows: Tensor) -> "_SqrtClock":
        return replace(self, rhs=select(self.rhs, rows))


@dataclass(frozen=True, kw_only=True)
class PerSampleODE(AdaptiveODE):
    """dx/dt = f x − ½ g² s by an adaptive Runge–Kutta pair, every sample in its own steps.

    A step of sample i is accepted when rms(e_i / (atol + rtol |x_i|)) ≤ 1. Its result does not depend on its
    companions, and samples that are done leave the batch. An observer sees the states at 64 steps of equal log-SNR,
    interpolated, after the solve.

    Attributes:
        method: The pair: `dopri5` and `tsit5` are 5(4), `dop853` is 8(5,3).
        clock: The variable that the steps are taken in. In u = √t, dx/du = 2u dx/dt, a network's flow is smooth down to
            t_min where std ~ √t and dx/dt ~ 1/√t: a trained VP model takes a third fewer evaluations at equal error.
        max_nfe: Evaluations per sample before it is given up.
        compact: Whether samples that are done leave the batch. A score function that keeps something for each sample of
            the batch then needs a `select` (`tensors.PerSample`), as that of `ScoreModel.bind` has.
        on_failure: What to do when a sample cannot be solved: `raise`, or `nan`, which makes NaN of it alone. `attempt`
            gives its last state and the reason.

    Cost: 2 + 6 score evaluations per step tried of the slowest sample; with `dop853` 2 + 12.

    Reference: Dormand & Prince 1980; Tsitouras 2011; Hairer, Nørsett & Wanner 1993, sections II.4, II.5 and II.10.
    """

    method: Literal["dopri5", "tsit5", "dop853"] = "tsit5"
    clock: Literal["sqrt_t", "t"] = "sqrt_t"
    max_nfe: int = 50_000
    compact: bool = True
    on_failure: Literal["raise", "nan"] = "raise"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(max_nfe=self.max_nfe)
        lookup(TABLEAUX, self.method, "method")
        require_one_of("clock", self.clock, ("sqrt_t", "t"))
        require_one_of("on_failure", self.on_failure, ("raise", "nan"))

    @property
    def order(self) -> int:
        return TABLEAUX[self.method].order

    def solve(self, process: ReverseProcess, x: Tensor, t_from: float, t_to: float) -> Tensor:
        rhs = Flow(process)
        if not process.observed or t_from == t_to:
            return self.integrate(rhs, x, t_from, t_to)
        times = LogSNRGrid()(process.sde, t_from, t_to, WATCHED)
        path = Path(times[1:-1].sqrt() if self.clock == "sqrt_t" else times[1:-1], x)
        process.observe(x, t_from)
        end = self._checked(self.attempt(rhs, x, t_from, t_to, watch=path))
        for t, y in zip(times[1:-1], path.states, strict=True):
            process.observe(y, float(t))
        process.observe(end, t_to)
        return end

    def integrate(self, rhs: Rhs, y: Tensor, t_from: float, t_to: float, *, norm: Norm = sample_rms) -> Tensor:
        return self._checked(self.attempt(rhs, y, t_from, t_to, norm=norm))

    def attempt(
        self,
        rhs: Rhs,
        y: Tensor,
        t_from: float,
        t_to: float,
        *,
        norm: Norm = sample_rms,
        watch: Path | None = None,
    ) -> Solution:
        """As `integrate`, but tells for each sample how far it came, at what cost and why it ended.

        Args:
            rhs: Called with the times (n,) and states (n, …) of the n samples that are still in the batch.
            watch: Reads states at common times of the clock off the steps.
        """
        integrator = Integrator(
            TABLEAUX[self.method], self.rtol, self.atol, norm, max_nfe=self.max_nfe, compact=self.compact
        )
        if self.clock == "t":
            return integrator.solve(rhs, y, t_from, t_to, watch=watch)
        low, high = sorted((t_from, t_to))
        found = integrator.solve(_SqrtClock(rhs, low, high), y, math.sqrt(t_from), math.sqrt(t_to), watch=watch)
        return replace(found, t=(found.t**2).clamp(low, high))

    def _checked(self, solution: Solution) -> Tensor:
        """The states if all is well, or as `on_failure` says."""
        failed = solution.status != Status.DONE
        if not failed.any():
            return solution.y
        if self.on_failure == "nan":
            solution.y[failed] = math.nan
            return solution.y
        rows: list[int] = failed.nonzero()[:, 0].tolist()
        status = Status(int(solution.status[rows[0]]))
        reason = MEANING[status].format(max_nfe=self.max_nfe)
        budget = "max_nfe" if status == Status.MAX_NFE else ""
        raise self.failure(float(solution.t[rows[0]]), reason, samples=rows, budget=budget)
