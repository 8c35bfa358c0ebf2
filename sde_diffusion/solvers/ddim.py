"""DDIM: from the exact probability flow of one predicted clean sample to ancestral sampling, by η."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sde_diffusion.errors import require
from sde_diffusion.solvers.base import GridSolver, ReverseProcess


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

    def step(self, process: ReverseProcess, x: Tensor, t: Tensor, t_next: Tensor, state: None) -> tuple[Tensor, None]:
        """x ← a_n x̂0 + √(σ_n² − ς²) ε̂ + ς z,  ς = η σ_n √(1 − e^{−2h}),  h = λ_n − λ,

        written without ε̂: with the kept share c = √(1 − η² (1 − e^{−2h})),

            x ← c (σ_n/σ) x + a_n (1 − c e^{−h}) x̂0 + ς z.

        Args:
            x: State at `t`, (B, *D).
            t, t_next: Times, () float64; `t_next < t` unless η = 0.
            state: None; the method has no memory.

        Returns:
            State at `t_next`, (B, *D), and None.
        """
        sde = process.sde
        h = sde.half_log_snr(t_next) - sde.half_log_snr(t)
        renewed = -torch.expm1(-2 * h) if self.stochastic else torch.zeros_like(h)
        kept = torch.sqrt(1 - self.eta**2 * renewed)
        gain = -sde.mean_coef(t_next) * torch.expm1(kept.log() - h)
        x_next = kept * sde.std(t_next) / sde.std(t) * x + gain * process.x0(x, t)
        if not self.stochastic:
            return x_next, None
        return x_next + self.eta * sde.std(t_next) * renewed.sqrt() * process.noise(x, t, t_next), None
