"""SDE-DPM-Solver++(2M): the multistep method on the reverse SDE."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sde_diffusion.errors import require_positive
from sde_diffusion.solvers.base import ReverseProcess
from sde_diffusion.solvers.exponential import Last, Multistep, follow


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

    def step(
        self, process: ReverseProcess, x: Tensor, t: Tensor, t_next: Tensor, state: Last | None
    ) -> tuple[Tensor, Last]:
        """With h = λ_n − λ and D = x̂0 + (h / 2h_prev) (x̂0 − x̂0_prev), which is x̂0 in the first step,

            x ← (σ_n/σ) e^{−η²h} x + a_n (1 − e^{−(1+η²)h}) D + σ_n √(1 − e^{−2η²h}) z.

        Args:
            x: State at `t`, (B, *D).
            t, t_next: Times, () float64, `t_next < t`.
            state: Of the last step, or None at the start.

        Returns:
            State at `t_next`, (B, *D), and the new history.
        """
        sde = process.sde
        start, x0 = sde.half_log_snr(t), process.x0(x, t)
        h, faded = sde.half_log_snr(t_next) - start, self.eta**2
        middle = x0
        if state and self.allowed(2, state) == 2:
            ((before, x0_before),) = state.history
            middle = x0 + 0.5 * h / (start - before) * (x0 - x0_before)
        kept = sde.std(t_next) / sde.std(t) * torch.exp(-faded * h)
        mean = kept * x - sde.mean_coef(t_next) * torch.expm1(-(1 + faded) * h) * middle
        spread = sde.std(t_next) * torch.sqrt(-torch.expm1(-2 * faded * h))
        x_next = mean + spread * process.noise(x, t, t_next)
        return x_next, follow(state, x, t, ((start, x0),))
