"""Discrete noise chains written as processes: adapters for the reference files that use published discrete conventions.

Level k = 0 … n stands at time k/n: 0 is clean data, level i + 1 is the chain's index i (0-based). Only a and std exist.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sde_diffusion.sde import SDE, LinearBetas
from sde_diffusion.sde.chain import DiscreteChain


@dataclass(frozen=True)
class Chain(SDE):
    log_means: tuple[float, ...] = ()
    stds: tuple[float, ...] = ()
    prior: float = 1.0

    def _at(self, values: tuple[float, ...], t: Tensor) -> Tensor:
        return torch.tensor(values, dtype=torch.float64)[(t * (len(values) - 1)).round().long()]

    def log_mean_coef(self, t: Tensor) -> Tensor:
        return self._at(self.log_means, t)

    def std(self, t: Tensor) -> Tensor:
        return self._at(self.stds, t)

    def drift_coef(self, t: Tensor) -> Tensor:
        raise AssertionError("a chain has no continuous drift")

    diffusion = drift_coef

    @property
    def prior_std(self) -> float:
        return self.prior

    def level(self, k: int) -> Tensor:
        """The time of level k."""
        return torch.tensor(k / (len(self.stds) - 1), dtype=torch.float64)


def as_process(chain: DiscreteChain, prior: float = 1.0) -> Chain:
    """A chain as a process that solvers and oracles take."""
    return Chain(log_means=chain.log_means, stds=chain.stds, prior=prior)


def ddpm_chain(beta_min: float, beta_max: float, n: int) -> Chain:
    """β_i equally spaced from β_min/n to β_max/n."""
    return as_process(DiscreteChain.from_betas(LinearBetas(beta_min / n, beta_max / n)(n)))


def smld_chain(sigma_min: float, sigma_max: float, n: int) -> Chain:
    """σ_i on a geometric grid, with σ_{−1} = 0."""
    sigmas = sigma_min * (sigma_max / sigma_min) ** torch.linspace(0, 1, n, dtype=torch.float64)
    return Chain(log_means=(0.0,) * (n + 1), stds=(0.0, *sigmas.tolist()), prior=sigma_max)
