"""The problems with known answers that the checks solve, for every row of the registries."""

import dataclasses
import math
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from sde_diffusion.errors import InputError
from sde_diffusion.oracle import GaussianMixture
from sde_diffusion.score import ScoreFn
from sde_diffusion.sde import BETA_SEQUENCES, BETAS, SDE, SDES, BetaSchedule, BetaSequence
from sde_diffusion.solvers import (
    CORRECTORS,
    SOLVERS,
    GridSolver,
    NoiseSource,
    PerSampleODE,
    ReverseProcess,
    SeededNoise,
    Solver,
)
from sde_diffusion.verify.check import Setting

MEAN, STD = 0.5, 0.6  # of the Gaussian data
RATES: dict[type, Mapping[str, type]] = {BetaSchedule: BETAS, BetaSequence: BETA_SEQUENCES}
T = TypeVar("T")
UNCHANGED = ("on_failure",)  # options that name their values but change no formula
ELSEWHERE = ("learned",)  # values that need more than a score, and have checks of their own
# values of options that change formulas, besides those that name their values
VALUES: dict[str, tuple[Any, ...]] = {
    "eta": (0.0, 0.5, 1.0),
    "s_churn": (2.0,),
    "compact": (False,),
    "chunk": (3,),
    "stratified": (False,),
    "corrector": tuple(corrector(snr=0.01) for corrector in CORRECTORS.values()),
}


def processes(*, betas: bool = True) -> dict[str, SDE]:
    """Every registered process, with every rate β(t) or β_k where it has one."""
    found = {}
    for name, cls in SDES.items():
        found[name] = cls()
        table = RATES.get(typing.get_type_hints(cls).get("beta", object), {})
        if betas and table:
            make, own = typing.cast(Callable[..., SDE], cls), type(vars(found[name])["beta"])
            found |= {f"{name}-{key}": make(beta=beta()) for key, beta in table.items() if beta is not own}
    return found


def variants(cls: type[T]) -> dict[str, T]:
    """The defaults and, one at a time, the other values of each option that changes the formula."""
    default, found = cls(), {"": cls()}
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        if field.name in UNCHANGED:
            continue
        literal = typing.get_args(hints[field.name]) if typing.get_origin(hints[field.name]) is typing.Literal else ()
        for value in (*literal, *VALUES.get(field.name, ())):
            if value != getattr(default, field.name) and value not in ELSEWHERE:
                try:
                    found[f" {field.name}={_short(value)}"] = cls(**{field.name: value})
                except InputError:
                    continue  # a value that this class refuses
    return found


def _short(value: object) -> str:
    return type(value).__name__ if dataclasses.is_dataclass(value) else f"{value}"


def solvers() -> dict[str, Solver]:
    """Every registered solver with all its variants; of integrators of other packages the defaults alone."""
    found: dict[str, Solver] = {}
    for name, cls in SOLVERS.items():
        own = issubclass(cls, GridSolver | PerSampleODE)
        found |= {name + label: solver for label, solver in variants(cls).items() if own or not label}
    return found


def seeded(setting: Setting, seed: int, start: int = 0) -> SeededNoise:
    """Noise for the samples from `start` on."""
    return SeededNoise(seed, start=start, device=setting.device, dtype=setting.dtype)


def gaussian(setting: Setting, sde: SDE, dims: int = 1) -> GaussianMixture:
    """N(½, 0.6² I)."""
    return GaussianMixture.gaussian(sde, setting.tensor([MEAN]).expand(dims), STD)


def mixture(setting: Setting, sde: SDE, shape: tuple[int, ...] = (2,)) -> GaussianMixture:
    """Three Gaussians with means and spreads of order one."""
    weights, stds = setting.tensor([0.2, 0.5, 0.3]), setting.tensor([0.3, 0.6, 0.4])
    return GaussianMixture(sde, weights, setting.normal(3, *shape), stds)


class Impulses(NoiseSource):
    """Draw k is 1 for sample 2 + k of the batch and 0 for all others."""

    def __init__(self) -> None:
        self.drawn = 0

    def prior(self, shape: tuple[int, ...]) -> Tensor:
        raise AssertionError("the start is given")

    def __call__(self, x: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
        z = torch.zeros_like(x)
        z[2 + self.drawn : 3 + self.drawn] = 1
        self.drawn += 1
        return z


def exact_moments(sde: SDE, t: float, *, mean: float = MEAN, std: float = STD) -> tuple[float, float]:
    """Mean and standard deviation of x_t for data N(mean, std² I)."""
    time = torch.tensor(t, dtype=torch.float64)
    a = float(sde.mean_coef(time))
    return a * mean, math.hypot(a * std, float(sde.std(time)))


class KnownVariance:
    """The score of data N(MEAN, std² I) and, as a model of two heads, the exact variance of steps between given times.

    With V = a² std² + σ² the step to s has the variance v V_s/V_t = exp(w log v + (1 − w) log (v σ_s²/σ_t²)).
    """

    def __init__(self, sde: SDE, times: Tensor, *, std: float = STD) -> None:
        self._sde, self._std, self._times = sde, std, times.sort().values

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        a = self._sde.mean_coef(t).reshape(-1, *(1,) * (x.ndim - 1))
        return (a * MEAN - x) / self._variance(t).reshape(-1, *(1,) * (x.ndim - 1))

    def score_and_fraction(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The score and w, each (B, *D)."""
        before = self._times.to(t)
        before = before[(torch.searchsorted(before, t - 1e-6) - 1).clamp(min=0)]
        wide, narrow = (self._variance(when).log() for when in (t, before))
        noise = 2 * (self._sde.std(before) / self._sde.std(t)).log()
        fraction = torch.where(noise < 0, 1 - (narrow - wide) / noise, 0.5)  # at the first time there is no step
        return self(x, t), fraction.reshape(-1, *(1,) * (x.ndim - 1)).expand_as(x)

    def _variance(self, t: Tensor) -> Tensor:
        return (self._sde.mean_coef(t) * self._std) ** 2 + self._sde.std(t) ** 2


def moments(
    setting: Setting,
    sde: SDE,
    solver: GridSolver,
    t_from: float,
    t_to: float,
    *,
    std: float = STD,
    score_fn: ScoreFn | None = None,
) -> tuple[float, float]:
    """Mean and standard deviation at `t_to` of a run that starts with those of p at `t_from`, with no Monte Carlo.

    For Gaussian data the score is affine in x, so a whole run is an affine map A x + b + Σ_k C_k z_k of the start and
    of each draw of noise. One batch reads all coefficients. `score_fn` may stand for the score, where more is needed.
    """

    def score(x: Tensor, t: Tensor) -> Tensor:  # of one Gaussian at one time: as the oracle, for a fifth of its cost
        a = sde.mean_coef(t[:1])
        return (a * MEAN - x) / ((a * std) ** 2 + sde.std(t[:1]) ** 2)

    noise, room = Impulses(), 2 * solver.steps
    start = setting.tensor(torch.zeros(2 + room, 1))
    start[1] = 1
    end = solver.solve(ReverseProcess(sde, score_fn or score, noise=noise), start, t_from, t_to)[:, 0].double()
    assert noise.drawn <= room
    offset, responses = end[0], end[1:] - end[0]
    mean, spread = exact_moments(sde, t_from, std=std)
    return float(responses[0] * mean + offset), math.hypot(float(responses[0]) * spread, float(responses[1:].norm()))
