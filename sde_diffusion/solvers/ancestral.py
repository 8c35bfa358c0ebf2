"""Ancestral sampling: DDPM's discretisation as the exact Gaussian bridge of any linear SDE."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sde_diffusion.sde import SDE
from sde_diffusion.sde.chain import Variance
from sde_diffusion.solvers.base import GridSolver, columns
from sde_diffusion.solvers.process import ReverseProcess


class Row(NamedTuple):
    """x ← (x + added s)/ρ + spread z; a learned variance narrows it by e^{(1 − w) narrowing}."""

    t: Tensor
    t_next: Tensor
    rho: float
    added: float
    spread: float
    narrowing: float


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

    def plan(self, sde: SDE, times: Tensor) -> Sequence[Row]:
        """x ← (x + v s_θ)/ρ + √variance z,  variance = v (σ_s/σ_t)^{2(1 − w)},  w = 0 (small), 1 (large) or learned."""
        log_rho, std = -sde.log_mean_coef(times).diff(), sde.std(times)
        ratio = std[1:] / std[:-1]
        # v = σ_t² (1 − ρ² σ_s²/σ_t²) by expm1: in a short step the two terms are nearly equal
        added = -(std[:-1] ** 2) * torch.expm1(2 * (log_rho + ratio.log()))
        spread = added.sqrt() * ratio if self.variance == "small" else added.sqrt()
        return [Row(*row) for row in columns(times, log_rho.exp(), added, spread, ratio.log())]

    def update(self, process: ReverseProcess, x: Tensor, now: Row, state: None) -> tuple[Tensor, None]:
        """See `plan`. The method has no memory.

        Raises:
            InputError: The variance is `learned`, and the score function does not know it.
        """
        if self.variance == "learned":
            score, fraction = process.score_and_fraction(x, now.t)
            noise = torch.exp((1 - fraction) * now.narrowing) * process.noise(x, now.t, now.t_next)
        else:
            score, noise = process.score(x, now.t), process.noise(x, now.t, now.t_next)
        return torch.add(x, score, alpha=now.added).div_(now.rho).add_(noise, alpha=now.spread), None
