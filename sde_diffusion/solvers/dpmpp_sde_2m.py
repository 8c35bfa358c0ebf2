"""SDE-DPM-Solver++(2M): the multistep method on the reverse SDE."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_diffusion.errors import require_positive
from sde_diffusion.sde import SDE
from sde_diffusion.solvers.exponential import Flow, Multistep, Row, rows


@dataclass(frozen=True, kw_only=True)
class DPMppSDE2M(Multistep):
    """Integrates the reverse SDE exactly for an x̂0 that is extrapolated in λ to the middle of the step.

    Attributes:
        eta: Share of the noise: 1 is the reverse SDE; towards 0 it is `dpmpp_2m`.

    Cost: one score evaluation per step.

    Reference: Lu et al. 2022, arXiv:2211.01095, section 5 and appendix A (η = 1).
    """

    order = 2
    stochastic = True

    steps: int = 50
    eta: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(eta=self.eta)

    def plan(self, sde: SDE, times: Tensor) -> Sequence[Row]:
        """With h = λ_n − λ and D = x̂0 + (h / 2h_prev) (x̂0 − x̂0_prev), which is x̂0 in the first step,

        x ← (σ_n/σ) e^{−η²h} x + a_n (1 − e^{−(1+η²)h}) D + σ_n √(1 − e^{−2η²h}) z;  `t_next < t`.
        """
        std, h, faded = sde.std(times), sde.half_log_snr(times).diff(), self.eta**2
        kept = std[1:] / std[:-1] * torch.exp(-faded * h)
        gain = -sde.mean_coef(times[1:]) * torch.expm1(-(1 + faded) * h)
        share = torch.cat([torch.zeros_like(h[:1]), 0.5 * h[1:] / h[:-1]])  # of x̂0 − x̂0_prev in D
        share = torch.where(torch.tensor(self.used(2, len(h))) == 2, share, 0.0)
        values = torch.stack([gain * (1 + share), -gain * share], 1)
        spread = std[1:] * torch.sqrt(-torch.expm1(-2 * faded * h))
        taken = [Flow(own, tuple(row)) for own, row in zip(kept.tolist(), values.tolist(), strict=True)]
        return rows(times, taken, spread=spread)
