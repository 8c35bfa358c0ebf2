"""Error against score evaluations: every solver here beside the same method in diffusers and k-diffusion.

Scores are exact, in float64: of a mixture of five Gaussians in 2 and in 64 dimensions, and of a kernel density over the
8×8 digits (a mixture at 1500 training images). A run goes from t = 1 to the time at which σ/a is as at t = 1e-3 of VP,
the lowest level of the peers' discrete chain; the final denoising is left out. Parts:

- `deterministic`: RMS distance, per coordinate, from the exact flow of the same start (dop853 at 1e-10): each solver
  on each grid for VP, sub-VP and VE; adaptive ones at a ladder of tolerances.
- `pairs`: a peer's method and ours with the same options, at the same times and from the same start, on our grids and
  on the peer's own, and the ratio of their errors. VP, for which the peers are written.
- `stochastic`: sliced Wasserstein distance from exact samples, and its floor, that of two exact sets. Peers get the
  same noise.
- `chain`: what becomes of diffusers' DDIM where its steps do not fit its chain.

    python benchmarks/solvers.py [--quick] [--only PART]
"""

import argparse
import itertools
import json
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, describe, machine_facts, table, use_one_thread, write_results
from solver_peers import TRAINING_TIMES, Flow, Peer, gather
from torch import Tensor

from sde_diffusion.data.loader import sweep
from sde_diffusion.data.sources.digits import Digits
from sde_diffusion.grids import GRIDS, TimeGrid
from sde_diffusion.oracle import GaussianMixture
from sde_diffusion.rng import generator
from sde_diffusion.sde import SDE, VESDE, VPSDE, SubVPSDE
from sde_diffusion.solvers import (
    DDIM,
    DEIS,
    SOLVERS,
    AdaptiveODE,
    AdaptiveSDE,
    Ancestral,
    AnnealedLangevin,
    DPMpp2M,
    DPMpp3M,
    DPMppSDE2M,
    EulerMaruyama,
    GridSolver,
    Heun,
    PerSampleODE,
    PredictorCorrector,
    ReverseDiffusion,
    ReverseProcess,
    SeededNoise,
    Solver,
    UniPC,
)

NFES = (5, 6, 8, 10, 12, 15, 20, 25, 35, 50, 75, 100)
OTHERS = (5, 10, 20, 50, 100)  # for sub-VP and VE, and for distributions
SHARED_GRIDS = ("uniform", "log_snr", "karras")  # for pairs and distributions
TOLERANCES = [10 ** (-k / 2) for k in range(1, 13)]
PROCESSES: dict[str, SDE] = {"VP": VPSDE(), "sub-VP": SubVPSDE(), "VE": VESDE()}
BANDWIDTH = 0.1  # of the kernel density, in model coordinates
DETERMINISTIC: list[GridSolver] = [
    EulerMaruyama(eta=0.0),
    ReverseDiffusion(eta=0.0),
    DDIM(),
    Heun(),
    DPMpp2M(),
    DPMpp3M(),
    DPMpp3M(rule="midpoint"),
    UniPC(),
    UniPC(lower_final="always"),
    UniPC(p=3, lower_final="always"),
    DEIS(points=2),
    DEIS(),
]
STOCHASTIC: list[GridSolver] = [
    EulerMaruyama(),
    Ancestral(),
    ReverseDiffusion(),
    PredictorCorrector(corrector=AnnealedLangevin()),
    Heun(s_churn=10.0),
    DPMppSDE2M(),
    DPMppSDE2M(eta=0.5),
]


@dataclass(frozen=True)
class Listed(TimeGrid):
    """Times that are given."""

    times: tuple[float, ...] = ()

    def spread(self, sde: SDE, u: Tensor, t_from: float, t_to: float) -> Tensor:
        return torch.tensor(self.times, dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class Problem:
    """An exact score, a start at t_max and, for deterministic solvers, where its flow ends.

    Attributes:
        target: Name of the data.
        process: Name of the process.
    """

    target: str
    process: str
    oracle: GaussianMixture
    start: Tensor
    t_end: float

    @property
    def sde(self) -> SDE:
        return self.oracle.sde

    def score(self, x: Tensor, t: Tensor) -> Tensor:
        """The exact score at a time that all of x share."""
        return self.oracle.score(x, t if t.ndim == 0 else t[:1])

    def solve(self, solver: Solver, times: Tensor | None = None) -> tuple[Tensor, int]:
        """The end of a run, along `times` if given, and its score evaluations."""
        if times is not None:
            assert isinstance(solver, GridSolver)
            solver = replace(solver, steps=len(times) - 1, grid=Listed(tuple(times.tolist())))
        score_fn = self.score if isinstance(solver, GridSolver) else self.oracle.score
        process = ReverseProcess(self.sde, score_fn, noise=SeededNoise(3, dtype=torch.float64))
        start = self.sde.t_max if times is None else float(times[0])
        return solver.solve(process, self.start, start, self.t_end), process.nfe


def lowest(sde: SDE) -> float:
    """The time at which σ/a is as at t = 1e-3 of VP."""
    return float(sde.time_at(VPSDE().half_log_snr(torch.tensor(1e-3, dtype=torch.float64))))


def digits() -> Tensor:
    """The 1500 training images in model coordinates, (1500, 64) float64."""
    return torch.cat([batch.x for _, batch in sweep(Digits().load("train"), batch=500, seed=0)]).double().flatten(1)


def oracles(sde: SDE) -> Iterator[tuple[str, GaussianMixture]]:
    """The targets under a process."""
    for dims in (2, 64):
        means = torch.randn(5, dims, generator=generator(1, dims), dtype=torch.float64)
        yield f"mixture, {dims}-D", GaussianMixture(sde, torch.ones(5), means, torch.full((5,), 0.1))
    images = digits()
    yield "digits, 64-D", GaussianMixture(sde, torch.ones(len(images)), images, torch.full((len(images),), BANDWIDTH))


def problems(process: str, count: int, *, targets: int = 3) -> Iterator[Problem]:
    """The first targets under a process; half the samples for the digits, whose score costs most."""
    sde = PROCESSES[process]
    for target, oracle in itertools.islice(oracles(sde), targets):
        rows = count // 2 if len(oracle.means) > 5 else count
        z = torch.randn(rows, *oracle.means.shape[1:], generator=generator(2), dtype=torch.float64)
        yield Problem(target, process, oracle, sde.prior_std * z, lowest(sde))


def label(solver: Solver) -> str:
    """Its name in `SOLVERS` and the options that are not at their defaults, but for steps and grid."""
    name = next(name for name, kind in SOLVERS.items() if type(solver) is kind)
    default = type(solver)()
    shown = [
        f"{field.name}={type(value).__name__ if not isinstance(value, str | int | float) else value}"
        for field in fields(solver)
        if field.name not in ("steps", "grid", "rtol", "atol")
        and field.default is not MISSING
        and (value := getattr(solver, field.name)) != getattr(default, field.name)
    ]
    return ", ".join([name, *shown])


def rms(x: Tensor, exact: Tensor) -> float:
    """√ mean (x − exact)² over samples and coordinates."""
    return float((x - exact).square().mean().sqrt())


def curve(values: Sequence[tuple[int, float]], **names: str) -> dict[str, Any]:
    """A curve as JSON values; four digits tell enough."""
    return {**names, "nfe": [n for n, _ in values], "error": [rounded(error) for _, error in values]}


def rounded(value: float) -> float | None:
    """Four significant digits; None for what is not finite."""
    return float(f"{value:.4g}") if math.isfinite(value) else None


def exact_flow(problem: Problem) -> Tensor:
    """The end of the flow, to ten digits."""
    return problem.solve(PerSampleODE(method="dop853", rtol=1e-10, atol=1e-10))[0]


def measure_deterministic(problem: Problem, exact: Tensor, nfes: Sequence[int]) -> list[dict[str, Any]]:
    """Every solver on every grid, and adaptive ones at every tolerance."""
    found = []
    names = {"target": problem.target, "process": problem.process}
    grids = {name: grid for name, grid in GRIDS.items() if name != "levels" or problem.sde.levels}
    for solver, (name, grid) in itertools.product(DETERMINISTIC, grids.items()):
        points = []
        for nfe in (n for n in nfes if n % solver.evaluations == 0):
            whole = replace(solver, steps=nfe // solver.evaluations, grid=grid())
            x, spent = problem.solve(whole)
            points.append((spent, rms(x, exact)))
        found.append(curve(points, **names, method=label(solver), grid=name))
    for kind in SOLVERS.values():
        if issubclass(kind, AdaptiveODE):
            runs = [
                problem.solve(kind(rtol=tolerance, atol=tolerance)) for tolerance in TOLERANCES[:: 1 + len(nfes) % 2]
            ]
            points = [(spent, rms(x, exact)) for x, spent in runs]
            found.append(curve(points, **names, method=label(kind()), grid="adaptive"))
    return found


def measure_pairs(problem: Problem, exact: Tensor, peers: list[Peer], nfes: Sequence[int]) -> list[dict[str, Any]]:
    """Each peer and our solver at the same times."""
    flow, found, known = Flow(problem.sde, problem.score), [], {}
    for peer in (peer for peer in peers if not peer.ours.stochastic):
        grids = {name: GRIDS[name]() for name in SHARED_GRIDS} if peer.any_grid else {}
        for name in (*grids, *(f"own: {name}" for name in peer.own)):
            points: list[tuple[int, float, float]] = []
            for steps in (n // peer.ours.evaluations for n in nfes if n % peer.ours.evaluations == 0):
                if name in grids:
                    times = grids[name](problem.sde, problem.sde.t_max, problem.t_end, steps)
                else:
                    times = peer.own[name.removeprefix("own: ")](problem.sde, steps)
                theirs = peer.run(flow, problem.start, times, SeededNoise(3, dtype=torch.float64))
                key = (peer.ours, tuple(times.tolist()))
                if key not in known:
                    known[key] = problem.solve(peer.ours, times)
                x, spent = known[key]
                points.append((spent, rms(x, exact), rms(theirs, exact)))
            names = {"target": problem.target, "peer": peer.label, "ours": label(peer.ours), "grid": name}
            found.append(
                curve([(n, error) for n, error, _ in points], **names)
                | {"peer_error": [rounded(error) for *_, error in points], "same": peer.same}
            )
    return found


def profiles(x: Tensor) -> Tensor:
    """The sorted projections of a set (B, D) on 256 fixed directions, (B, 256)."""
    directions = torch.randn(x.shape[1], 256, generator=generator(4), dtype=x.dtype)
    return (x @ (directions / directions.norm(dim=0))).sort(0).values


def distance(profile: Tensor, others: Sequence[Tensor]) -> float:
    """Sliced Wasserstein-2 distance from sets of equal size, root mean square over these."""
    return math.sqrt(sum(float((profile - other).square().mean()) for other in others) / len(others))


def measure_stochastic(problem: Problem, peers: list[Peer], nfes: Sequence[int]) -> dict[str, Any]:
    """The distance of every stochastic solver from exact samples, beside those of the peers at the same noise."""
    count, t = len(problem.start), torch.tensor(problem.t_end, dtype=torch.float64)
    sets = [profiles(problem.oracle.sample(count, t, generator=generator(5, i))) for i in range(8)]
    floor = [distance(one, [other for other in sets if other is not one]) for one in sets]

    def off(x: Tensor) -> float:
        return distance(profiles(x), sets)

    flow, curves = Flow(problem.sde, problem.score), []
    names = {"target": problem.target, "process": problem.process}
    for solver, grid_name in itertools.product(STOCHASTIC, SHARED_GRIDS):
        points = []
        for nfe in (n for n in nfes if n % solver.evaluations == 0):
            x, spent = problem.solve(replace(solver, steps=nfe // solver.evaluations, grid=GRIDS[grid_name]()))
            points.append((spent, off(x)))
        curves.append(curve(points, **names, method=label(solver), grid=grid_name))
    ladder = [AdaptiveSDE(rtol=tolerance, atol=tolerance) for tolerance in (0.3, 0.1, 0.03, 0.01)]
    runs = [problem.solve(solver) for solver in ladder]
    curves.append(curve([(n, off(x)) for x, n in runs], **names, method="adaptive_sde", grid="adaptive"))
    for peer in (peer for peer in peers if peer.ours.stochastic):
        grids = {f"own: {name}": own for name, own in peer.own.items()}
        if peer.any_grid:
            grids["log_snr"] = lambda sde, n: GRIDS["log_snr"]()(sde, sde.t_max, problem.t_end, n)
        for grid_name, make in grids.items():
            points = []
            for nfe in nfes:
                times = make(problem.sde, nfe)
                theirs = peer.run(flow, problem.start, times, SeededNoise(3, dtype=torch.float64))
                x, spent = problem.solve(peer.ours, times)
                points.append((spent, off(x), off(theirs)))
            curves.append(
                curve([(n, error) for n, error, _ in points], **names, method=label(peer.ours), grid=grid_name)
                | {"peer": peer.label, "peer_error": [rounded(e) for *_, e in points], "same": peer.same}
            )
    return {**names, "count": count, "floor": [rounded(min(floor)), rounded(max(floor))], "curves": curves}


def comparable(pair: dict[str, Any]) -> list[tuple[int, float | None, float | None]]:
    """(nfe, ours, theirs) where both take one grid: steps of DDIM's chain are 1000 // n, which must be 1000 / n."""
    rows = zip(pair["nfe"], pair["error"], pair["peer_error"], strict=True)
    return [row for row in rows if pair["grid"] != "own: trailing" or TRAINING_TIMES % row[0] == 0]


def ratios(pairs: list[dict[str, Any]]) -> str:
    """Ours over the peer's error: the largest over targets and grids, at each number of evaluations."""
    rows = []
    for peer in dict.fromkeys(pair["peer"] for pair in pairs if pair["same"]):
        own = [pair for pair in pairs if pair["peer"] == peer]
        worst: dict[int, float] = {}
        for pair in own:
            for nfe, ours, theirs in comparable(pair):
                if ours is not None and theirs is not None:
                    nominal = min(n for n in NFES if n >= nfe)  # a grid of the peer's own may have a step less
                    worst[nominal] = max(worst.get(nominal, 0.0), ours / theirs)
        rows.append([peer, own[0]["ours"], *(f"{worst[n]:.3f}" if n in worst else "" for n in NFES)])
    return table(["peer", "ours", *map(str, NFES)], rows)


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    count: int = 64
    nfes: tuple[int, ...] = NFES
    others: tuple[int, ...] = OTHERS
    targets: int = 3
    processes: tuple[str, ...] = tuple(PROCESSES)


def run_deterministic(scale: Scale, peers: list[Peer]) -> dict[str, Any]:
    """The parts `deterministic` and `pairs`, which share exact flows."""
    alone, pairs = [], []
    for process in scale.processes:
        for problem in problems(process, scale.count, targets=scale.targets):
            exact = exact_flow(problem)
            alone += measure_deterministic(problem, exact, scale.nfes if process == "VP" else scale.others)
            if process == "VP":
                pairs += measure_pairs(problem, exact, peers, scale.nfes)
            print(f"{process}, {problem.target}", flush=True)
    return {"deterministic": alone, "pairs": pairs}


def run_stochastic(scale: Scale, peers: list[Peer]) -> dict[str, Any]:
    """The part `stochastic`."""
    found = []
    for number, factor in ((1, 64), (3, 8)):  # the plane, and the digits, whose score costs a thousand times more
        *_, problem = problems("VP", factor * scale.count, targets=number)
        if number <= scale.targets:
            found.append(measure_stochastic(problem, peers, scale.others))
            print(f"stochastic, {problem.target}", flush=True)
    return {"stochastic": found}


def run_chain(scale: Scale, peers: list[Peer]) -> dict[str, Any]:
    """The part `chain`: the median sample's error of DDIM on a chain that its steps do not fit, and ours."""
    *_, problem = problems("VP", scale.count, targets=2)
    exact, flow, found = exact_flow(problem), Flow(problem.sde, problem.score), []
    for peer in (peer for peer in peers if not peer.any_grid and not peer.ours.stochastic):
        for steps in (35, 75, 100, 150, 300, 600)[: len(scale.nfes)]:
            times = next(iter(peer.own.values()))(problem.sde, steps)
            theirs = peer.run(flow, problem.start, times, SeededNoise(3))
            ends = (problem.solve(peer.ours, times)[0], theirs)
            ours, other = (float((x - exact).square().mean(1).sqrt().median()) for x in ends)
            found.append({"peer": peer.label, "steps": steps, "error": rounded(ours), "peer_error": rounded(other)})
    return {"chain": found}


PARTS = {"deterministic": run_deterministic, "stochastic": run_stochastic, "chain": run_chain}


@torch.no_grad()
def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="8 samples, one target and two budgets, to see that it works"
    )
    parser.add_argument("--batch", type=int, default=64, help="samples (default 64)")
    parser.add_argument("--out", type=Path, default=RESULTS / "solvers.json", help="result file")
    parser.add_argument("--only", choices=PARTS, help="measure this part and keep the rest of the result file")
    options = parser.parse_args()
    scale = Scale(8, (5, 10), (10,), 1, ("VP",)) if options.quick else Scale(options.batch)
    warnings.filterwarnings("ignore", module="diffusers")
    use_one_thread()
    facts = machine_facts(("diffusers", "k-diffusion", "torchdiffeq", "scipy"))
    print(describe(facts))
    peers, skipped = gather()
    for tool, reason in skipped.items():
        print(f"skipped {tool}: {reason}")
    result = json.loads(options.out.read_text()) if options.only else {}
    machines = result.get("machines", {})
    for part in [options.only] if options.only else PARTS:
        result |= PARTS[part](scale, peers)
        machines[part] = facts
    print(f"\nours / peer, worst of targets and grids\n\n{ratios(result['pairs'])}")
    write_results(options.out, result | {"machines": machines, "batch": scale.count, "skipped": skipped})


if __name__ == "__main__":
    main()
