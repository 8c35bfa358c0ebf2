"""DPM-Solver++(2M): second order for one score evaluation per step."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from sde_diffusion.sde import SDE
from sde_diffusion.solvers.exponential import Multistep, Row, exact_slope, flows, midpoint_slope, rows

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

    def plan(self, sde: SDE, times: Tensor) -> Sequence[Row]:
        """In λ = log(a/σ), with x̂0 extrapolated from this and the last step, here at the midpoint:

            x ← (σ_n/σ) x − a_n (e^{−h} − 1) D,    h = λ_n − λ,    D = x̂0 + (h / 2h_prev) (x̂0 − x̂0_prev)

        The first step has no history and is DDIM.
        """
        std, a = sde.std(times), sde.mean_coef(times)
        used = self.used(2, len(times) - 1)
        return rows(times, flows(sde.half_log_snr(times), std[1:] / std[:-1], a[1:], used, slope=SLOPES[self.rule]))
