"""DDIM: from the exact probability flow of one predicted clean sample to ancestral sampling, by η."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sde_diffusion.errors import require
from sde_diffusion.sde import SDE
from sde_diffusion.solvers.base import GridSolver, ReverseProcess, columns


class Row(NamedTuple):
    """x ← kept x + gain x̂0 + spread z."""

    t: Tensor
    t_next: Tensor
    kept: float
    gain: float
    spread: float


@dataclass(frozen=True, kw_only=True)
class DDIM(GridSolver):
    """Carries x̂0 and ε̂ to the next noise level and renews the share η of the noise.

    η = 0 is deterministic, and the same as DPM-Solver++ of order 1; η = 1 is `ancestral`. Exact in one step when the
    data are a single point.

    Attributes:
        eta: Share of ancestral sampling's noise, in [0, 1].

    Cost: one score evaluation per step.

    Reference: Song et al. 2021 (DDIM), arXiv:2010.02502, eqs. 12 and 16, for any a and σ.
    """

    order = 1

    steps: int = 100
    eta: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.eta <= 1, f"`eta` must be in [0, 1], got {self.eta}")

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    def plan(self, sde: SDE, times: Tensor) -> Sequence[Row]:
        """x ← a_n x̂0 + √(σ_n² − ς²) ε̂ + ς z,  ς = η σ_n √(1 − e^{−2h}),  h = λ_n − λ,

        written without ε̂: with the kept share c = √(1 − η² (1 − e^{−2h})),

            x ← c (σ_n/σ) x + a_n (1 − c e^{−h}) x̂0 + ς z;  `t_next < t` unless η = 0.
        """
        h, std = sde.half_log_snr(times).diff(), sde.std(times)
        renewed = -torch.expm1(-2 * h) if self.stochastic else torch.zeros_like(h)
        kept = torch.sqrt(1 - self.eta**2 * renewed)
        gain = -sde.mean_coef(times[1:]) * torch.expm1(kept.log() - h)
        spread = self.eta * std[1:] * renewed.sqrt()
        return [Row(*row) for row in columns(times, kept * std[1:] / std[:-1], gain, spread)]

    def update(self, process: ReverseProcess, x: Tensor, now: Row, state: None) -> tuple[Tensor, None]:
        """See `plan`. The method has no memory."""
        x_next = torch.add(now.kept * x, process.x0(x, now.t), alpha=now.gain)
        if not self.stochastic:
            return x_next, None
        return x_next.add_(process.noise(x, now.t, now.t_next), alpha=now.spread), None
