"""The reverse process that solvers see: a process with its score, its noise and its count of evaluations."""

from collections.abc import Callable, Iterable
from copy import copy
from typing import NamedTuple

import torch
from torch import Tensor

from sde_diffusion.score import Marginal, ScoreFn, ahead, on_device, reverse_drift, score_and_fraction
from sde_diffusion.sde import SDE
from sde_diffusion.solvers.noise import NoiseSource
from sde_diffusion.tensors import select

Observer = Callable[[Tensor, float], None]
"""Called with the state (B, *D) and its time after every step."""

X0Map = Callable[[Tensor], Tensor]
"""A map of the predicted clean sample (B, *D), e.g. clipping to the data range."""


class _Moment(NamedTuple):
    """A time that is known beforehand: as score functions take it, (B,), the score there, and a and σ as numbers."""

    times: Tensor
    score: Callable[[Tensor], Tensor]
    marginal: Marginal


class ReverseProcess:
    """An SDE with a score: everything a solver may ask for. The only place that counts score evaluations.

    Args:
        sde: The forward process.
        score_fn: (x, t) -> ∇ log p_t(x).
        noise: Source of z for stochastic solvers.
        project: Applied to every predicted x̂0; score and ε̂ follow it.
        observer: Called after every step.
    """

    def __init__(
        self,
        sde: SDE,
        score_fn: ScoreFn,
        *,
        noise: NoiseSource | None = None,
        project: X0Map | None = None,
        observer: Observer | None = None,
    ) -> None:
        self.sde = sde
        self.project = project
        self._calls = [0]  # shared with the processes that `select` gives
        self._score_fn = score_fn
        self._noise = noise
        self._observer = observer
        self._known: dict[float, _Moment] = {}

    @property
    def nfe(self) -> int:
        """Score evaluations so far."""
        return self._calls[0]

    def select(self, rows: Tensor) -> "ReverseProcess":
        """The process of the samples `rows` (n,) of the batch; it counts together with this one."""
        part = copy(self)
        part._score_fn, part._known = select(self._score_fn, rows), {}
        return part

    def along(self, times: Iterable[Tensor], x: Tensor) -> "ReverseProcess":
        """The same for batches like `x`, with what depends on `times`, each (), computed beforehand; counts together.

        At these times nothing is computed but the network, and nothing waits for the device.
        """
        stops = torch.tensor(sorted(set(map(float, times))), dtype=torch.float64)
        marginals = map(Marginal, self.sde.mean_coef(stops).tolist(), self.sde.std(stops).tolist())
        moments = map(_Moment, on_device(stops, x), ahead(self._score_fn, stops, x), marginals)
        known = copy(self)
        known._known = dict(zip(stops.tolist(), moments, strict=True))
        return known

    def score(self, x: Tensor, t: Tensor) -> Tensor:
        """∇ log p_t(x), (B, *D). Costs one score evaluation."""
        score = self._evaluate(x, t)
        return score if self.project is None else self._projected(score, x, t)

    def score_and_fraction(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The score, and v of the variance of a reverse step, each (B, *D). Costs one score evaluation.

        Raises:
            InputError: The score function does not know the variance.
        """
        self._calls[0] += 1
        known = self._moment(t)
        times = t.to(x).expand(len(x)) if known is None else known.times
        score, fraction = score_and_fraction(self._score_fn, x, times)
        return (score if self.project is None else self._projected(score, x, t)), fraction

    def eps(self, x: Tensor, t: Tensor) -> Tensor:
        """E[ε | x_t], (B, *D). Costs one score evaluation."""
        return self._marginal(x, t).eps(self.score(x, t))

    def x0(self, x: Tensor, t: Tensor) -> Tensor:
        """E[x_0 | x_t] by Tweedie's formula, (B, *D). Costs one score evaluation."""
        x0 = self._marginal(x, t).x0(self._evaluate(x, t), x)
        return x0 if self.project is None else self.project(x0)

    def drift(self, x: Tensor, t: Tensor, eta: float) -> Tensor:
        """f x − ½(1 + η²) g² s, (B, *D). Costs one score evaluation."""
        return reverse_drift(self.sde, self.score(x, t), x, t, eta)

    def noise(self, x: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
        """Fresh z ~ N(0, I) for the step from `t` to `t_next`, (B, *D)."""
        assert self._noise is not None, "a stochastic solver needs a noise source"
        return self._noise(x, t, t_next)

    @property
    def observed(self) -> bool:
        """Whether there is an observer."""
        return self._observer is not None

    def observe(self, x: Tensor, t: float) -> None:
        """Report a state to the observer, if there is one."""
        if self._observer is not None:
            self._observer(x, t)

    def _evaluate(self, x: Tensor, t: Tensor) -> Tensor:
        self._calls[0] += 1
        known = self._moment(t)
        return self._score_fn(x, t.to(x).expand(len(x))) if known is None else known.score(x)

    def _projected(self, score: Tensor, x: Tensor, t: Tensor) -> Tensor:
        assert self.project is not None
        marginal = self._marginal(x, t)
        return marginal.score(self.project(marginal.x0(score, x)), x)

    def _marginal(self, x: Tensor, t: Tensor) -> Marginal:
        known = self._moment(t)
        return Marginal.of(self.sde, t, x) if known is None else known.marginal

    def _moment(self, t: Tensor) -> _Moment | None:
        return self._known.get(float(t)) if self._known and t.ndim == 0 else None


def as_time(t: float) -> Tensor:
    """A time as solvers hold it: () float64 on the CPU."""
    return torch.tensor(t, dtype=torch.float64)
