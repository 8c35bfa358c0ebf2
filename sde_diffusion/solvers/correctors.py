"""Correctors: Langevin steps at a fixed time, which move samples towards p_t. A row of `CORRECTORS` each."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from sde_diffusion.errors import require_positive
from sde_diffusion.sde import SDE
from sde_diffusion.solvers.base import columns
from sde_diffusion.solvers.process import ReverseProcess
from sde_diffusion.tensors import expand, flat_sum


class Level(NamedTuple):
    """A time, the next one, ρ = a_t/a_s between them, σ_t, and √(a_t² + σ_t²), the spread of data of unit variance."""

    t: Tensor
    t_next: Tensor
    rho: float
    std: float
    widest: float


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
    def spread(self, level: Level, score: Tensor, z: Tensor) -> Tensor | float:
        """An estimate of the standard deviation of p_t, a number or (B,)."""

    def plan(self, sde: SDE, times: Tensor) -> Sequence[Level]:
        """The levels at the start of each step along `times` (n + 1,), float64 on the CPU."""
        a, std = sde.mean_coef(times), sde.std(times[:-1])
        rho = (-sde.log_mean_coef(times).diff()).exp()
        return [Level(*row) for row in columns(times, rho, std, torch.hypot(a[:-1], std))]

    def update(self, process: ReverseProcess, x: Tensor, now: Level) -> Tensor:
        """The state (B, *D) after `repeats` Langevin steps at `now.t`; the step to `now.t_next` follows."""
        for _ in range(self.repeats):
            score, z = process.score(x, now.t), process.noise(x, now.t, now.t)
            h = expand(2 * (now.rho * self.snr * self.spread(now, score, z)) ** 2, x)
            x = x + h * score + (2 * h) ** 0.5 * z
        return x

    def correct(self, process: ReverseProcess, x: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
        """`update` at one level by itself; t and t_next, () float64 on the CPU."""
        return self.update(process, x, self.plan(process.sde, torch.stack([t, t_next]))[0])


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

    def spread(self, level: Level, score: Tensor, z: Tensor) -> Tensor:
        length, pull = flat_sum(z**2).sqrt(), flat_sum(score**2).sqrt()
        if self.norm == "batch":
            return (length.mean() / pull.mean()).expand(len(z))
        return (length / pull).clamp(max=level.widest)


@dataclass(frozen=True, kw_only=True)
class AnnealedLangevin(Corrector):
    """Langevin steps in proportion to the noise level: spread = std(t).

    Cost: `repeats` score evaluations at each time.

    Reference: Song & Ermon 2019, arXiv:1907.05600, Algorithm 1.
    """

    def spread(self, level: Level, score: Tensor, z: Tensor) -> float:
        return level.std


CORRECTORS: dict[str, type[Corrector]] = {"langevin": Langevin, "ald": AnnealedLangevin}
