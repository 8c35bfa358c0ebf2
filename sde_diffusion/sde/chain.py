"""Discrete noise chains: the Markov chains x_0 → x_1 → … → x_N of DDPM, and those that an SDE visits at given times.

Level 0 is clean data, and level k is x_k | x_0 ~ N(a_k x_0, σ_k² I). From one level to the next

    x_k | x_{k−1} ~ N(ρ_k x_{k−1}, v_k I),    ρ_k = a_k/a_{k−1},    v_k = σ_k² − ρ_k² σ_{k−1}²

For a chain of DDPM ρ_k = √(1 − β_k) and v_k = β_k. Published code counts t = k − 1 from 0. Tensors of this module are
float64 and hold one entry for each k = 1 … N.

Reference: Ho et al. 2020, arXiv:2006.11239, eqs. 2–7.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple, Self

import torch
from torch import Tensor

from sde_diffusion.errors import InputError, require
from sde_diffusion.sde import SDE
from sde_diffusion.tensors import expand

FixedVariance = Literal["small", "large"]
Variance = Literal["small", "large", "learned"]


class Posterior(NamedTuple):
    """q(x_{k−1} | x_k, x_0) = N(x0_coef x_0 + x_coef x_k, variance I), each (N,)."""

    x0_coef: Tensor
    x_coef: Tensor
    variance: Tensor


@dataclass(frozen=True, repr=False)
class DiscreteChain:
    """A chain given by its N + 1 levels.

    Attributes:
        log_means: log a_k, 0 for the clean data.
        stds: σ_k, 0 for the clean data.
        times: What score functions are told at level k.

    Raises:
        InputError: Fewer than two steps, lists that do not belong together, or a signal-to-noise ratio that does not
            fall from level to level.
    """

    log_means: tuple[float, ...]
    stds: tuple[float, ...]
    times: tuple[float, ...]

    def __post_init__(self) -> None:
        require(self.steps >= 2, f"a chain must have `steps` ≥ 2, got {self.steps}")
        lengths = (len(self.log_means), len(self.stds), len(self.times))
        require(len(set(lengths)) == 1, f"a chain must have one mean, std and time for each level, got {lengths}")
        require(
            self.log_means[0] == self.stds[0] == 0,
            f"level 0 of a chain must be clean data, got log a = {self.log_means[0]}, std = {self.stds[0]}",
        )
        falling = self.half_log_snr.diff() < 0
        require(
            bool(falling.all()) and min(self.stds[1:]) > 0,
            "the signal-to-noise ratio of a chain must fall from level to level; use increasing times",
        )

    @classmethod
    def from_betas(cls, betas: Tensor) -> Self:
        """The chain of DDPM: a_k² = ∏_{i ≤ k} (1 − β_i) and σ_k² = 1 − a_k², at the times k/N.

        Args:
            betas: β_1 … β_N, (N,), e.g. `LinearBetas()(N)`.

        Raises:
            InputError: A β outside (0, 1), or fewer than two.
        """
        betas = betas.double()
        wrong = betas[~((betas > 0) & (betas < 1))]
        require(not len(wrong), f"`betas` of a chain must be in (0, 1), got {wrong[:1].tolist()}")
        log_means = 0.5 * torch.log1p(-betas).cumsum(0)
        times = torch.arange(1, len(betas) + 1, dtype=torch.float64) / len(betas)
        return cls._of(log_means, (-torch.expm1(2 * log_means)).sqrt(), times)

    @classmethod
    def from_sde(cls, sde: SDE, times: Tensor) -> Self:
        """The levels of a process at N increasing `times` > 0, after its clean data; x_k has the law of x_{t_k}.

        Raises:
            InputError: Times that do not increase, or fewer than two.
        """
        times = times.double()
        return cls._of(sde.log_mean_coef(times), sde.std(times), times)

    @classmethod
    def of_levels(cls, sde: SDE) -> Self:
        """The chain that a process stands for.

        Raises:
            InputError: It stands for none.
        """
        if sde.levels is None:
            raise InputError("a chain needs a process with levels, such as ddpm, and this one has none")
        return cls.from_sde(sde, torch.arange(1, sde.levels + 1, dtype=torch.float64) / sde.levels)

    @classmethod
    def _of(cls, log_means: Tensor, stds: Tensor, times: Tensor) -> Self:
        return cls((0.0, *log_means.tolist()), (0.0, *stds.tolist()), (0.0, *times.tolist()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(steps={self.steps}, stds={self.stds[1]:.4g} … {self.stds[-1]:.4g})"

    @property
    def steps(self) -> int:
        """N."""
        return len(self.log_means) - 1

    @property
    def mean_coef(self) -> Tensor:
        """a_k (√ᾱ), (N,)."""
        return self._log_mean[1:].exp()

    @property
    def std(self) -> Tensor:
        """σ_k (√(1 − ᾱ)), (N,)."""
        return self._std[1:]

    @property
    def half_log_snr(self) -> Tensor:
        """λ_k = log(a_k/σ_k), (N,)."""
        return self._log_mean[1:] - self._std[1:].log()

    @property
    def snr(self) -> Tensor:
        """a_k²/σ_k², (N,)."""
        return (2 * self.half_log_snr).exp()

    @property
    def added(self) -> Tensor:
        """v_k, the variance of one forward step; β_k for DDPM. (N,)."""
        # by expm1: in a short step the two terms of v are nearly equal
        return -(self.std**2) * torch.expm1(2 * (self._log_mean.diff() + self._shrink.log()))

    @property
    def posterior(self) -> Posterior:
        """q(x_{k−1} | x_k, x_0): x0_coef = a_{k−1} v/σ_k², x_coef = ρ σ_{k−1}²/σ_k², variance = v σ_{k−1}²/σ_k².

        Reference: Ho et al. 2020, arXiv:2006.11239, eqs. 6 and 7 (β̃ is the variance).
        """
        share = self.added / self.std**2
        return Posterior(
            share * self._log_mean[:-1].exp(),
            self._log_mean.diff().exp() * self._shrink**2,
            self.added * self._shrink**2,
        )

    def variance(self, kind: FixedVariance) -> Tensor:
        """Variance of the reverse step to level k − 1, (N,): `small` is β̃ of the posterior, `large` is v (β).

        Reference: Ho et al. 2020, arXiv:2006.11239, section 3.2.
        """
        return self.posterior.variance if kind == "small" else self.added

    def divergence(self, level: Tensor, squared_error: Tensor, fraction: Tensor) -> Tensor:
        """KL(q(x_{k−1} | x_k, x_0) ‖ p(x_{k−1} | x_k)) of each coordinate at the levels k ≥ 2 [nats], (B, *D):

            ½ (r − 1 − log r) + ½ r (SNR_{k−1}/SNR_k − 1) (ε − ε̂)²,    r = β̃/Σ = (β̃/β)^v

        Args:
            level: k from 2 to N for each sample, (B,) int64 on the device of the rest.
            squared_error: (ε − ε̂)², (B, *D).
            fraction: v of Σ = exp(v log β + (1 − v) log β̃): 0 for `small`, 1 for `large`; broadcasts, (B, *D).

        Reference: Ho et al. 2020, arXiv:2006.11239, eq. 8; Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 15.
        """
        log_ratio = expand((2 * self._shrink.log()).to(squared_error)[level - 1], squared_error) * fraction
        weight = expand(self.eps_weight.to(squared_error)[level - 2], squared_error)
        return 0.5 * (torch.expm1(log_ratio) - log_ratio) + log_ratio.exp() * weight * squared_error

    def decoder_std(self, fraction: Tensor) -> Tensor:
        """√Σ_1 of the published decoder of x_0, shape of `fraction` v: β̃_1 = 0 stands for β̃_2.

        Reference: Ho et al. 2020 and Nichol & Dhariwal 2021, published code.
        """
        small, large = (float(log[0]) for log in (self.clipped_log_variance, self.added.log()))
        return torch.exp(0.5 * (small + fraction * (large - small)))

    @property
    def eps_weight(self) -> Tensor:
        """½ (SNR_{k−1}/SNR_k − 1) for k = 2 … N, (N − 1,): KL(q(x_{k−1} | x_k, x_0) ‖ p) per ‖ε − ε̂‖² with variance β̃.

        Reference: Kingma et al. 2021 (VDM), arXiv:2107.00630, eqs. 13 and 14.
        """
        return 0.5 * torch.expm1(-2 * self.half_log_snr.diff())

    @property
    def clipped_log_variance(self) -> Tensor:
        """log β̃_k, with the 0 of k = 1 replaced by β̃_2, (N,).

        Its first entry gives the width of the published decoder of x_0.

        Reference: Ho et al. 2020, arXiv:2006.11239, published code.
        """
        variance = self.posterior.variance
        return torch.cat([variance[1:2], variance[1:]]).log()

    def x0(self, x: Tensor, eps: Tensor, level: int) -> Tensor:
        """The clean sample (x_k − σ_k ε)/a_k behind `x` at `level` ≥ 1, (B, *D)."""
        return (x - self.std[level - 1] * eps) / self.mean_coef[level - 1]

    def posterior_mean(self, x: Tensor, x0: Tensor, level: int) -> Tensor:
        """Mean of q(x_{k−1} | x_k = x, x_0) at `level` k ≥ 1, (B, *D)."""
        x0_coef, x_coef, _ = self.posterior
        return x0_coef[level - 1] * x0 + x_coef[level - 1] * x

    @property
    def _log_mean(self) -> Tensor:
        return torch.tensor(self.log_means, dtype=torch.float64)

    @property
    def _std(self) -> Tensor:
        return torch.tensor(self.stds, dtype=torch.float64)

    @property
    def _shrink(self) -> Tensor:
        """σ_{k−1}/σ_k, (N,)."""
        return self._std[:-1] / self._std[1:]
