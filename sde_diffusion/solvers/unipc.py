"""UniPC: a multistep predictor whose every step is corrected by the evaluation that the next step needs anyway."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from sde_diffusion.solvers.base import ReverseProcess
from sde_diffusion.solvers.exponential import Last, Multistep, advance, follow, midpoint_slope


@dataclass(frozen=True, kw_only=True)
class UniPC(Multistep):
    """Predicts through the last p values of x̂0, then corrects through these and the new one.

    The correction raises order p by one; the first step, which is predicted with order 1, keeps the whole at 3.

    Attributes:
        p: Values of x̂0 that the predictor uses.
        variant: B(h), half of which is the weight of a linear term: h for `bh1`, e^h − 1 for `bh2`, here in the form
            1 − e^{−h} for predictions of x̂0. All other weights are exact, and the same for both.

    Cost: one score evaluation per step.

    Reference: Zhao et al. 2023, arXiv:2302.04867, Algorithms 5–8.
    """

    stochastic = False

    p: Literal[2, 3] = 2
    variant: Literal["bh1", "bh2"] = "bh2"

    @property
    def order(self) -> int:
        return 2 if self.lower_final == "always" else 3

    def step(
        self, process: ReverseProcess, x: Tensor, t: Tensor, t_next: Tensor, state: Last | None
    ) -> tuple[Tensor, Last]:
        """Corrects the last step by x̂0 at its predicted end `x`, then predicts the next.

            x_c = (σ/σ_prev) x_prev + a Σ_{j ≤ p} w_j x̂0_j,    x ← (σ_n/σ) x_c + a_n Σ_{j < p} w'_j x̂0_j

        Args:
            x: State at `t` as predicted, (B, *D).
            t, t_next: Times, () float64.
            state: Of the last step, or None at the start.

        Returns:
            State at `t_next`, (B, *D), and the new history.
        """
        sde, slope = process.sde, SLOPES[self.variant]
        here = (sde.half_log_snr(t), process.x0(x, t))
        history = (here, *state.history) if state else (here,)
        if state:
            x = advance(sde, state.x, state.t, t, history[: state.used + 1], slope=slope)
        history = history[: self.p]
        used = history[: self.allowed(self.p, state)]
        x_next = advance(sde, x, t, t_next, used, slope=slope)
        return x_next, follow(state, x, t, history, len(used))


def _half(h: Tensor) -> Tensor:
    return 0.5 * h


SLOPES = {"bh1": _half, "bh2": midpoint_slope}
