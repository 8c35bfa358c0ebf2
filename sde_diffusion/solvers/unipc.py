"""UniPC: a multistep predictor whose every step is corrected by the evaluation that the next step needs anyway."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from sde_diffusion.sde import SDE
from sde_diffusion.solvers.exponential import Multistep, Row, flows, midpoint_slope, rows


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

    def plan(self, sde: SDE, times: Tensor) -> Sequence[Row]:
        """Corrects the last step by x̂0 at its predicted end, then predicts the next.

        x_c = (σ/σ_prev) x_prev + a Σ_{j ≤ p} w_j x̂0_j,    x ← (σ_n/σ) x_c + a_n Σ_{j < p} w'_j x̂0_j
        """
        half_log_snr, std, gain = sde.half_log_snr(times), sde.std(times), sde.mean_coef(times)[1:]
        kept, slope, used = std[1:] / std[:-1], SLOPES[self.variant], self.used(self.p, len(gain))
        predicted = flows(half_log_snr, kept, gain, used, slope=slope)
        more = [values + 1 for values in used[:-1]]
        corrected = flows(half_log_snr[:-1], kept[:-1], gain[:-1], more, implicit=True, slope=slope)
        return rows(times, predicted, corrected)


def _half(h: Tensor) -> Tensor:
    return 0.5 * h


SLOPES = {"bh1": _half, "bh2": midpoint_slope}
