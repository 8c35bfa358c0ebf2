"""DEIS: exponential Adams–Bashforth on ε̂."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sde_diffusion.errors import require, require_one_of
from sde_diffusion.sde import SDE
from sde_diffusion.solvers.base import ReverseProcess
from sde_diffusion.solvers.exponential import History, Last, Multistep, follow, weights


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

    def step(
        self, process: ReverseProcess, x: Tensor, t: Tensor, t_next: Tensor, state: Last | None
    ) -> tuple[Tensor, Last]:
        """x ← (a_n/a) x + a_n Σ_j w_j ε̂_j,  w_j = ∫ ℓ_j d(σ/a) from t to t_n,

        with ℓ_j the Lagrange polynomials, in λ, of the points at which ε̂ is known.

        Args:
            x: State at `t`, (B, *D).
            t, t_next: Times, () float64.
            state: Of the last step, or None at the start.

        Returns:
            State at `t_next`, (B, *D), and the new history.
        """
        sde = process.sde
        here = (sde.half_log_snr(t), process.eps(x, t))
        history = (here, *state.history[: self.points - 1]) if state else (here,)
        if state and len(history) == 2 < self.points and self.rule == "exact":
            x = _advance(sde, state.x, state.t, t, history)
        used = history[: self.allowed(self.points, state)]
        return _advance(sde, x, t, t_next, used), follow(state, x, t, history, len(used))


def _advance(sde: SDE, x: Tensor, t: Tensor, t_next: Tensor, history: History) -> Tensor:
    """The flow under the polynomial through `history`: `advance` with a and σ exchanged, so h and −h."""
    start = sde.half_log_snr(t)
    h = sde.half_log_snr(t_next) - start
    nodes = torch.stack([(half_log_snr - start) / h for half_log_snr, _ in history])
    terms = [w * eps for w, (_, eps) in zip(weights(nodes, -h), history, strict=True)]
    ratio = torch.exp(sde.log_mean_coef(t_next) - sde.log_mean_coef(t))
    return ratio * x + sde.std(t_next) * torch.stack(terms).sum(0)
