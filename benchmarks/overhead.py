"""What a solver adds to the network: microseconds per step, and per evaluation of an adaptive ODE solve.

    overhead = (time of the whole solve − calls of the network × time of the network alone) / steps or evaluations

in time on the CPU of one thread, so that other work on the machine does not count; the time by the clock is beside it.
Everything of a solve counts: the grid, the prior draw, the loop, the fresh noise. The networks cost next to nothing:
`null` returns a fixed tensor, `tiny` is an MLP with 16 hidden units; each is timed alone in the same rounds. A network
gives whatever the tool asks for: a score (ours), ε (diffusers), x̂0 (k-diffusion), a drift's score (torchdiffeq, SciPy).

Compared like with like, on the VP process:

- `ode step`: first-order steps of the probability flow. Ours: `em` with eta = 0 and every deterministic grid solver.
- `sde step`: first-order steps with fresh noise. Ours: every stochastic grid solver.
- `ode evaluation`: adaptive 5(4) Runge–Kutta from t = 1 to 1e-5 at rtol = atol = 1e-5, per call of the drift.
- `eps-net step`: as `ode step`, but from a network that predicts ε through each tool's own wrapper of models.

`bare loop` is the least that PyTorch takes for the same update, with coefficients known beforehand as Python floats.
diffusers runs without clipping, as we do. Peers that are not installed are skipped and named: `pip install
".[bench]"`; of k-diffusion only `sampling` and `external` are imported, which need torchsde and no training stack.

On a GPU (`--device cuda`) ours and the bare loop alone, and the time by the clock is what counts there.

    python benchmarks/overhead.py [--quick] [--device cuda] [--page]
"""

import argparse
import importlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from common import (
    RESULTS,
    ROOT,
    Spread,
    Timing,
    alternate,
    describe,
    fill_marks,
    machine_facts,
    short,
    submodule,
    table,
    use_one_thread,
    write_results,
)
from torch import Tensor, nn

from sde_diffusion.model import ScoreModel
from sde_diffusion.sampling import sample
from sde_diffusion.score import ScoreFn
from sde_diffusion.sde import VPSDE
from sde_diffusion.solvers import SOLVERS, EulerMaruyama, GridSolver, SeededNoise, Solver

BATCH = 64
SHAPES = ((BATCH, 2), (BATCH, 3, 8, 8))
ODE_STEP, SDE_STEP, EVALUATION, EPS_STEP = "ode step", "sde step", "ode evaluation", "eps-net step"
PACKAGES = ("numpy", "scipy", "torchdiffeq", "diffusers", "k-diffusion")
TOLERANCE = 1e-5


class Null:
    """A network that costs nothing: the same rows for every input. Counts its calls."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.calls = 0
        self.out = 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(0))

    def __call__(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        self.calls += 1
        return self.out[: len(x)]  # samples that an adaptive solver has finished with may have left

    def to(self, device: str) -> None:
        """Move what it is made of."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor | nn.Module):
                setattr(self, name, value.to(device))


class Tiny(Null):
    """A network that costs little: one hidden layer of 16 units over the flattened state, t added to each."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        dims = self.out[0].numel()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.enter, self.leave = nn.Linear(dims, 16), nn.Linear(16, dims)

    def __call__(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        self.calls += 1
        hidden = torch.nn.functional.silu(self.enter(x.flatten(1)) + t[:, None])
        return self.leave(hidden).reshape(x.shape)


NETWORKS: dict[str, type[Null]] = {"null": Null, "tiny": Tiny}


class AsModule(nn.Module):
    """A network as the `nn.Module` that model wrappers want."""

    def __init__(self, net: Null) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        return self.net(x, t, label)


@dataclass(frozen=True)
class Problem:
    """What everyone solves: a network on states of one shape, along so many steps."""

    net: Null
    shape: tuple[int, ...]
    steps: int
    sde: VPSDE = VPSDE()
    device: str = "cpu"

    def to_device(self) -> "Problem":
        """The same with its network on the device."""
        self.net.to(self.device)
        return self

    def wait(self) -> None:
        """Until all is computed."""
        if self.device == "cuda":
            torch.cuda.synchronize()


@dataclass(frozen=True)
class Case:
    """One competitor: `run` solves once and returns the number of units (steps or evaluations) it took."""

    family: str
    tool: str
    name: str
    run: Callable[[], int]

    @property
    def key(self) -> str:
        return f"{self.family}: {self.tool} {self.name}"


def our_cases(problem: Problem) -> Iterator[Case]:
    """Every row of `SOLVERS` at its defaults, `em` with eta = 0, and that one again through `ScoreModel`."""

    def case(family: str, name: str, solver: Solver, score_fn: ScoreFn) -> Case:
        def run() -> int:
            noise = SeededNoise(0, device=problem.device)
            done = sample(score_fn, problem.sde, solver, problem.shape, noise=noise, denoise=False)
            return solver.steps if isinstance(solver, GridSolver) else done.nfe

        return Case(family, "sde_diffusion", name, run)

    euler = EulerMaruyama(eta=0.0, steps=problem.steps)
    yield case(ODE_STEP, "em, eta=0", euler, problem.net)
    for name, kind in SOLVERS.items():
        if not issubclass(kind, GridSolver):
            if problem.device == "cpu" or name == "ode":
                yield case(EVALUATION, name, kind(), problem.net)
        else:
            solver = kind(steps=problem.steps)
            yield case(SDE_STEP if solver.stochastic else ODE_STEP, name, solver, problem.net)
    yield case(EPS_STEP, "em, eta=0, ScoreModel", euler, ScoreModel(AsModule(problem.net), problem.sde))


def bare_cases(problem: Problem) -> Iterator[Case]:
    """The update x ← a x + b s (+ c z) alone, by in-place arithmetic with known coefficients."""

    def run(noisy: bool) -> int:
        generator = torch.Generator(problem.device).manual_seed(0)
        x = torch.randn(problem.shape, generator=generator, device=problem.device)
        for i in range(problem.steps):
            t = torch.full((BATCH,), i / problem.steps, device=problem.device)
            x = (0.999 * x).add_(problem.net(x, t), alpha=0.001)
            if noisy:
                x.add_(torch.randn(problem.shape, generator=generator, device=problem.device), alpha=0.01)
        return problem.steps

    yield Case(ODE_STEP, "bare loop", "x ← a x + b s", lambda: run(False))
    yield Case(SDE_STEP, "bare loop", "x ← a x + b s + c z", lambda: run(True))


def diffusers_cases(problem: Problem) -> Iterator[Case]:
    """The schedulers' own loops as the pipelines write them, from the prior draw on."""
    diffusers = importlib.import_module("diffusers")

    def case(family: str, name: str, scheduler: Any) -> Case:
        def run() -> int:
            generator = torch.Generator().manual_seed(0)
            scheduler.set_timesteps(problem.steps)
            x = torch.randn(problem.shape, generator=generator) * scheduler.init_noise_sigma
            for t in scheduler.timesteps:
                eps = problem.net(scheduler.scale_model_input(x, t), t.expand(BATCH))
                x = scheduler.step(eps, t, x, generator=generator).prev_sample
            return len(scheduler.timesteps)

        return Case(family, "diffusers", name, run)

    for family in (ODE_STEP, EPS_STEP):  # its schedulers take ε: the step and the wrapper are one
        yield case(family, "DDIM", diffusers.DDIMScheduler(clip_sample=False))
        yield case(family, "EulerDiscrete", diffusers.EulerDiscreteScheduler())
    yield case(SDE_STEP, "DDPM", diffusers.DDPMScheduler(clip_sample=False))
    yield case(SDE_STEP, "EulerAncestralDiscrete", diffusers.EulerAncestralDiscreteScheduler())


def k_diffusion_cases(problem: Problem) -> Iterator[Case]:
    """`sample_euler` and `sample_euler_ancestral` on the VP noise levels, progress bar off."""
    sampling = submodule("k_diffusion", "sampling")
    external = submodule("k_diffusion", "external")
    alphas = problem.sde.mean_coef(torch.linspace(1e-3, 1, 1000)) ** 2
    wrapped = external.DiscreteEpsDDPMDenoiser(AsModule(problem.net), alphas, quantize=False)

    def case(family: str, name: str, solve: Callable[..., Tensor], model: Callable[..., Tensor]) -> Case:
        def run() -> int:
            sigmas = sampling.get_sigmas_vp(problem.steps)
            solve(model, torch.randn(problem.shape) * sigmas[0], sigmas, disable=True)
            return len(sigmas) - 1

        return Case(family, "k-diffusion", name, run)

    yield case(ODE_STEP, "sample_euler", sampling.sample_euler, problem.net)
    yield case(SDE_STEP, "sample_euler_ancestral", sampling.sample_euler_ancestral, problem.net)
    yield case(EPS_STEP, "sample_euler, DiscreteEps", sampling.sample_euler, wrapped)


def torchdiffeq_cases(problem: Problem) -> Iterator[Case]:
    """dopri5 as its README calls it, on a drift written by hand."""
    odeint = importlib.import_module("torchdiffeq").odeint
    rate = problem.sde.beta.rate

    def run() -> int:
        before = problem.net.calls
        x = torch.randn(problem.shape, generator=torch.Generator().manual_seed(0))
        times = torch.tensor([problem.sde.t_max, problem.sde.t_min])
        odeint(
            lambda t, y: -0.5 * rate(t) * (y + problem.net(y, t.expand(BATCH))),
            x,
            times,
            rtol=TOLERANCE,
            atol=TOLERANCE,
            method="dopri5",
        )
        return problem.net.calls - before

    yield Case(EVALUATION, "torchdiffeq", "dopri5", run)


def scipy_cases(problem: Problem) -> Iterator[Case]:
    """`solve_ivp` RK45 over the flattened batch in float64, the network in float32, as score_sde does it."""
    solve_ivp = importlib.import_module("scipy.integrate").solve_ivp
    rate = problem.sde.beta.rate

    def drift(t: float, flat: Any) -> Any:
        x = torch.from_numpy(flat).float().reshape(problem.shape)
        times = torch.full((BATCH,), t)
        beta = rate(times).reshape(-1, *(1,) * (x.ndim - 1))
        return (-0.5 * beta * (x + problem.net(x, times))).double().flatten().numpy()

    def run() -> int:
        x = torch.randn(problem.shape, generator=torch.Generator().manual_seed(0)).double().flatten().numpy()
        span = (problem.sde.t_max, problem.sde.t_min)
        return int(solve_ivp(drift, span, x, rtol=TOLERANCE, atol=TOLERANCE, method="RK45").nfev)

    yield Case(EVALUATION, "SciPy", "solve_ivp RK45", run)


TOOLS: dict[str, Callable[[Problem], Iterator[Case]]] = {
    "sde_diffusion": our_cases,
    "bare loop": bare_cases,
    "diffusers": diffusers_cases,
    "k-diffusion": k_diffusion_cases,
    "torchdiffeq": torchdiffeq_cases,
    "SciPy": scipy_cases,
}


def gather(problem: Problem, skipped: dict[str, str]) -> list[Case]:
    """The cases of all tools that can be imported; the others go into `skipped` with the reason."""
    cases: list[Case] = []
    for tool, build in TOOLS.items():
        if problem.device != "cpu" and tool not in ("sde_diffusion", "bare loop"):
            continue
        try:
            cases += build(problem)
        except ImportError as error:
            skipped[tool] = str(error)
    order = [ODE_STEP, SDE_STEP, EVALUATION, EPS_STEP]
    return sorted(cases, key=lambda case: order.index(case.family))


@dataclass(frozen=True)
class Overhead:
    """The result of one case: microseconds per unit, network subtracted, on the CPU and by the clock."""

    case: Case
    units: int
    calls: int
    cpu: Spread
    wall: Spread


def network_alone(problem: Problem, calls: int = 500) -> Callable[[], int]:
    """Calls the network alone, on an input like those it sees."""
    x, t = torch.randn(problem.shape, device=problem.device), torch.full((BATCH,), 0.5, device=problem.device)

    def run() -> int:
        for _ in range(calls):
            problem.net(x, t)
        problem.wait()
        return calls

    return run


def measure(problem: Problem, cases: list[Case], rounds: int) -> tuple[Spread, list[Overhead]]:
    """Microseconds of the network alone, and the overhead of each case."""

    def counted(case: Case) -> Callable[[], tuple[int, int]]:
        def run() -> tuple[int, int]:
            before = problem.net.calls
            units = case.run()
            problem.wait()
            return units, problem.net.calls - before

        return run

    runs: dict[str, Callable[[], Any]] = {"network": network_alone(problem)}
    timings = alternate(runs | {case.key: counted(case) for case in cases}, rounds)
    network = timings.pop("network")

    def overhead(case: Case) -> Overhead:
        own: list[Timing] = timings[case.key]
        units, calls = own[0].result
        wall = [(a.wall - calls * n.wall / n.result) / units for a, n in zip(own, network, strict=True)]
        cpu = [(a.cpu - calls * n.cpu / n.result) / units for a, n in zip(own, network, strict=True)]
        return Overhead(case, units, calls, _micro(cpu), _micro(wall))

    return _micro([n.cpu / n.result for n in network]), [overhead(case) for case in cases]


def _micro(seconds: list[float]) -> Spread:
    return Spread.of([1e6 * value for value in seconds])


def report(results: list[Overhead]) -> str:
    """The table of one problem; `× ours` is relative to our first row of the same kind."""
    ours = {r.case.family: r.cpu.median for r in reversed(results) if r.case.tool == "sde_diffusion"}
    rows = [
        [
            f"{r.case.family}: {r.case.tool} {r.case.name}",
            short(r.cpu.median),
            f"{short(r.cpu.low)} … {short(r.cpu.high)}",
            f"{r.cpu.median / ours[r.case.family]:.2f}",
            short(r.wall.median),
            str(r.units),
            str(r.calls),
        ]
        for r in results
    ]
    return table(["per", "µs", "quartiles", "× ours", "µs by the clock", "units", "network calls"], rows)


def page_table(results: dict[str, Any]) -> str:
    """Microseconds of every case with the null network, at both shapes."""
    problems = [problem for problem in results["problems"] if problem["network"] == "null"]
    keys = [(case["per"], case["tool"], case["name"]) for case in problems[0]["cases"]]
    found = [{(c["per"], c["tool"], c["name"]): c["cpu_us"]["median"] for c in p["cases"]} for p in problems]
    rows = [[per, f"{tool}: {name}", *(short(own[per, tool, name]) for own in found)] for per, tool, name in keys]
    shapes = ["×".join(map(str, problem["shape"])) for problem in problems]
    return table(["per", "solver", *(f"µs at {shape}" for shape in shapes)], rows)


def as_json(network: str, shape: tuple[int, ...], alone: Spread, results: list[Overhead]) -> dict[str, Any]:
    """One problem as JSON values, in microseconds."""
    return {
        "network": network,
        "shape": list(shape),
        "network_alone_us": alone.as_dict(),
        "cases": [
            {
                "per": r.case.family,
                "tool": r.case.tool,
                "name": r.case.name,
                "units": r.units,
                "network_calls": r.calls,
                "cpu_us": r.cpu.as_dict(),
                "wall_us": r.wall.as_dict(),
            }
            for r in results
        ],
    }


@torch.no_grad()
def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="5 rounds of 50 steps, to see that it works")
    parser.add_argument("--rounds", type=int, default=40, help="alternating rounds (default 40)")
    parser.add_argument("--steps", type=int, default=200, help="steps of a grid solver (default 200)")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--page", action="store_true", help="write docs/performance.md's table from the result file")
    parser.add_argument("--out", type=Path, default=RESULTS / "overhead.json", help="result file")
    options = parser.parse_args()
    if options.page:
        page = ROOT / "docs" / "performance.md"
        found = page_table(json.loads(options.out.read_text()))
        page.write_text(fill_marks(page.read_text(), "solvers", {"overhead": found}))
        return
    rounds, steps = (5, 50) if options.quick else (options.rounds, options.steps)

    use_one_thread()
    facts = machine_facts(PACKAGES)
    print(describe(facts))
    skipped: dict[str, str] = {}
    problems = []
    for shape in SHAPES:
        for name, kind in NETWORKS.items():
            problem = Problem(kind(shape), shape, steps, device=options.device).to_device()
            alone, results = measure(problem, gather(problem, skipped), rounds)
            print(f"\n{'×'.join(map(str, shape))}, {name} network of {short(alone.median)} µs, {rounds} rounds\n")
            print(report(results))
            problems.append(as_json(name, shape, alone, results))
    for tool, reason in skipped.items():
        print(f"\nskipped {tool}: {reason}")
    write_results(
        options.out, {"machine": facts, "rounds": rounds, "steps": steps, "skipped": skipped, "problems": problems}
    )


if __name__ == "__main__":
    main()
