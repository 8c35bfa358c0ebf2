"""The score function, the one currency of this package, and what else it says about x_t.

A `ScoreFn` maps (x, t) to ∇ log p_t(x). Models, guided models and closed-form oracles are all of this type; labels are
bound before. With x_t = a x_0 + σ ε, Tweedie's formula gives the posterior means of ε and x_0 from the score.

Reference: Song et al. 2021, arXiv:2011.13456, eqs. 6 and 13; Huang et al. 2021, arXiv:2106.02808, for η.
"""

from collections.abc import Callable

from torch import Tensor

from sde_diffusion.sde import SDE
from sde_diffusion.tensors import expand

ScoreFn = Callable[[Tensor, Tensor], Tensor]
"""(x: (B, *D), t: (B,)) -> ∇ log p_t(x): (B, *D)."""


def eps_from_score(sde: SDE, score: Tensor, t: Tensor) -> Tensor:
    """E[ε | x_t] = −σ s, (B, *D)."""
    return -expand(sde.std(t), score) * score


def x0_from_score(sde: SDE, score: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """E[x_0 | x_t] = (x + σ² s) / a, (B, *D)."""
    return (x + expand(sde.std(t) ** 2, x) * score) / expand(sde.mean_coef(t), x)


def score_from_x0(sde: SDE, x0: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """s = (a E[x_0 | x_t] − x) / σ², the inverse of `x0_from_score`, (B, *D)."""
    return (expand(sde.mean_coef(t), x) * x0 - x) / expand(sde.std(t) ** 2, x)


def reverse_drift(sde: SDE, score: Tensor, x: Tensor, t: Tensor, eta: float) -> Tensor:
    """Drift f x − ½(1 + η²) g² s of the reverse process whose noise is η g dw̄, (B, *D).

    η = 0 is the probability-flow ODE, η = 1 the reverse SDE; every η has the same marginals p_t.
    """
    return expand(sde.drift_coef(t), x) * x - expand(0.5 * (1 + eta**2) * sde.diffusion(t) ** 2, x) * score
