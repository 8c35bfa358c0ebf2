"""The probability-flow ODE by the methods of torchdiffeq, on the state's own device, in steps that the batch shares.

Reference: Song et al. 2021, arXiv:2011.13456, section 4.3; Chen 2018, torchdiffeq; Hairer, Nørsett & Wanner 1993 for
the methods.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from sde_diffusion.errors import require, require_one_of, require_positive
from sde_diffusion.solvers.adaptive import AdaptiveODE, Flow
from sde_diffusion.solvers.failures import not_finite
from sde_diffusion.solvers.process import Observer, ReverseProcess, as_time
from sde_diffusion.solvers.runge_kutta import Norm, Rhs, sample_rms

Method = Literal[
    "dopri5",
    "dopri8",
    "bosh3",
    "adaptive_heun",
    "fehlberg2",
    "euler",
    "midpoint",
    "heun2",
    "heun3",
    "rk4",
    "explicit_adams",
    "implicit_adams",
]
ADAPTIVE = {"dopri5": 5, "dopri8": 8, "bosh3": 3, "adaptive_heun": 2, "fehlberg2": 2}  # with their orders
FIXED = {"euler": 1, "midpoint": 2, "heun2": 2, "heun3": 3, "rk4": 4, "explicit_adams": 4, "implicit_adams": 4}
ADAMS = {"explicit_adams": 5, "implicit_adams": 4}  # torchdiffeq's own name for order 4; its default is hardly stable
FAILURES = {  # what torchdiffeq's assertions begin with, and what to say instead
    "underflow in dt": "the step size fell to zero",
    "non-finite values in state": "the state is not finite",
    "max_num_steps exceeded": "max_steps = {max_steps} were not enough",
}


class _Watched:
    """The right-hand side as torchdiffeq takes it, which also tells how far the solve has come.

    torchdiffeq's guess of the first step may probe far beyond the interval; here every evaluation stays inside.
    """

    def __init__(self, rhs: Rhs, t_from: float, t_to: float, observe: Observer) -> None:
        self.rhs, self.t, self.observe = rhs, t_from, observe
        self._low, self._high = sorted((t_from, t_to))

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        return self.rhs(t.clamp(self._low, self._high), y)


class _OnGrid(_Watched):
    def callback_step(self, t: Tensor, y: Tensor, dt: Tensor) -> None:
        self.t = float(t)
        self.observe(y, self.t)


class _InOwnSteps(_Watched):
    def callback_step(self, t: Tensor, y: Tensor, dt: Tensor) -> None:
        self.t = float(t)

    def callback_accept_step(self, t: Tensor, y: Tensor, dt: Tensor) -> None:
        self.observe(y, float(t))


@dataclass(frozen=True, kw_only=True)
class TorchdiffeqODE(AdaptiveODE):
    """dx/dt = f x − ½ g² s by a method of torchdiffeq with a common step for the batch.

    A step of an adaptive pair is accepted when max_i rms(e_i / (atol + rtol |x_i|)) ≤ 1: every sample meets the
    tolerance. (With the mean over the whole batch, torchdiffeq's default, easy companions would loosen a hard sample's
    tolerance.)

    Attributes:
        method: torchdiffeq's name. Adaptive pairs: `dopri5` is 5(4), `dopri8` 8(7), `bosh3` 3(2), the others 2(1). In
            equal steps of t: `euler`, `midpoint`, `heun2`, `heun3`, `rk4` and the fourth-order `explicit_adams` and
            `implicit_adams`, which meets `rtol` and `atol` in its fixed-point iteration alone.
        max_steps: Steps tried by an adaptive pair, accepted or not, before the solve is given up.
        steps: Steps of the others.

    Cost: 2 + 6 score evaluations per step tried for `dopri5`.

    Reference: Song et al. 2021, arXiv:2011.13456, eq. 13; Dormand & Prince 1980 for `dopri5`.
    """

    method: Method = "dopri5"
    max_steps: int = 10_000
    steps: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(max_steps=self.max_steps, steps=self.steps)
        require_one_of("method", self.method, (*ADAPTIVE, *FIXED))

    @property
    def order(self) -> int:
        return (ADAPTIVE | FIXED)[self.method]

    def solve(self, process: ReverseProcess, x: Tensor, t_from: float, t_to: float) -> Tensor:
        end = self.integrate(Flow(process), x, t_from, t_to, observe=process.observe)
        process.observe(end, t_to)
        return end

    def integrate(
        self,
        rhs: Rhs,
        y: Tensor,
        t_from: float,
        t_to: float,
        *,
        norm: Norm = sample_rms,
        observe: Observer = lambda x, t: None,
    ) -> Tensor:
        """Solve dy/dt = rhs(t, y) from `t_from` to `t_to`; the last step ends exactly there.

        Args:
            y: State at `t_from`, (B, …).
            norm: Size of each sample's scaled error of a step.
            observe: Called with state and time at the start of each accepted step.

        Returns:
            State at `t_to`, the shape of `y`.

        Raises:
            InputError: The step size fell to zero, which it does where the right-hand side stops being finite, or
                `max_steps` was reached; the message says at which time.
        """
        from torchdiffeq import odeint  # imported by who solves with it

        require(bool(y.isfinite().all()), f"the state at t = {t_from:.6g} must be finite before it is integrated")
        if len(y) == 0 or t_from == t_to:
            return y
        times = torch.stack([as_time(t_from), as_time(t_to)]).to(y.device)
        watched = (_OnGrid if self.method in FIXED else _InOwnSteps)(rhs, t_from, t_to, observe)
        try:
            path: Tensor = odeint(
                watched,
                y,
                times,
                rtol=self.rtol,
                atol=self.atol,
                method=self.method,
                options=self._options(times, norm),
            )
        except AssertionError as failure:  # torchdiffeq reports a failed solve by assertions
            reason = next((told for start, told in FAILURES.items() if str(failure).startswith(start)), None)
            if reason is None:
                raise
            told = reason.format(max_steps=self.max_steps)
            budget = "max_steps" if "max_steps" in reason else ""
            raise self.failure(watched.t, told, budget=budget) from None
        end = path[-1]
        rows = not_finite(end)
        if rows:
            raise self.failure(None, "the state is not finite at the end", samples=rows)
        return end

    def _options(self, times: Tensor, norm: Norm) -> dict[str, Any]:
        if self.method in FIXED:
            grid = torch.linspace(0, 1, self.steps + 1).to(times)
            history = {"max_order": ADAMS[self.method]} if self.method in ADAMS else {}
            return {"grid_constructor": lambda func, y0, t: torch.lerp(t[0], t[-1], grid)} | history

        def size(error: Tensor) -> Tensor:  # as infinity, NaN shortens the step; torchdiffeq gives up at NaN itself
            return norm(error).max().nan_to_num(nan=math.inf, posinf=math.inf)

        return {"norm": size, "step_t": times[1:], "max_num_steps": self.max_steps}
