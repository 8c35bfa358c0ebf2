"""DPM-Solver++(3M): third order for one score evaluation per step."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from sde_diffusion.errors import require_one_of
from sde_diffusion.solvers.base import ReverseProcess
from sde_diffusion.solvers.exponential import Last, Multistep, advance, exact_slope, follow, midpoint_slope

RULES = {"exact": (exact_slope, 1.0), "midpoint": (midpoint_slope, 0.5), "heun": (exact_slope, 0.5)}


@dataclass(frozen=True, kw_only=True)
class DPMpp3M(Multistep):
    """Integrates the flow exactly for an x̂0 that is quadratic in λ, through this and the last two predictions.

    Two faults of the published code, each of which leaves order 2, are mended: it halves the quadratic term, and its
    first step is of order 1. Here the first step is taken anew once x̂0 at its end is known, at no evaluation.

    Attributes:
        rule: `exact`, or as published with both faults, and steps of order 2 by `midpoint` or exactly, known as `heun`,
            as in `dpmpp_2m`; these damp more and may do better in few steps.

    Cost: one score evaluation per step.

    Reference: Lu et al. 2022, arXiv:2211.01095, section 4.2 and appendix B.
    """

    stochastic = False

    rule: Literal["exact", "midpoint", "heun"] = "exact"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_one_of("rule", self.rule, RULES)

    @property
    def order(self) -> int:
        return 3 if self.rule == "exact" and self.lower_final != "always" else 2

    def step(
        self, process: ReverseProcess, x: Tensor, t: Tensor, t_next: Tensor, state: Last | None
    ) -> tuple[Tensor, Last]:
        """x ← (σ_n/σ) x + a_n (m_0 x̂0 + m_1 D₁ + m_2 D₂),  m_k = ∫₀¹ h e^{(s−1)h} s^k ds,

        where x̂0 + D₁ s + D₂ s² is the parabola, in s = (λ' − λ)/h, through this and the last two predictions.

        Args:
            x: State at `t`, (B, *D).
            t, t_next: Times, () float64.
            state: Of the last step, or None at the start.

        Returns:
            State at `t_next`, (B, *D), and the new history.
        """
        sde = process.sde
        here = (sde.half_log_snr(t), process.x0(x, t))
        history = (here, *state.history[:2]) if state else (here,)
        if state and len(history) == 2 and self.rule == "exact":
            x = advance(sde, state.x, state.t, t, history)
        used = history[: self.allowed(3, state)]
        slope, curvature = RULES[self.rule]
        x_next = advance(sde, x, t, t_next, used, slope=slope, curvature=curvature)
        return x_next, follow(state, x, t, history, len(used))
