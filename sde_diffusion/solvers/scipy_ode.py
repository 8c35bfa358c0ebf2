"""The probability-flow ODE by SciPy on the CPU, as the field has solved it since score_sde: a reference.

Reference: Song et al. 2021, arXiv:2011.13456, appendix D.4; Virtanen et al. 2020 (SciPy).
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sde_diffusion.errors import require_one_of, require_positive
from sde_diffusion.solvers.adaptive import AdaptiveODE, Flow
from sde_diffusion.solvers.process import ReverseProcess, as_time
from sde_diffusion.solvers.runge_kutta import Norm, Rhs, sample_rms

ORDERS = {"RK45": 5, "DOP853": 8}


class _OutOfBudget(Exception):
    """More evaluations than `max_nfe`."""


@dataclass(frozen=True, kw_only=True)
class ScipyODE(AdaptiveODE):
    """dx/dt = f x − ½ g² s by SciPy's solve_ivp over the whole batch as one vector.

    The state lives in float64 on the CPU and visits the score's dtype and device at every evaluation. The batch shares
    the steps, and their error is the root mean square over all numbers of the batch: companions loosen or tighten a
    sample's tolerance, and in a likelihood the log-density is one number among D + 1, which wants a tolerance some
    hundred times tighter than `ode` does for the same error.

    Attributes:
        method: `RK45` is Dormand & Prince's 5(4), `DOP853` 8(5,3).
        max_nfe: Evaluations before the solve is given up.

    Cost: 2 + 6 score evaluations per step tried; with `DOP853` 2 + 12.

    Reference: Song et al. 2021, arXiv:2011.13456, appendix D.4; Dormand & Prince 1980.
    """

    method: Literal["RK45", "DOP853"] = "RK45"
    max_nfe: int = 50_000

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(max_nfe=self.max_nfe)
        require_one_of("method", self.method, tuple(ORDERS))

    @property
    def order(self) -> int:
        return ORDERS[self.method]

    def solve(self, process: ReverseProcess, x: Tensor, t_from: float, t_to: float) -> Tensor:
        process.observe(x, t_from)
        end = self.integrate(Flow(process), x, t_from, t_to)
        process.observe(end, t_to)
        return end

    def integrate(self, rhs: Rhs, y: Tensor, t_from: float, t_to: float, *, norm: Norm = sample_rms) -> Tensor:
        """As `AdaptiveODE.integrate`, but `norm` has no effect: SciPy has its own."""
        from scipy.integrate import solve_ivp  # half a second to import: only who solves with it pays

        if len(y) == 0 or t_from == t_to:
            return y
        last, nfe, (low, high) = t_from, 0, sorted((t_from, t_to))

        def flat(t: float, state: NDArray[np.float64]) -> NDArray[np.float64]:
            nonlocal last, nfe
            if nfe == self.max_nfe:
                raise _OutOfBudget
            last, nfe = min(max(t, low), high), nfe + 1
            now = torch.from_numpy(state).to(y).reshape(y.shape)
            slope: NDArray[np.float64] = rhs(as_time(last), now).double().flatten().cpu().numpy()
            return slope

        start = y.detach().double().flatten().cpu().numpy()
        try:
            with np.errstate(invalid="ignore", over="ignore"):  # what is not finite ends the solve below
                found = solve_ivp(flat, (t_from, t_to), start, method=self.method, rtol=self.rtol, atol=self.atol)
        except _OutOfBudget:
            told = f"max_nfe = {self.max_nfe} were not enough"
            raise self.failure(last, told, budget="max_nfe") from None
        end = torch.from_numpy(found.y[:, -1]).to(y).reshape(y.shape)
        if not found.success or not bool(end.isfinite().all()):
            raise self.failure(float(found.t[-1]), "the step size fell to zero")
        return end
