"""DPM-Solver++(3M): third order for one score evaluation per step."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from sde_diffusion.errors import require_one_of
from sde_diffusion.sde import SDE
from sde_diffusion.solvers.exponential import Multistep, Row, exact_slope, flows, midpoint_slope, rows

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

    def plan(self, sde: SDE, times: Tensor) -> Sequence[Row]:
        """x ← (σ_n/σ) x + a_n (m_0 x̂0 + m_1 D₁ + m_2 D₂),  m_k = ∫₀¹ h e^{(s−1)h} s^k ds,

        where x̂0 + D₁ s + D₂ s² is the parabola, in s = (λ' − λ)/h, through this and the last two predictions.
        """
        half_log_snr, std, gain = sde.half_log_snr(times), sde.std(times), sde.mean_coef(times)[1:]
        kept, (slope, curvature) = std[1:] / std[:-1], RULES[self.rule]
        used = self.used(3, len(gain))
        taken = flows(half_log_snr, kept, gain, used, slope=slope, curvature=curvature)
        if self.rule != "exact" or len(taken) == 1:
            return rows(times, taken)
        return rows(times, taken, flows(half_log_snr[:2], kept[:1], gain[:1], [2], implicit=True))
