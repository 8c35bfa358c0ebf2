"""Ancestral sampling: DDPM's discretisation as the exact Gaussian bridge of any linear SDE."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sde_diffusion.chain import Variance
from sde_diffusion.solvers.base import GridSolver, ReverseProcess


@dataclass(frozen=True, kw_only=True)
class Ancestral(GridSolver):
    """Draws x_s from q(x_s | x_t, x_0 = x̂0(x_t)), s < t.

    With ρ = a_t/a_s and v = σ_t² − ρ² σ_s², the variance that the forward process adds from s to t,

        mean = (ρ σ_s² x + a_s v x̂0) / σ_t² = (x + v s_θ(x, t)) / ρ,    variance = v σ_s² / σ_t².

    On the grid of a published DDPM or NCSN chain this is that chain. It needs a and σ alone, so it serves every SDE,
    and is exact in one step when the data are a single point.

    Attributes:
        variance: `small` is the bridge's v σ_s²/σ_t² (DDPM's β̃), `large` is v (DDPM's β); optimal for data that are a
            single point and for N(0, I) respectively. `learned` is what a model with learned variance puts between
            them, in logarithms; β and β̃ are those of the step, so that any subset of levels will do.

    Cost: one score evaluation per step.

    Reference: Ho et al. 2020, arXiv:2006.11239, eqs. 6–7; Song et al. 2021, arXiv:2011.13456, appendix F; Nichol &
    Dhariwal 2021, arXiv:2102.09672, eqs. 15 and 19.
    """

    order = 1
    stochastic = True

    variance: Variance = "small"

    def step(self, process: ReverseProcess, x: Tensor, t: Tensor, t_next: Tensor, state: None) -> tuple[Tensor, None]:
        """x ← (x + v s_θ)/ρ + √variance z,  variance = v (σ_s/σ_t)^{2(1 − w)},  w = 0 (small), 1 (large) or learned.

        Args:
            x: State at `t`, (B, *D).
            t, t_next: Times, () float64, `t_next < t`.
            state: None; the method has no memory.

        Returns:
            State at `t_next`, (B, *D), and None.

        Raises:
            InputError: The variance is `learned`, and the score function does not know it.
        """
        sde = process.sde
        log_rho = sde.log_mean_coef(t) - sde.log_mean_coef(t_next)
        std = sde.std(t)
        ratio = sde.std(t_next) / std
        # v = σ_t² (1 − ρ² σ_s²/σ_t²) by expm1: in a short step the two terms are nearly equal
        added = -(std**2) * torch.expm1(2 * (log_rho + ratio.log()))
        if self.variance == "learned":
            score, fraction = process.score_and_fraction(x, t)
            spread = added.sqrt() * torch.exp((1 - fraction) * ratio.log())
        else:
            score, spread = process.score(x, t), added.sqrt() if self.variance == "large" else added.sqrt() * ratio
        mean = (x + added * score) / log_rho.exp()
        return mean + spread * process.noise(x, t, t_next), None
