"""The methods of diffusers and k-diffusion on an exact score, along noise levels that the caller chooses.

A peer's noise level is ς = σ/a. Where a scheduler keeps its levels in `sigmas`, those are replaced by the caller's, so
it takes exactly the steps that ours take; its model is asked at the level itself, not at the nearest of its 1000
training times. Its own grids are read off after `set_timesteps`. Levels with a final 0 lose it: runs end at ς > 0.
"""

import functools
import importlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from common import submodule
from torch import Tensor

from sde_diffusion.score import ScoreFn, eps_from_score, x0_from_score
from sde_diffusion.sde import SDE
from sde_diffusion.solvers import DDIM, DEIS, DPMpp2M, DPMpp3M, DPMppSDE2M, GridSolver, Heun, NoiseSource, UniPC

TRAINING_TIMES = 1000  # of diffusers' discrete chain: t = 1/1000 … 1


@dataclass(frozen=True, eq=False)
class Flow:
    """A process with a score, as peers see it: by noise level."""

    sde: SDE
    score_fn: ScoreFn

    @functools.lru_cache(maxsize=100_000)  # noqa: B019  bisection costs more than a small score
    def time(self, level: float) -> Tensor:
        """The time at which σ/a = level, () float64."""
        return self.sde.time_at(-torch.tensor(level, dtype=torch.float64).log())

    def levels(self, times: Tensor) -> Tensor:
        """σ/a at `times`."""
        return torch.exp(-self.sde.half_log_snr(times))

    def eps(self, x: Tensor, level: float) -> Tensor:
        """ε̂ of a state x, (B, *D)."""
        t = self.time(level)
        return eps_from_score(self.sde, self.score_fn(x, t), t)

    def denoised(self, y: Tensor, level: Tensor) -> Tensor:
        """x̂0 of a state y = x/a, (B, *D); `level` is (B,) with one value."""
        t = self.time(float(level[0]))
        x = self.sde.mean_coef(t) * y
        return x0_from_score(self.sde, self.score_fn(x, t), x, t)


Run = Callable[[Flow, Tensor, Tensor, NoiseSource], Tensor]
"""(flow, start (B, *D), times (steps + 1,), noise) -> end (B, *D)"""


@dataclass(frozen=True)
class Peer:
    """One method of a peer.

    Attributes:
        ours: The same method here, or the nearest one where `same` is False.
        run: Takes the steps; None if it cannot leave its own grids.
        own: Its own grids, by name: steps -> times (steps + 1,).
    """

    tool: str
    name: str
    ours: GridSolver
    run: Run
    own: dict[str, Callable[[SDE, int], Tensor]] = field(default_factory=dict)
    same: bool = True
    any_grid: bool = True

    @property
    def label(self) -> str:
        return f"{self.tool} {self.name}"


# --- k-diffusion


def k_diffusion_peers() -> Iterator[Peer]:
    """Samplers that take levels as they are."""
    sampling = submodule("k_diffusion", "sampling")

    def peer(name: str, ours: GridSolver, *, same: bool = True, noisy: bool = False, **options: Any) -> Peer:
        solve = getattr(sampling, f"sample_{name}")
        shown = ", ".join(f"{key}={value:g}" for key, value in options.items())

        def run(flow: Flow, x: Tensor, times: Tensor, noise: NoiseSource) -> Tensor:
            a, levels = flow.sde.mean_coef(times), flow.levels(times)
            draw = {"noise_sampler": lambda *_: noise(x, times[0], times[0])} if noisy else {}
            return a[-1] * solve(flow.denoised, x / a[0], levels, disable=True, **draw, **options)

        return Peer("k-diffusion", f"{name} ({shown})" if shown else name, ours, run, same=same)

    yield peer("euler", DDIM())
    yield peer("heun", Heun())
    yield peer("dpmpp_2m", DPMpp2M(lower_final="never"))
    yield peer("dpmpp_3m_sde", DPMpp3M(rule="heun", lower_final="never"), noisy=True, eta=0.0)
    yield peer("lms", DEIS(), same=False)
    yield peer("dpm_2", Heun(), same=False)
    yield peer("euler_ancestral", DDIM(eta=1.0), noisy=True)
    yield peer("dpmpp_2m_sde", DPMppSDE2M(lower_final="never"), noisy=True)
    yield peer("dpmpp_3m_sde", DPMppSDE2M(), noisy=True, same=False)


# --- diffusers


def diffusers_peers() -> Iterator[Peer]:
    """Schedulers that keep levels in `sigmas`, and two that know their discrete chain only."""
    diffusers = importlib.import_module("diffusers")
    end = {"final_sigmas_type": "sigma_min"}
    karras, lu = {"use_karras_sigmas": True}, {"use_lu_lambdas": True}

    def peer(name: str, kind: str, ours: GridSolver, grids: tuple[dict[str, Any], ...], **options: Any) -> Peer:
        same = options.pop("same", True)
        scheduler = functools.partial(getattr(diffusers, kind + "Scheduler"), **options)
        own = {_grid_name(more): functools.partial(_own_times, scheduler, more) for more in grids}
        return Peer("diffusers", name, ours, functools.partial(_run_levels, scheduler), own, same=same)

    dpm = functools.partial(peer, kind="DPMSolverMultistep", grids=({}, karras, lu), **end)
    yield dpm("DPM-Solver++ 1", ours=DDIM(), solver_order=1)
    yield dpm("DPM-Solver++ 2M", ours=DPMpp2M(), solver_order=2)
    yield dpm("DPM-Solver++ 2M, heun", ours=DPMpp2M(rule="heun"), solver_order=2, solver_type="heun")
    yield dpm("DPM-Solver++ 3M", ours=DPMpp3M(rule="midpoint"), solver_order=3)
    yield dpm("DPM-Solver++ 3M, heun", ours=DPMpp3M(rule="heun"), solver_order=3, solver_type="heun")
    yield dpm("SDE-DPM-Solver++ 2M", ours=DPMppSDE2M(), solver_order=2, algorithm_type="sde-dpmsolver++")
    unipc = functools.partial(peer, kind="UniPCMultistep", grids=({}, karras), **end)
    yield unipc("UniPC 2", ours=UniPC(lower_final="always"), solver_order=2)
    yield unipc("UniPC 2, bh1", ours=UniPC(variant="bh1", lower_final="always"), solver_order=2, solver_type="bh1")
    yield unipc("UniPC 3", ours=UniPC(p=3, lower_final="always"), solver_order=3)
    deis = functools.partial(peer, kind="DEISMultistep", grids=({},))
    yield deis("DEIS 2", ours=DEIS(points=2), solver_order=2)
    yield deis("DEIS 3", ours=DEIS(rule="published"), solver_order=3)
    yield peer("Euler", "EulerDiscrete", DDIM(), ())
    yield peer("Heun", "HeunDiscrete", Heun(), ())
    yield peer("LMS", "LMSDiscrete", DEIS(), (), same=False)
    yield peer("EulerAncestral", "EulerAncestralDiscrete", DDIM(eta=1.0), ())
    for spacing in ("trailing", "linspace"):
        for name, eta in (("DDIM", 0.0), ("DDIM (eta=1)", 1.0)):
            options = {"timestep_spacing": spacing, "clip_sample": False, "set_alpha_to_one": False}
            scheduler = functools.partial(diffusers.DDIMScheduler, **options)
            run = functools.partial(_run_chain, scheduler, eta)
            own = {spacing: functools.partial(_chain_times, scheduler)}
            # linspace steps by 1000 // n between times that are 999 / (n − 1) apart: not a grid that we could take
            same = spacing == "trailing"
            yield Peer("diffusers", f"{name}, {spacing}", DDIM(eta=eta), run, own, same=same, any_grid=False)


def _grid_name(options: dict[str, Any]) -> str:
    return {"use_karras_sigmas": "karras", "use_lu_lambdas": "lu"}[next(iter(options))] if options else "linspace"


def _chain(sde: SDE) -> dict[str, Any]:
    """The discrete chain whose levels are those of `sde` at t = 1/1000 … 1."""
    times = torch.arange(TRAINING_TIMES + 1, dtype=torch.float64) / TRAINING_TIMES
    log_a2 = 2 * sde.log_mean_coef(times)
    return {"num_train_timesteps": TRAINING_TIMES, "trained_betas": (-torch.expm1(log_a2.diff())).numpy()}


def _own_times(make: Callable[..., Any], options: dict[str, Any], sde: SDE, steps: int) -> Tensor:
    """The times of the levels that the scheduler chooses for so many steps."""
    scheduler = make(**_chain(sde), **options)
    scheduler.set_timesteps(steps)
    times = sde.time_at(-scheduler.sigmas.double().log())
    return times[torch.cat([times.new_ones(1), -times.diff()]) > 1e-6]  # Karras' ends with two steps of one level


class _Levels:
    """Puts the caller's levels into a scheduler and knows what its states are scaled by."""

    def __init__(self, make: Callable[..., Any], flow: Flow, times: Tensor) -> None:
        self.steps, levels = len(times) - 1, flow.levels(times)
        probe = make(**_chain(flow.sde))
        kind = type(probe).__name__
        self.scaled = kind.startswith(("Euler", "Heun", "LMS"))  # these hold y = x/a
        # Euler, Heun and LMS end with a step to ς = 0, which is not taken
        probe.set_timesteps(self.steps + (1 if self.scaled else 0))
        zero = levels.new_zeros(1 if self.scaled else 0)
        if kind.startswith("Heun"):
            inner = levels[1:].repeat_interleave(2)
            self.calls, probe.sigmas = 2 * self.steps, torch.cat([levels[:1], inner, zero])
        else:
            self.calls, probe.sigmas = self.steps, torch.cat([levels, zero])
        probe.set_begin_index(0)
        self.scheduler = probe


def _run_levels(make: Callable[..., Any], flow: Flow, x: Tensor, times: Tensor, noise: NoiseSource) -> Tensor:
    """A scheduler's loop along `times`."""
    held, a = _Levels(make, flow, times), flow.sde.mean_coef(times)
    scheduler, levels = held.scheduler, held.scheduler.sigmas
    noisy = "sde" in scheduler.config.get("algorithm_type", "")
    ancestral = type(scheduler).__name__.startswith("EulerAncestral")
    state = x / a[0] if held.scaled else x
    for i in range(held.calls):
        t = scheduler.timesteps[i]
        seen = scheduler.scale_model_input(state, t)
        draw = {"variance_noise": noise(x, times[0], times[0])} if noisy else {}
        eps = flow.eps(seen, float(levels[i]))
        with _noise_of(scheduler, noise if ancestral else None, x):
            state = scheduler.step(eps, t, state, **draw).prev_sample
    return a[-1] * state if held.scaled else state


class _noise_of:
    """Has a scheduler that takes a generator only draw from `noise`."""

    def __init__(self, scheduler: Any, noise: NoiseSource | None, x: Tensor) -> None:
        self._module, self._noise, self._x = sys.modules[type(scheduler).__module__], noise, x

    def __enter__(self) -> None:
        if self._noise is not None:
            zero = torch.zeros((), dtype=torch.float64)
            noise, x = self._noise, self._x
            self._before = self._module.randn_tensor
            self._module.randn_tensor = lambda *_, **__: noise(x, zero, zero)

    def __exit__(self, *_: object) -> None:
        if self._noise is not None:
            self._module.randn_tensor = self._before


def _chain_times(make: Callable[..., Any], sde: SDE, steps: int) -> Tensor:
    """The times that DDIM's scheduler asks the model at, and the first of the chain, at which it ends."""
    scheduler = make(**_chain(sde))
    scheduler.set_timesteps(steps)
    ends = torch.unique_consecutive(torch.cat([scheduler.timesteps + 1, torch.tensor([1])]))
    return ends.double() / TRAINING_TIMES


def _run_chain(
    make: Callable[..., Any], eta: float, flow: Flow, x: Tensor, times: Tensor, noise: NoiseSource
) -> Tensor:
    """DDIM's own loop on its own grid; only the number of `times` counts."""
    scheduler = make(**_chain(flow.sde))
    scheduler.set_timesteps(len(times) - 1 if scheduler.config.timestep_spacing != "linspace" else len(times))
    for t in scheduler.timesteps:
        level = float(flow.levels((t.double() + 1) / TRAINING_TIMES))
        draw = {"variance_noise": noise(x, times[0], times[0])} if eta else {}
        x = scheduler.step(flow.eps(x, level), t, x, eta=eta, **draw).prev_sample
    return x


# --- what is installed


def gather() -> tuple[list[Peer], dict[str, str]]:
    """All peers that are installed, and why the others are not."""
    found: list[Peer] = []
    skipped: dict[str, str] = {}
    for tool, make in {"diffusers": diffusers_peers, "k-diffusion": k_diffusion_peers}.items():
        try:
            found += make()
        except ImportError as error:
            skipped[tool] = str(error)
    return found, skipped
