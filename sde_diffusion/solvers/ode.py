"""The probability-flow ODE, integrated adaptively on the state's own device by torchdiffeq.

Reference: Song et al. 2021, arXiv:2011.13456, section 4.3; Dormand & Prince 1980 for the 5(4) pair.
"""

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torchdiffeq import odeint

from sde_diffusion.errors import InputError, require, require_positive
from sde_diffusion.solvers.base import ReverseProcess, Solver, as_time
from sde_diffusion.solvers.runge_kutta import Norm, Rhs, sample_rms

FAILURES = {  # what torchdiffeq's assertions begin with, and what to say instead
    "underflow in dt": "the step size fell to zero",
    "non-finite values in state": "the state is not finite",
    "max_num_steps exceeded": "max_steps = {max_steps} were not enough",
}


class _Watched:
    """The right-hand side as torchdiffeq takes it, which also tells how far the solve has come.

    torchdiffeq's guess of the first step may probe far beyond the interval; here every evaluation stays inside.
    """

    def __init__(self, rhs: Rhs, t_from: float, t_to: float, observe: Callable[[Tensor, float], None] | None) -> None:
        self.rhs, self.t, self._observe = rhs, t_from, observe
        self._low, self._high = sorted((t_from, t_to))

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        return self.rhs(t.clamp(self._low, self._high), y)

    def callback_step(self, t: Tensor, y: Tensor, dt: Tensor) -> None:
        self.t = float(t)

    def callback_accept_step(self, t: Tensor, y: Tensor, dt: Tensor) -> None:
        if self._observe is not None:
            self._observe(y, float(t))


@dataclass(frozen=True, kw_only=True)
class AdaptiveODE(Solver):
    """dx/dt = f x − ½ g² s to a tolerance, by steps that the method chooses.

    Attributes:
        rtol, atol: Relative and absolute tolerance of one step.
    """

    stochastic = False

    rtol: float = 1e-5
    atol: float = 1e-5

    def __post_init__(self) -> None:
        require_positive(rtol=self.rtol, atol=self.atol)

    @abstractmethod
    def integrate(self, rhs: Rhs, y: Tensor, t_from: float, t_to: float, *, norm: Norm = sample_rms) -> Tensor:
        """Solve dy/dt = rhs(t, y) from `t_from` to `t_to`, in either direction; the last step ends exactly there.

        Args:
            y: State at `t_from`, (B, …).
            norm: Size of each sample's scaled error of a step.

        Returns:
            State at `t_to`, the shape of `y`.

        Raises:
            InputError: The tolerance cannot be reached; the message says at which time.
        """


@dataclass(frozen=True, kw_only=True)
class ODESolver(AdaptiveODE):
    """dx/dt = f x − ½ g² s by an adaptive Runge–Kutta pair with a common step for the batch.

    A step is accepted when max_i rms(e_i / (atol + rtol |x_i|)) ≤ 1: every sample meets the tolerance. (With the mean
    over the whole batch, torchdiffeq's default, easy companions would loosen a hard sample's tolerance.)

    Attributes:
        method: torchdiffeq's name of the pair: `dopri5` is 5(4), `dopri8` 8(7), `bosh3` 3(2), the others 2(1).
        rtol, atol: Relative and absolute tolerance of one step.
        max_steps: Steps tried, accepted or not, before the solve is given up.

    Cost: 2 + 6 score evaluations per step tried for `dopri5`.

    Reference: Song et al. 2021, arXiv:2011.13456, eq. 13; Dormand & Prince 1980 for `dopri5`.
    """

    order = 5

    method: Literal["dopri5", "dopri8", "bosh3", "adaptive_heun", "fehlberg2"] = "dopri5"
    max_steps: int = 10_000

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(max_steps=self.max_steps)

    def solve(self, process: ReverseProcess, x: Tensor, t_from: float, t_to: float) -> Tensor:
        def rhs(t: Tensor, y: Tensor) -> Tensor:
            return process.drift(y, t, eta=0.0)

        end = self.integrate(rhs, x, t_from, t_to, observe=process.observe)
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
        observe: Callable[[Tensor, float], None] | None = None,
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
        require(bool(y.isfinite().all()), f"the state at t = {t_from:.6g} must be finite before it is integrated")
        if len(y) == 0 or t_from == t_to:
            return y
        times = torch.stack([as_time(t_from), as_time(t_to)]).to(y.device)
        watched = _Watched(rhs, t_from, t_to, observe)

        def size(error: Tensor) -> Tensor:  # as infinity, NaN shortens the step; torchdiffeq gives up at NaN itself
            return norm(error).max().nan_to_num(nan=math.inf, posinf=math.inf)

        options = {"norm": size, "step_t": times[1:], "max_num_steps": self.max_steps}
        try:
            path: Tensor = odeint(
                watched, y, times, rtol=self.rtol, atol=self.atol, method=self.method, options=options
            )
        except AssertionError as failure:  # torchdiffeq reports a failed solve by assertions
            reason = next((told for start, told in FAILURES.items() if str(failure).startswith(start)), None)
            if reason is None:
                raise
            raise InputError(
                f"the ODE solve by {self.method!r} stopped at t = {watched.t:.6g}: "
                f"{reason.format(max_steps=self.max_steps)}; "
                f"loosen rtol = {self.rtol:g} and atol = {self.atol:g}, or look for non-finite scores there"
            ) from None
        end = path[-1]
        require(
            bool(end.isfinite().all()),
            f"the ODE solve by {self.method!r} gave non-finite values after t = {watched.t:.6g}; "
            "look for non-finite scores there",
        )
        return end
