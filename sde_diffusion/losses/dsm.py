"""Weighted denoising score matching.

    L = ∫ λ(t)/σ(t)² E_{x_0, ε} ρ(σ s_θ(x_t, t) + ε) dt,    x_t = a x_0 + σ ε,

estimated with t ~ r(t) and weights λ/(σ² r). With ρ(e) = e² the minimiser is the score of p_t whatever λ is.

Reference: Song et al. 2021, arXiv:2011.13456, eq. 7; Vincent 2011.
"""

import torch
from torch import Tensor

from sde_diffusion.arguments import Data, score_and_data
from sde_diffusion.errors import require_kind
from sde_diffusion.losses.noised import DISTANCES, DSMLoss, noised, residual
from sde_diffusion.losses.time_sampling import StratifiedTime, TimeSampler
from sde_diffusion.losses.weighting import SimpleWeighting, Weighting
from sde_diffusion.registry import lookup
from sde_diffusion.rng import Draws, default_generator
from sde_diffusion.score import ScoreFn
from sde_diffusion.sde import SDE
from sde_diffusion.tensors import flat_mean


def denoising_error(score_fn: ScoreFn, sde: SDE, x0: Tensor, t: Tensor, eps: Tensor, *, distance: str = "l2") -> Tensor:
    """mean_D ρ(σ s_θ(x_t, t) + ε), the error of ε at given times and noise.

    Args:
        x0, eps: Clean data and forward noise, (B, *D).
        t: (B,).
        distance: A row of `DISTANCES`.

    Returns:
        (B,). Costs one score evaluation.
    """
    score = score_fn(sde.perturb(x0, t, eps), t)
    return flat_mean(lookup(DISTANCES, distance, "distance")(residual(sde, score, t, eps)))


def dsm_loss(
    score_fn: ScoreFn,
    sde: SDE | Data | None = None,
    x0: Data | None = None,
    *,
    weighting: Weighting | None = None,
    time_sampler: TimeSampler | None = None,
    generator: torch.Generator | Draws | None = None,
    distance: str = "l2",
) -> DSMLoss:
    """Draw t ~ r and ε ~ N(0, I) and give each sample's share of the loss.

    `dsm_loss(model, x0).mean().backward()` is a whole training step's loss. One score evaluation.

    Args:
        score_fn: What is trained.
        sde: The process. May be left out, `dsm_loss(model, x0)`, where `score_fn` is a `ScoreModel`.
        x0: Clean data in model coordinates, (B, *D), floating point; or a pair of them and their labels, as loaders
            give it. Labels count where the network knows classes.

    Other args:
        weighting: λ(t); λ = σ² (`SimpleWeighting`) by default.
        time_sampler: r(t); one time in each of B equal strata (`StratifiedTime`) by default.
        generator: Source of t and ε, on the device of `x0`: of a whole batch, or of the rows of one that `x0` are. By
            default PyTorch's own generator, which `torch.manual_seed` seeds.
        distance: ρ, a row of `DISTANCES`.

    Returns:
        The loss (B,), always divided by the density r(t), with the bare errors and times.

    Raises:
        InputError: `x0` is no floating-point batch or does not suit the network, or no process is known.
    """
    score_fn, sde, x0 = score_and_data(score_fn, sde, x0)
    weighting = SimpleWeighting() if weighting is None else weighting
    time_sampler = StratifiedTime() if time_sampler is None else time_sampler
    require_kind("weighting", weighting, Weighting, "SimpleWeighting()")
    require_kind("time_sampler", time_sampler, TimeSampler, "StratifiedTime()")
    random = default_generator(x0.device) if generator is None else generator
    drawn = noised(score_fn, sde, x0, weighting=weighting, time_sampler=time_sampler, generator=random)
    error = drawn.error(distance)
    return drawn.loss(weighting.of_eps(sde, drawn.t) * error, error)
