"""Variational bounds of the negative log-likelihood, in continuous time and of discrete chains.

For data x_0, noise x_s = a x_0 + σ ε at the first time s and any process that generates from N(0, prior_std² I),

    −log p(x_0) ≤ L_prior + L_diffusion + L_reconstruction,    L_prior = KL(q(x_T | x_0) ‖ N(0, prior_std² I))

With the right score it is the negative log-likelihood up to the prior gap and the decoder's misfit. It bounds the
density of the reverse SDE, not that of the probability flow, unless the score is a right one.

References: Kingma et al. 2021 (VDM), arXiv:2107.00630, section 3.3; Song et al. 2021b, arXiv:2101.09258, theorem 3;
Ho et al. 2020, arXiv:2006.11239, eq. 5.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_diffusion.errors import require, require_positive
from sde_diffusion.likelihood.audit.targets import Target
from sde_diffusion.likelihood.audit.truncation import prior_gap, prior_kl
from sde_diffusion.losses import ImportanceTime, LikelihoodWeighting, TimeSampler, denoising_error
from sde_diffusion.rng import SampleStream
from sde_diffusion.score import ScoreFn, score_and_fraction
from sde_diffusion.sde import SDE
from sde_diffusion.sde.chain import DiscreteChain, Variance
from sde_diffusion.tensors import expand, flat_sum

_BOUND = 0xB0D1D5  # purpose of random numbers


@dataclass(frozen=True, eq=False)
class Bound:
    """An unbiased estimate of a bound for each example, in nats of what the target codes.

    Attributes:
        prior: L_prior, exact, (B,).
        diffusion: L_diffusion, or Σ L_{k−1} of a chain, (B,).
        reconstruction: L_reconstruction, −log p(example | x_s), (B,).
        nfe: Score evaluations per example.
    """

    prior: Tensor
    diffusion: Tensor
    reconstruction: Tensor
    nfe: int

    @property
    def log_prob(self) -> Tensor:
        """The lower bound of log p, (B,)."""
        return -(self.prior + self.diffusion + self.reconstruction)


@torch.no_grad()
def continuous_bound(
    score_fn: ScoreFn,
    sde: SDE,
    target: Target,
    *,
    draws: int = 1,
    denoise: bool = True,
    seed: int = 0,
    start: int = 0,
    time_sampler: TimeSampler | None = None,
) -> Bound:
    """The bound in continuous time, which any linear SDE has:

        L_diffusion = ½ ∫ g²/σ² E‖σ s + ε‖² dt = −½ ∫ E‖ε − ε̂‖² d log SNR    from t_min to t_max

    by independent draws of (t, ε), by default with t uniform in log SNR and in one of `draws` equal strata each. The
    decoder has the width σ/a at t_min. To start the bound at another time, replace the `t_min` of `sde`.

    Args:
        score_fn: (x, t) -> ∇ log p_t(x).
        sde: The forward process.
        target: What is coded: `Levels` or `Points`.
        draws: Pairs (t, ε) for each example.
        denoise: Decode around x̂_0(x_s) in place of x_s/a, for one score evaluation.
        seed, start: The draws of example i depend on (seed, start + i) alone.
        time_sampler: Independent draws of t in place of the default.

    Returns:
        `Bound`, unbiased. Costs `draws` + 1 score evaluations per example, `draws` without `denoise`.

    Raises:
        InputError: `draws` < 1.
    """
    require_positive(draws=draws)
    x0, weighting = target.x0, LikelihoodWeighting()
    sampler = time_sampler or ImportanceTime(stratified=False)
    stream = SampleStream(seed, _BOUND, start=start, count=len(x0))  # on the CPU: the same on every device
    total = torch.zeros(len(x0), dtype=torch.float64, device=x0.device)
    for j in range(draws):
        u = (j + stream.uniform((), torch.float64)) / draws
        t, density = (part.to(x0) for part in sampler.draw(sde, weighting, u))
        eps = stream.normal(tuple(x0.shape[1:]), x0.dtype).to(x0.device)
        error = denoising_error(score_fn, sde, x0, t.clamp(sde.t_min, sde.t_max), eps)
        total += weighting.of_eps(sde, t) / density * error
    first = torch.tensor(sde.t_min, dtype=torch.float64)
    a, std = sde.mean_coef(first), sde.std(first)
    return Bound(
        prior=prior_gap(sde, x0),
        diffusion=0.5 * x0[0].numel() * total / draws,
        reconstruction=_reconstruction(score_fn, target, first, a, std, std / a, denoise, stream),
        nfe=draws + denoise,
    )


@torch.no_grad()
def chain_bound(
    score_fn: ScoreFn,
    chain: DiscreteChain,
    target: Target,
    *,
    prior_std: float = 1.0,
    variance: Variance = "small",
    draws: int | None = None,
    decoder_std: float | None = None,
    denoise: bool = True,
    seed: int = 0,
    start: int = 0,
) -> Bound:
    """DDPM's L_T + Σ_{k ≥ 2} L_{k−1} + L_0 of a chain.

        L_{k−1} = KL(q(x_{k−1} | x_k, x_0) ‖ p(x_{k−1} | x_k))
                = D/2 (r − 1 − log r) + r/2 (SNR_{k−1}/SNR_k − 1) ‖ε − ε̂‖²

    with p = N(mean of q at x̂_0, Σ I) and r = β̃/Σ, 1 for the variance `small`; a learned Σ differs between coordinates.

    Args:
        score_fn: Called with the chain's `times`.
        chain: From `DiscreteChain.from_betas` or `from_sde`.
        target: What is coded from level 1.
        prior_std: Of the prior at level N.
        variance: Σ, `small` for β̃, `large` for β, and `learned` for that of a model that knows it.
        draws: Levels drawn for each example in place of all, in proportion to their weights; None for all.
        decoder_std: Width of the decoder; None for σ_1/a_1, or for the model's own where the variance is learned. The
            published one of a fixed variance is √β̃_2, `exp(chain.clipped_log_variance[0] / 2)`.
        denoise, seed, start: As in `continuous_bound`.

    Returns:
        `Bound`, unbiased. Costs N score evaluations per example, or `draws` + 1; one less without `denoise`.

    Raises:
        InputError: `draws` < 1, `decoder_std` ≤ 0, or a learned variance of a model that has none.

    Reference: Ho et al. 2020, arXiv:2006.11239, eqs. 5–13; sampled levels with weights and the learned variance: Nichol
    & Dhariwal 2021, arXiv:2102.09672, sections 3.1 and 3.3.
    """
    require(draws is None or draws > 0, f"`draws` must be > 0, or None for all levels, got {draws}")
    require(decoder_std is None or decoder_std > 0, f"`decoder_std` must be > 0, got {decoder_std}")
    x0 = target.x0
    a, std, times = chain.mean_coef, chain.std, torch.tensor(chain.times[1:], dtype=torch.float64)
    terms = _ChainTerms(score_fn, chain, x0, variance)
    stream = SampleStream(seed, _BOUND, start=start, count=len(x0))
    total = torch.zeros(len(x0), dtype=torch.float64, device=x0.device)
    share = terms.weights / terms.weights.sum()
    rounds = chain.steps - 1 if draws is None else draws
    for j in range(rounds):
        if draws is None:
            index, weight = torch.full((len(x0),), j), torch.ones(len(x0), dtype=torch.float64)
        else:
            u = (j + stream.uniform((), torch.float64)) / draws
            index = torch.searchsorted(share.cumsum(0), u).clamp(max=len(share) - 1)
            weight = 1 / (draws * share[index])
        eps = stream.normal(tuple(x0.shape[1:]), x0.dtype).to(x0.device)
        total += weight.to(total) * terms.at(index + 2, eps)
    if variance == "learned" and decoder_std is None:
        x = a[0] * x0 + std[0] * stream.normal(tuple(x0.shape[1:]), x0.dtype).to(x0.device)
        score, fraction = score_and_fraction(score_fn, x, times[0].to(x0).expand(len(x0)))
        mean = x + std[0] ** 2 * score if denoise else x
        reconstruction, extra = -target.log_prob(mean / a[0], chain.decoder_std(fraction.double())), 1
    else:
        width = std[0] / a[0] if decoder_std is None else torch.tensor(decoder_std, dtype=torch.float64)
        reconstruction = _reconstruction(score_fn, target, times[0], a[0], std[0], width, denoise, stream)
        extra = int(denoise)
    return Bound(
        prior=prior_kl(x0, a[-1], std[-1], prior_std),
        diffusion=total + terms.constant,
        reconstruction=reconstruction,
        nfe=rounds + extra,
    )


class _ChainTerms:
    """The terms L_{k−1}, k = 2 … N, of one batch.

    Attributes:
        weights: Of ‖ε − ε̂‖² at each level if the variance is fixed, by which levels are drawn, (N − 1,).
        constant: The part of Σ_k L_{k−1} that a fixed variance has whatever the data [nats].
    """

    def __init__(self, score_fn: ScoreFn, chain: DiscreteChain, x0: Tensor, variance: Variance) -> None:
        self._score_fn, self._chain, self._x0, self._learned = score_fn, chain, x0, variance == "learned"
        self._times = torch.tensor(chain.times[1:], dtype=torch.float64)
        ratio = torch.ones(chain.steps - 1, dtype=torch.float64)
        if variance == "large":
            ratio = (chain.posterior.variance / chain.added)[1:]
        self.weights = ratio * chain.eps_weight
        self.constant = 0.5 * x0[0].numel() * float((ratio - 1 - ratio.log()).sum())

    def at(self, level: Tensor, eps: Tensor) -> Tensor:
        """L_{k−1} at the level k ≥ 2 of each example, without `constant`, (B,) float64. Costs one evaluation."""
        chain, x0, index = self._chain, self._x0, level - 1
        std = expand(chain.std[index].to(x0), x0)
        x, t = expand(chain.mean_coef[index].to(x0), x0) * x0 + std * eps, self._times[index].to(x0)
        if not self._learned:
            squared = (std * self._score_fn(x, t) + eps) ** 2
            return self.weights[level - 2].to(x0.device) * flat_sum(squared).double()
        score, fraction = score_and_fraction(self._score_fn, x, t)
        squared = (std * score + eps).double() ** 2
        return flat_sum(chain.divergence(level.to(x0.device), squared, fraction.double()))


def _reconstruction(
    score_fn: ScoreFn,
    target: Target,
    t: Tensor,
    a: Tensor,
    std: Tensor,
    width: Tensor,
    denoise: bool,
    stream: SampleStream,
) -> Tensor:
    """−log p(example | x_s) at one draw of x_s, (B,)."""
    x0 = target.x0
    x = a * x0 + std * stream.normal(tuple(x0.shape[1:]), x0.dtype).to(x0.device)
    mean = x if not denoise else x + std**2 * score_fn(x, t.to(x0).expand(len(x0)))
    return -target.log_prob(mean / a, width)


def importance_weighted(log_probs: Tensor, log_q: Tensor, *, exact: bool) -> Tensor:
    """The importance-weighted bound log (1/K) Σ_k p(x_k)/q(x_k | n) of log P(n), (B,).

    Where log p is exact it lies between E log p/q and log P(n), and rises with K. Random trace probes would make
    E exp(log p) too large and the bound void; then weights w come from the other probes, and with w independent of them

        log (1/K) Σ_k e^{ℓ_k} ≥ Σ_k w_k ℓ_k − Σ_k w_k log(K w_k)

    is unbiased in the probes of ℓ: a bound again, and, where draws differ in ℓ and not in the noise of their probes, no
    worse than the plain one by more than log K.

    Args:
        log_probs: log p of K draws and each of p probes, (K, B, p).
        log_q: (K, B).
        exact: Whether log p has no random error.

    Raises:
        InputError: Fewer than two probes of a random trace.

    Reference: Burda et al. 2016, arXiv:1509.00519, eq. 8; Hoogeboom et al. 2020, arXiv:2001.11235, for dequantisation.
    """
    draws, _, probes = log_probs.shape
    ratios = log_probs.double() - log_q[..., None]
    if exact:
        return ratios.mean(2).logsumexp(0) - math.log(draws)
    require(
        probes > 1,
        f"importance weights need the exact trace or `divergence.probes` ≥ 2, got {probes}: one probe cannot choose "
        "the weights and be weighted",
    )
    others = (ratios.sum(2, keepdim=True) - ratios) / (probes - 1)
    log_weights = others.log_softmax(0)
    values = (log_weights.exp() * (ratios - log_weights - math.log(draws))).sum(0)
    return values.mean(1)
