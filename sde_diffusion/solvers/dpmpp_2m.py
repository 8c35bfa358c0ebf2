"""DPM-Solver++(2M): second order for one score evaluation per step."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from sde_diffusion.solvers.base import ReverseProcess
from sde_diffusion.solvers.exponential import Last, Multistep, advance, exact_slope, follow, midpoint_slope

SLOPES = {"midpoint": midpoint_slope, "heun": exact_slope}


@dataclass(frozen=True, kw_only=True)
class DPMpp2M(Multistep):
    """Integrates the flow exactly for an x̂0 that is linear in λ, through this and the last prediction.

    Attributes:
        rule: The linear term at its `midpoint`, as published, or integrated exactly, known as `heun`.

    Cost: one score evaluation per step.

    Reference: Lu et al. 2022, arXiv:2211.01095, Algorithm 2.
    """

    order = 2
    stochastic = False

    rule: Literal["midpoint", "heun"] = "midpoint"

    def step(
        self, process: ReverseProcess, x: Tensor, t: Tensor, t_next: Tensor, state: Last | None
    ) -> tuple[Tensor, Last]:
        """In λ = log(a/σ), with x̂0 extrapolated from this and the last step, here at the midpoint:

            x ← (σ_n/σ) x − a_n (e^{−h} − 1) D,    h = λ_n − λ,    D = x̂0 + (h / 2h_prev) (x̂0 − x̂0_prev)

        The first step has no history and is DDIM.

        Args:
            x: State at `t`, (B, *D).
            t, t_next: Times, () float64.
            state: Of the last step, or None at the start.

        Returns:
            State at `t_next`, (B, *D), and the new history.
        """
        here = (process.sde.half_log_snr(t), process.x0(x, t))
        history = (here, *state.history) if state else (here,)
        history = history[: self.allowed(2, state)]
        x_next = advance(process.sde, x, t, t_next, history, slope=SLOPES[self.rule])
        return x_next, follow(state, x, t, (here,), len(history))
