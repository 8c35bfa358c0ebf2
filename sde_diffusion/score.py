"""The score function, the one currency of this package, and what else it says about x_t.

A `ScoreFn` maps (x, t) to ∇ log p_t(x). Models, guided models and closed-form oracles are all of this type; labels are
bound before. With x_t = a x_0 + σ ε, Tweedie's formula gives the posterior means of ε and x_0 from the score.

Reference: Song et al. 2021, arXiv:2011.13456, eqs. 6 and 13; Huang et al. 2021, arXiv:2106.02808, for η.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, runtime_checkable

from torch import Tensor

from sde_diffusion.errors import InputError
from sde_diffusion.sde import SDE
from sde_diffusion.tensors import expand

ScoreFn = Callable[[Tensor, Tensor], Tensor]
"""(x: (B, *D), t: (B,)) -> ∇ log p_t(x): (B, *D)."""


@runtime_checkable
class KnowsVariance(Protocol):
    """A score function that may know the variance of a reverse step as well."""

    def score_and_fraction(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The score and the fraction v, each (B, *D). Costs one score evaluation.

        v mixes the two extreme variances of a step in their logarithms, Σ = exp(v log β + (1 − v) log β̃); a network
        may leave [0, 1].

        Raises:
            InputError: It does not know the variance.

        Reference: Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 15.
        """


def score_and_fraction(score_fn: ScoreFn, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """The score and the fraction v of a `score_fn` that knows the variance of a reverse step, each (B, *D).

    Raises:
        InputError: It does not know it.
    """
    given: object = score_fn  # as what it may be besides a function
    if isinstance(given, KnowsVariance):
        return given.score_and_fraction(x, t)
    raise InputError("a learned variance needs a model of two heads, but this score function gives the score alone")


def knows_variance(score_fn: ScoreFn) -> bool:
    """Whether `score_and_fraction` will answer: a model of one head has the method, and no answer."""
    return bool(getattr(score_fn, "learned_variance", isinstance(score_fn, KnowsVariance)))


@runtime_checkable
class Foresees(Protocol):
    """A score function that can compute beforehand what depends on the time alone."""

    def ahead(self, times: Tensor, x: Tensor) -> Sequence[Callable[[Tensor], Tensor]]:
        """For each of `times`, (n,) float64 on the CPU, x -> its score there, for batches like `x` (B, *D)."""


def ahead(score_fn: ScoreFn, times: Tensor, x: Tensor) -> Sequence[Callable[[Tensor], Tensor]]:
    """For each of `times`, (n,) float64 on the CPU, x -> score there, for batches like `x` (B, *D).

    What depends on the time alone is computed here, for all of them at once, if `score_fn` can; the times go to the
    device of `x` in one transfer, so that the evaluations wait for nothing.
    """
    given: object = score_fn  # as what it may be besides a function
    if isinstance(given, Foresees):
        return given.ahead(times, x)
    return [partial(_at, score_fn, t) for t in on_device(times, x)]


def on_device(times: Tensor, x: Tensor) -> Sequence[Tensor]:
    """Each of `times` (n,) as score functions take it for the batch `x`, (B,); one transfer for all."""
    return times.to(x)[:, None].expand(-1, len(x)).unbind()


def _at(score_fn: ScoreFn, t: Tensor, x: Tensor) -> Tensor:
    return score_fn(x, t)


@dataclass(frozen=True, eq=False)
class Marginal:
    """x_t | x_0 ~ N(a x_0, σ² I) at a time, or at one time for each sample, and what a score says there.

    Attributes:
        mean_coef, std: a and σ: numbers, or what broadcasts against states (B, *D).
    """

    mean_coef: Tensor | float
    std: Tensor | float

    @classmethod
    def of(cls, sde: SDE, t: Tensor, x: Tensor) -> "Marginal":
        """That of `sde` at `t`, () or (B,), for states like `x`."""
        return cls(expand(sde.mean_coef(t), x), expand(sde.std(t), x))

    def eps(self, score: Tensor) -> Tensor:
        """E[ε | x_t] = −σ s, (B, *D)."""
        return -self.std * score

    def x0(self, score: Tensor, x: Tensor) -> Tensor:
        """E[x_0 | x_t] = (x + σ² s) / a, (B, *D)."""
        return (x + self.std**2 * score) / self.mean_coef

    def score(self, x0: Tensor, x: Tensor) -> Tensor:
        """s = (a E[x_0 | x_t] − x) / σ², the inverse of `x0`, (B, *D)."""
        return (self.mean_coef * x0 - x) / self.std**2


def eps_from_score(sde: SDE, score: Tensor, t: Tensor) -> Tensor:
    """E[ε | x_t], (B, *D); see `Marginal.eps`."""
    return Marginal.of(sde, t, score).eps(score)


def x0_from_score(sde: SDE, score: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """E[x_0 | x_t], (B, *D); see `Marginal.x0`."""
    return Marginal.of(sde, t, x).x0(score, x)


def score_from_x0(sde: SDE, x0: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """The score whose E[x_0 | x_t] is `x0`, (B, *D); see `Marginal.score`."""
    return Marginal.of(sde, t, x).score(x0, x)


def reverse_drift(sde: SDE, score: Tensor, x: Tensor, t: Tensor, eta: float) -> Tensor:
    """Drift f x − ½(1 + η²) g² s of the reverse process whose noise is η g dw̄, (B, *D).

    η = 0 is the probability-flow ODE, η = 1 the reverse SDE; every η has the same marginals p_t.
    """
    return expand(sde.drift_coef(t), x) * x - expand(0.5 * (1 + eta**2) * sde.diffusion(t) ** 2, x) * score
