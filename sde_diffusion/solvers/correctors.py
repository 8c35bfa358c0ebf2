"""Correctors: Langevin steps at a fixed time, which move samples towards p_t. A row of `CORRECTORS` each."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sde_diffusion.errors import require_positive
from sde_diffusion.sde import SDE
from sde_diffusion.solvers.base import ReverseProcess
from sde_diffusion.tensors import expand, flat_sum


@dataclass(frozen=True, kw_only=True)
class Corrector(ABC):
    """x ← x + h s + √(2h) z with h = 2 α (r · spread)²; a subclass says how wide p_t is.

    α = ρ² = (a_t/a_s)² of the step from t to s that follows. That is the published α_i = 1 − β_i of a VP chain and 1 of
    a VE chain, and defines it for sub-VP, which has no published value.

    Attributes:
        snr: r, the size of a step against the noise it adds.
        repeats: Steps at each time.

    Cost: `repeats` score evaluations at each time.
    """

    snr: float = 0.16
    repeats: int = 1

    def __post_init__(self) -> None:
        require_positive(snr=self.snr, repeats=self.repeats)

    @abstractmethod
    def spread(self, sde: SDE, t: Tensor, score: Tensor, z: Tensor) -> Tensor:
        """An estimate of the standard deviation of p_t, () or (B,)."""

    def correct(self, process: ReverseProcess, x: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
        """The state (B, *D) after `repeats` Langevin steps at `t`; the step to `t_next` follows."""
        rho = torch.exp(process.sde.log_mean_coef(t) - process.sde.log_mean_coef(t_next))
        for _ in range(self.repeats):
            score, z = process.score(x, t), process.noise(x, t, t)
            h = expand(2 * (rho * self.snr * self.spread(process.sde, t, score, z)) ** 2, x)
            x = x + h * score + (2 * h).sqrt() * z
        return x


@dataclass(frozen=True, kw_only=True)
class Langevin(Corrector):
    """Langevin steps as long as the norms of noise and score say: spread = ‖z‖/‖s‖.

    One sample's score vanishes at a mode of p_t, where this would step without bound. So a sample's own spread is held
    to √(a² + σ²), that of data with unit variance. A step that depends on x moves the law that it settles at, by a
    share of order 1/D of the variance: D = 784 does not feel it, D = 2 does; there take `ald`.

    Attributes:
        norm: Norms of each `sample`, or, as published, their means over the `batch`; then a sample depends on its
            companions.

    Cost: `repeats` score evaluations at each time.

    Reference: Song et al. 2021, arXiv:2011.13456, Algorithms 4 and 5.
    """

    norm: Literal["sample", "batch"] = "sample"

    def spread(self, sde: SDE, t: Tensor, score: Tensor, z: Tensor) -> Tensor:
        length, pull = flat_sum(z**2).sqrt(), flat_sum(score**2).sqrt()
        if self.norm == "batch":
            return (length.mean() / pull.mean()).expand(len(z))
        return (length / pull).clamp(max=float(torch.hypot(sde.mean_coef(t), sde.std(t))))


@dataclass(frozen=True, kw_only=True)
class AnnealedLangevin(Corrector):
    """Langevin steps in proportion to the noise level: spread = std(t).

    Cost: `repeats` score evaluations at each time.

    Reference: Song & Ermon 2019, arXiv:1907.05600, Algorithm 1.
    """

    def spread(self, sde: SDE, t: Tensor, score: Tensor, z: Tensor) -> Tensor:
        return sde.std(t)


CORRECTORS: dict[str, type[Corrector]] = {"langevin": Langevin, "ald": AnnealedLangevin}
