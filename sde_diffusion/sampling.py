"""Sampling and encoding: a solver from one end of time to the other."""

from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields, replace

import torch
from torch import Tensor

from sde_diffusion.arguments import batch_for, process_of
from sde_diffusion.errors import InputError, SolveError, is_number, is_whole, require, shown_type
from sde_diffusion.registry import resolve
from sde_diffusion.score import ScoreFn
from sde_diffusion.sde import SDE
from sde_diffusion.solvers import SOLVERS, Plan
from sde_diffusion.solvers.base import Solver
from sde_diffusion.solvers.failures import NETWORK, counted_from, not_finite
from sde_diffusion.solvers.noise import NoiseSource, SeededNoise
from sde_diffusion.solvers.process import Observer, ReverseProcess, X0Map, as_time


@dataclass(frozen=True, eq=False)
class Samples:
    """The result of a run.

    Attributes:
        x: (B, *D).
        nfe: Score evaluations per sample, the final denoising included.
        t_end: Time of `x` (before a final denoising).
    """

    x: Tensor
    nfe: int
    t_end: float


@torch.no_grad()
def sample(
    score_fn: ScoreFn,
    sde: SDE | None = None,
    solver: Solver | Plan | str = "ode",
    shape: tuple[int, ...] | None = None,
    *,
    noise: NoiseSource | int | None = None,
    t_end: float | None = None,
    x_init: Tensor | None = None,
    denoise: bool = True,
    project: X0Map | None = None,
    observer: Observer | None = None,
) -> Samples:
    """Draw x ~ p_{t_end} by solving the reverse process from the prior at `sde.t_max`.

    Args:
        score_fn: (x, t) -> ∇ log p_t(x).
        sde: The process. None for that of `score_fn`, where it is a `ScoreModel`.
        solver: A row of `SOLVERS`, an object such as `DDIM(steps=50)`, or what `for_budget` gives, which decides
            `t_end` and `denoise` too.
        shape: (B, *D); not needed beside `x_init`.

    Other args:
        noise: Gives the prior draw and the noise of stochastic solvers; a number is the seed of `SeededNoise`, None
            the seed 0.
        t_end: Where to stop; `sde.t_min` if None.
        x_init: State at `sde.t_max`, (B, *D); drawn from N(0, prior_std² I) if None.
        denoise: Return E[x_0 | x_{t_end}] in place of x_{t_end}, for one more score evaluation.
        project: Map applied to every predicted x̂0, e.g. clipping to the data range.
        observer: Called with the state and its time after every step.

    Raises:
        InputError: No process or shape is known, an unknown solver, `t_end` outside [t_min, t_max), or `x_init` not of
            `shape`.
        SolveError: The solve failed, or gave values that are not finite; says when and for which sample.
    """
    sde = process_of(score_fn, sde)
    if isinstance(plan := solver, Plan):
        solver, denoise, t_end = plan.solver, plan.denoise, plan.t_end(sde) if t_end is None else t_end
    solver = as_solver(solver)
    noise, t_end = _noise(score_fn, noise), _checked_end(sde, t_end)
    if project is not None and (isinstance(project, type) or not callable(project)):
        raise InputError(f"`project` must be a function of the predicted data, got {shown_type(project)}")
    x = _start(score_fn, sde, shape, x_init, noise)
    process = ReverseProcess(sde, score_fn, noise=noise, project=project, observer=observer)
    with counted_from(noise.start):
        x = solver.solve(process, x, sde.t_max, t_end)
        x = _denoised(process, x, t_end) if denoise else x
    if denoise:
        process.observe(x, 0.0)
    return Samples(x, process.nfe, t_end)


def as_solver(solver: object) -> Solver:
    """A solver, by its name in `SOLVERS` or as it is.

    Raises:
        InputError: An unknown name, or no solver at all.
    """
    return resolve(SOLVERS, solver, Solver, "solver")  # type: ignore[type-abstract]


def _start(
    score_fn: ScoreFn, sde: SDE, shape: Sequence[int] | None, x_init: Tensor | None, noise: NoiseSource
) -> Tensor:
    """The state at `sde.t_max`, of `shape`: `x_init`, or a draw from the prior."""
    if x_init is not None:
        x = batch_for(score_fn, "x_init", x_init)
        require(
            shape is None or tuple(x.shape) == tuple(shape),
            f"`x_init` must have the shape {shape}, got {tuple(x.shape)}",
        )
        return x
    if not isinstance(shape, Sequence) or len(shape) < 2 or not all(is_whole(side) and side > 0 for side in shape):
        raise InputError(f"`shape` must be the batch and the sides of a sample, such as (16, 1, 8, 8), got {shape!r}")
    return sde.prior_std * batch_for(score_fn, "shape", noise.prior(tuple(shape)))


def _noise(score_fn: ScoreFn, noise: NoiseSource | int | None) -> NoiseSource:
    """The source of noise that `noise` stands for; that of a seed is where the weights of `score_fn` are."""
    if isinstance(noise, NoiseSource):
        return noise
    noise = 0 if noise is None else noise
    if not is_whole(noise):
        raise InputError(f"`noise` must be a seed or a source such as SeededNoise(seed=0), got {shown_type(noise)}")
    first = next(score_fn.parameters(), None) if isinstance(score_fn, torch.nn.Module) else None
    if first is None:
        return SeededNoise(noise)
    return SeededNoise(noise, device=first.device, dtype=first.dtype)


def _denoised(process: ReverseProcess, x: Tensor, t_end: float) -> Tensor:
    """E[x_0 | x_{t_end}]; a sample whose solve failed on purpose stays NaN."""
    clean = process.x0(x, as_time(t_end))
    rows = sorted(set(not_finite(clean)) - set(not_finite(x)))
    if rows:
        raise SolveError("the final denoising", NETWORK, t=t_end, samples=rows)
    return clean


@torch.no_grad()
def encode(score_fn: ScoreFn, sde: SDE | None, solver: Solver | Plan | str, x0: Tensor, *, start: int = 0) -> Samples:
    """The latent at `sde.t_max` of data `x0` (B, *D), taken to be the state at `sde.t_min`.

    Args:
        score_fn, sde, solver: As in `sample`; of a plan only its solver counts.
        start: Index of the first example, for errors.

    Raises:
        InputError: A stochastic solver, which has no inverse.
        SolveError: The solve failed; says when and for which sample.
    """
    sde, x0 = process_of(score_fn, sde), batch_for(score_fn, "x0", x0)
    solver = as_solver(solver.solver if isinstance(solver, Plan) else solver)
    require_deterministic(solver)
    process = ReverseProcess(sde, score_fn)
    with counted_from(start):
        z = solver.solve(process, x0, sde.t_min, sde.t_max)
    return Samples(z, process.nfe, sde.t_max)


def decode(
    score_fn: ScoreFn,
    sde: SDE | None,
    solver: Solver | Plan | str,
    z: Tensor,
    *,
    t_end: float | None = None,
    denoise: bool = False,
    project: X0Map | None = None,
    start: int = 0,
) -> Samples:
    """What the latents `z` (B, *D) at `sde.t_max` become: the inverse of `encode`, unless `denoise` is true.

    Args:
        score_fn, sde, solver: As in `sample`; of a plan only its solver counts.
        t_end, denoise, project: As in `sample`.
        start: Index of the first latent, for errors.

    Raises:
        InputError: A stochastic solver, or `t_end` outside [t_min, t_max).
        SolveError: The solve failed; says when and for which sample.
    """
    solver = as_solver(solver.solver if isinstance(solver, Plan) else solver)
    require_deterministic(solver)
    return sample(
        score_fn,
        sde,
        solver,
        None,
        noise=SeededNoise(0, start=start),  # of which nothing is drawn
        t_end=t_end,
        x_init=z,
        denoise=denoise,
        project=project,
    )


def require_deterministic(solver: Solver) -> None:
    """Refuse a solver that draws noise, for what it does cannot be undone.

    Raises:
        InputError: It does; names its options that make it so, or solvers that do not.
    """
    if not solver.stochastic:
        return
    name = next((name for name, row in SOLVERS.items() if row is type(solver)), type(solver).__name__)
    own = {field.name: field.default for field in fields(solver) if field.default is not MISSING}
    resets = [f"`{key}` = {value}" for key, value in own.items() if _quiet(solver, key, value)]
    others = [name for name, row in SOLVERS.items() if name != "ode" and not row().stochastic]
    remedy = f"set {' or '.join(resets)}" if resets else f"try 'ode', or one of {', '.join(others)}"
    raise InputError(f"`solver` must be deterministic to encode and decode, got {name!r}, which draws noise; {remedy}")


def _quiet(solver: Solver, option: str, default: object) -> bool:
    """Whether the solver draws no noise with its `default` in place of one option."""
    return getattr(solver, option) != default and not replace(solver, **{option: default}).stochastic


def _checked_end(sde: SDE, t_end: float | None) -> float:
    if t_end is None:
        return sde.t_min
    require(is_number(t_end), f"`t_end` must be a time, got {t_end!r}")
    require(t_end >= sde.t_min, f"`t_end` must be ≥ `sde.t_min` = {sde.t_min:g}, got {t_end:g}")
    require(t_end < sde.t_max, f"`t_end` must be < `sde.t_max` = {sde.t_max:g}, got {t_end:g}")
    return t_end
