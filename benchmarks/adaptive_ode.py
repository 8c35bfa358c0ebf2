"""Adaptive ODE solvers at equal error: evaluations and time of one's own steps against a step shared by the batch.

Each solver solves the same problem at tolerances from 1e-2 to 1e-7 (rtol = atol). Its error is measured against a solve
by torchdiffeq's dopri8 at 1e-10, at 1e-6 for a float32 model, and its cost at a given error is read off the curve,
linear in the logarithms. Costs:

- `evaluations`: images × score evaluations / images of the batch, with its vjp in a likelihood; images that have left
  the batch cost nothing.
- `seconds`: of this thread on the CPU, median over alternating rounds.

Errors are root mean squares over the batch, of each image's RMS state error when sampling and of log p in bits/dim in a
likelihood; `worst` is the largest of them.

Problems: the probability flow of a kernel density over the 8×8 digits (a mixture at 1500 training images, exact score),
from noise to images and, with one fixed random direction per image, as a likelihood of test images; and, with
--checkpoint, the same of a trained model.

    python benchmarks/adaptive_ode.py [--quick] [--checkpoint RUN]
"""

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, alternate, describe, machine_facts, short, table, use_one_thread, write_results
from torch import Tensor
from trained import trained_model

from sde_diffusion.data.loader import sweep
from sde_diffusion.data.sources.digits import Digits
from sde_diffusion.likelihood import Hutchinson, log_likelihood
from sde_diffusion.oracle import GaussianMixture
from sde_diffusion.rng import SampleStream
from sde_diffusion.score import ScoreFn
from sde_diffusion.sde import SDE, VESDE, VPSDE, SubVPSDE
from sde_diffusion.solvers import AdaptiveODE, PerSampleODE, ReverseProcess, ScipyODE, TorchdiffeqODE

BANDWIDTH = 0.1  # of the kernel density, in model coordinates
TOLERANCES = [10 ** (-k / 2) for k in range(4, 15)]


SOLVERS: dict[str, AdaptiveODE] = {
    "per sample, tsit5": PerSampleODE(),
    "per sample, tsit5, clock t": PerSampleODE(clock="t"),
    "per sample, dopri5": PerSampleODE(method="dopri5"),
    "per sample, dop853": PerSampleODE(method="dop853"),
    "shared, torchdiffeq dopri5, worst sample": TorchdiffeqODE(),
    "shared, torchdiffeq dopri8, worst sample": TorchdiffeqODE(method="dopri8"),
    "shared, SciPy RK45, batch mean": ScipyODE(),
    "shared, SciPy DOP853, batch mean": ScipyODE(method="DOP853"),
}
REFERENCE = TorchdiffeqODE(method="dopri8", rtol=1e-10, atol=1e-10)


@dataclass(eq=False)
class Counted:
    """A score function that counts the images it is asked about."""

    score_fn: ScoreFn
    images: int = 0

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.images += len(x)
        return self.score_fn(x, t)


@dataclass(frozen=True)
class Problem:
    """`run` solves with one solver and gives one row of numbers per image."""

    name: str
    targets: tuple[float, ...]
    batch: int
    run: Callable[[AdaptiveODE, ScoreFn], Tensor]
    score_fn: ScoreFn
    reference: AdaptiveODE = REFERENCE


@dataclass
class Curve:
    """Cost and error of one solver at each tolerance."""

    tolerances: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    worst: list[float] = field(default_factory=list)
    evaluations: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def cost_at(self, target: float, costs: list[float]) -> float:
        """The cost at which the error falls to `target`; NaN outside the range measured."""
        order = np.argsort(self.errors)
        errors = np.log(np.maximum(np.array(self.errors)[order], 1e-300))  # 0 for the reference itself
        values = np.log(np.array(costs)[order])
        return math.exp(np.interp(math.log(target), errors, values, left=math.nan, right=math.nan))


def digits(count: int) -> Tensor:
    """Dequantised test images in model coordinates, (count, 1, 8, 8) float32."""
    (_, batch), *_ = sweep(Digits().load("test"), batch=count, seed=0, limit=count)
    return batch.x


def noise(sde: SDE, count: int) -> Tensor:
    """Draws of the prior, (count, 1, 8, 8) float32."""
    return sde.prior_std * SampleStream(7, start=0, count=count).normal((1, 8, 8))


def problems_of(name: str, score_fn: ScoreFn, sde: SDE, count: int, dtype: torch.dtype, **fields: Any) -> list[Problem]:
    """Sampling and likelihood under one score."""
    x0, z, dims = digits(count).to(dtype), noise(sde, count).to(dtype), 64

    def sampled(solver: AdaptiveODE, score_fn: ScoreFn) -> Tensor:
        return solver.solve(ReverseProcess(sde, score_fn), z, sde.t_max, sde.t_min).flatten(1)

    def scored(solver: AdaptiveODE, score_fn: ScoreFn) -> Tensor:
        result = log_likelihood(score_fn, sde, x0, divergence=Hutchinson(), ode=solver)
        return result.per_probe / (dims * math.log(2))

    return [
        Problem(f"{name}, sampling", (1e-2, 1e-3, 1e-4), count, sampled, score_fn, **fields),
        Problem(f"{name}, likelihood", (1e-2, 1e-3, 1e-4), count, scored, score_fn, **fields),
    ]


def oracle_problems(count: int) -> list[Problem]:
    """The kernel density over the digits under three processes."""
    images = torch.cat([batch.x for _, batch in sweep(Digits().load("train"), batch=500, seed=0)]).double()
    found = []
    for name, sde in {"VP": VPSDE(), "sub-VP": SubVPSDE(), "VE": VESDE()}.items():
        weights, stds = torch.ones(len(images)).double(), torch.full((len(images),), BANDWIDTH).double()
        oracle = GaussianMixture(sde, weights, images, stds)
        found += problems_of(f"kernel density, {name}", oracle.score, sde, count, torch.float64)
    return found


def trained_problems(path: Path, count: int) -> list[Problem]:
    """The model of a checkpoint of 8×8 digits, in float32 against a reference in the same precision."""
    trained = trained_model(path, torch.device("cpu"))
    reference = replace(REFERENCE, rtol=1e-6, atol=1e-6)  # in float32 a tighter one only follows the rounding
    return problems_of(path.name, trained.model, trained.model.sde, count, torch.float32, reference=reference)


def measure(problem: Problem, tolerances: list[float], rounds: int) -> dict[str, Curve]:
    """All solvers at all tolerances."""
    exact = problem.run(problem.reference, problem.score_fn)

    def once(solver: AdaptiveODE) -> Callable[[], tuple[Tensor, int]]:
        def run() -> tuple[Tensor, int]:
            counted = Counted(problem.score_fn)
            return problem.run(solver, counted), counted.images

        return run

    curves = {name: Curve() for name in SOLVERS}
    for tolerance in tolerances:
        runs = {name: once(replace(solver, rtol=tolerance, atol=tolerance)) for name, solver in SOLVERS.items()}
        for name, timings in alternate(runs, rounds, warm_up=0).items():
            result, images = timings[0].result
            errors = (result - exact).square().mean(1).sqrt()
            curve = curves[name]
            curve.tolerances.append(tolerance)
            curve.errors.append(float(errors.square().mean().sqrt()))
            curve.worst.append(float(errors.max()))
            curve.evaluations.append(images / problem.batch)
            curve.seconds.append(float(np.median([timing.cpu for timing in timings])))
    return curves


def report(problem: Problem, curves: dict[str, Curve]) -> str:
    """Cost at each target error, and what rtol = atol = 1e-5 gives."""
    rows = []
    for name, curve in curves.items():
        row = [name]
        for target in problem.targets:
            row += [short(curve.cost_at(target, curve.evaluations)), short(curve.cost_at(target, curve.seconds))]
        at = int(np.abs(np.log(np.array(curve.tolerances) / 1e-5)).argmin())
        row += [short(curve.evaluations[at]), f"{curve.errors[at]:.1e}", f"{curve.worst[at]:.1e}"]
        rows.append(row)
    heads = [head for target in problem.targets for head in (f"eval. at {target:g}", "s")]
    return table(["solver", *heads, "eval. at tol 1e-5", "error", "worst"], rows)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="16 images, one round, five tolerances")
    parser.add_argument("--rounds", type=int, default=5, help="alternating rounds (default 5)")
    parser.add_argument("--batch", type=int, default=64, help="images in the batch (default 64)")
    parser.add_argument("--checkpoint", type=Path, help="also a trained model of the 8×8 digits: a checkpoint file")
    parser.add_argument("--only", default="", help="only problems whose name has this in it")
    parser.add_argument("--out", type=Path, default=RESULTS / "adaptive_ode.json", help="result file")
    options = parser.parse_args()
    rounds, count = (2, 16) if options.quick else (options.rounds, options.batch)
    tolerances = TOLERANCES[::2] if options.quick else TOLERANCES

    use_one_thread()
    facts = machine_facts(("numpy", "scipy", "torchdiffeq"))
    print(describe(facts))
    problems = oracle_problems(count)
    if options.checkpoint:
        problems += trained_problems(options.checkpoint, count)
    results = {}
    for problem in (problem for problem in problems if options.only in problem.name):
        curves = measure(problem, tolerances, rounds)
        print(f"\n{problem.name}, batch {problem.batch}, {rounds} rounds\n\n{report(problem, curves)}", flush=True)
        results[problem.name] = {name: vars(curve) for name, curve in curves.items()}
    write_results(options.out, {"machine": facts, "rounds": rounds, "batch": count, "problems": results})


if __name__ == "__main__":
    main()
