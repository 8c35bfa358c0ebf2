"""DEIS: exponential Adams–Bashforth on ε̂."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from sde_diffusion.errors import require, require_one_of
from sde_diffusion.sde import SDE
from sde_diffusion.solvers.exponential import Multistep, Row, flows, rows
from sde_diffusion.solvers.process import ReverseProcess


@dataclass(frozen=True, kw_only=True)
class DEIS(Multistep):
    """The flow d(x/a) = ε̂ d(σ/a), integrated exactly for the polynomial in λ through the last `points` values of ε̂.

    One point is DDIM. Of three the first step is taken anew, at no evaluation, once ε̂ at its end is known; as
    published it is not, which leaves order 2. The paper also has polynomials in t, which extrapolate far where a grid
    is uneven in t.

    Attributes:
        points: Values of ε̂ that a step uses: the order, but for three that are `published` or whose last steps are
            always lowered, which leaves 2.
        rule: `exact`, or as `published`.

    Cost: one score evaluation per step.

    Reference: Zhang & Chen 2023, arXiv:2204.13902, eqs. 14–15, with log ρ = −λ for t.
    """

    stochastic = False

    points: Literal[1, 2, 3] = 3
    rule: Literal["exact", "published"] = "exact"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.points in (1, 2, 3), f"`points` must be 1, 2 or 3, got {self.points}")
        require_one_of("rule", self.rule, ("exact", "published"))

    @property
    def order(self) -> int:
        lowered = self.rule == "published" or self.lower_final == "always"
        return min(self.points, 2) if lowered else self.points

    def predict(self, process: ReverseProcess, x: Tensor, t: Tensor) -> Tensor:
        """ε̂."""
        return process.eps(x, t)

    def plan(self, sde: SDE, times: Tensor) -> Sequence[Row]:
        """x ← (a_n/a) x + a_n Σ_j w_j ε̂_j,  w_j = ∫ ℓ_j d(σ/a) from t to t_n,

        with ℓ_j the Lagrange polynomials, in λ, of the points at which ε̂ is known: `flows` with a and σ exchanged.
        """
        half_log_snr, kept, gain = sde.half_log_snr(times), sde.log_mean_coef(times).diff().exp(), sde.std(times)[1:]
        taken = flows(half_log_snr, kept, gain, self.used(self.points, len(gain)), sign=-1)
        if self.points < 3 or self.rule != "exact" or len(taken) == 1:
            return rows(times, taken)
        return rows(times, taken, flows(half_log_snr[:2], kept[:1], gain[:1], [2], implicit=True, sign=-1))
