"""What a log-likelihood by the flow leaves out at its two ends: the noise at `t_min`, and the prior in place of p_T."""

import math

import torch
from torch import Tensor

from sde_diffusion.likelihood.divergence import Divergence, score_and_trace
from sde_diffusion.score import ScoreFn
from sde_diffusion.sde import SDE
from sde_diffusion.tensors import flat_sum


def truncation_error(
    score_fn: ScoreFn, sde: SDE, x0: Tensor, *, divergence: Divergence, seed: int = 0, start: int = 0
) -> Tensor:
    """log p_t(x0) − log p_0(x0) at t = t_min, to first order in what the noise does there.

    With x_t = a x_0 + σ ε the density is p_t(x) = a⁻ᴰ (p_0 ∗ N(0, (σ/a)² I))(x/a): stretched, moved and smoothed,

        log p_t(x) − log p_0(x) ≈ −D log a + (1/a − 1) s·x + ½ (σ/a)² (tr ∂s + ‖s‖²),    s = ∇ log p_t(x)

    The smoothing is the heat equation's, Δp/p = tr ∂s + ‖s‖². The remainder is of second order: O(σ⁴ + (1 − a)²), as
    long as σ is small against the width of the density's features.

    Args:
        score_fn: (x, t) -> ∇ log p_t(x), differentiable in x.
        sde: The forward process.
        x0: Data in model coordinates, (B, *D).
        divergence: How to get tr ∂s.
        seed, start: Of its random directions.

    Returns:
        Nats, (B,). Costs one score evaluation and the vjps of the trace.
    """
    t = torch.tensor(sde.t_min, dtype=torch.float64)
    a, std = float(sde.mean_coef(t)), float(sde.std(t))
    times = x0.new_full((len(x0),), sde.t_min)
    score, trace = score_and_trace(score_fn, divergence.bind(x0, seed=seed, start=start), x0, times)
    score, x = score.double(), x0.double()
    stretch = -x0[0].numel() * math.log(a) + (1 / a - 1) * flat_sum(score * x)
    return stretch + 0.5 * (std / a) ** 2 * (trace.double().mean(1) + flat_sum(score**2))


def prior_gap(sde: SDE, x0: Tensor) -> Tensor:
    """KL(q(x_T | x0) ‖ N(0, P² I)), P = prior_std, whose mean over the data bounds what the prior costs, in nats.

        ½ [D (σ²/P² − 1 − log σ²/P²) + a² ‖x0‖²/P²]  at t_max

    The KL divergence from p_T to the prior, by which the mean log-likelihood is too small when the score is exact, is
    at most its mean, for KL is convex.

    Args:
        sde: The forward process.
        x0: Data in model coordinates, (B, *D).

    Returns:
        Nats ≥ 0, (B,). Costs no score.

    Reference: Song et al. 2021, arXiv:2101.09258, section 3.
    """
    t = torch.tensor(sde.t_max, dtype=torch.float64)
    return prior_kl(x0, sde.mean_coef(t), sde.std(t), sde.prior_std)


def prior_kl(x0: Tensor, mean_coef: Tensor, std: Tensor, prior_std: float) -> Tensor:
    """KL(N(a x0, σ² I) ‖ N(0, prior_std² I)) in nats, (B, *D) -> (B,) float64; a and σ are ()."""
    a, ratio = float(mean_coef), (float(std) / prior_std) ** 2
    spread = x0[0].numel() * (ratio - 1 - math.log(ratio))
    return 0.5 * (spread + (a / prior_std) ** 2 * flat_sum(x0.double() ** 2))
