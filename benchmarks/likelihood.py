"""Log-likelihoods at equal error: our integrator beside the field's usual way and torchdiffeq.

Contenders, each with the same random direction per image (one reverse-mode probe):

- `ours`: `log_likelihood` with the solver `ode`, every image in its own steps; drift and trace from one graph.
- `torchdiffeq`: the same with torchdiffeq's dopri5, whose steps the batch shares.
- `SciPy, one graph`: the same with SciPy's RK45 over the whole batch.
- `usual way`: Song et al. 2021 as it is commonly run: SciPy's RK45 over the whole batch as one vector, at rtol = atol =
  1e-5, drift and divergence each with an evaluation of its own.

An error is that of the integration, the root mean square over the images in bits/dim against a solve at a tight
tolerance with the same direction: of the kernel density in float64 (and there the exact trace at that tolerance is held
against the closed form of the density), of a network in its own float32. The cost at an error is read off the curve
over the tolerances, linear in the logarithms; the curve starts at 1e-1, so a contender that never errs as much has the
cost of its loosest run, marked ≤. `evaluations` count the network's calls, per image; `seconds` are this thread's on
the CPU.

Problems: a kernel density over the 8×8 digits (a mixture at 1500 training images, exact score) under three processes,
and with --checkpoint a trained model on images of its own test split.

    python benchmarks/likelihood.py [--quick] [--checkpoint RUN_OR_FILE]
"""

import argparse
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from adaptive_ode import BANDWIDTH, Counted, Curve, digits
from common import RESULTS, alternate, describe, machine_facts, short, table, use_one_thread, write_results
from scipy.integrate import solve_ivp
from torch import Tensor
from trained import trained_model

from sde_diffusion.data import sweep
from sde_diffusion.data.sources.digits import Digits
from sde_diffusion.likelihood import ExactTrace, Hutchinson, log_likelihood
from sde_diffusion.oracle import GaussianMixture
from sde_diffusion.score import ScoreFn
from sde_diffusion.sde import SDE, VESDE, VPSDE, SubVPSDE
from sde_diffusion.solvers import AdaptiveODE, PerSampleODE, ScipyODE, TorchdiffeqODE

SEED = 0
USUAL, USUAL_TOLERANCE = "usual way", 1e-5
TOLERANCES = tuple(10.0**-k for k in range(1, 8))
TARGETS = (1e-2, 1e-3)

Scorer = Callable[[ScoreFn, float], Tensor]
"""(score function, tolerance) -> log p of each image, (B,) nats."""


@dataclass(frozen=True)
class Problem:
    """Images under a score, and what the error is measured against."""

    name: str
    sde: SDE
    score_fn: ScoreFn
    x0: Tensor
    reference: AdaptiveODE
    tolerances: tuple[float, ...]

    def contenders(self) -> dict[str, Scorer]:
        """What is compared, by name."""
        found = {"ours": PerSampleODE(), "torchdiffeq": TorchdiffeqODE(), "SciPy, one graph": ScipyODE()}
        scorers: dict[str, Scorer] = {name: self._with(ode) for name, ode in found.items()}
        return scorers | {USUAL: lambda score_fn, tol: usual_way(score_fn, self.sde, self.x0, tol)}

    def exact(self) -> Tensor:
        """log p by the reference, (B,)."""
        return self._with(self.reference)(self.score_fn, self.reference.rtol)

    def bits(self, log_prob: Tensor) -> Tensor:
        """nats to bits per dimension."""
        return log_prob.double().cpu() / (self.x0[0].numel() * math.log(2))

    def _with(self, ode: AdaptiveODE) -> Scorer:
        def score(score_fn: ScoreFn, tol: float) -> Tensor:
            tuned = replace(ode, rtol=tol, atol=tol)
            return log_likelihood(score_fn, self.sde, self.x0, divergence=Hutchinson(), ode=tuned, seed=SEED).log_prob

        return score


def usual_way(score_fn: ScoreFn, sde: SDE, x0: Tensor, tol: float) -> Tensor:
    """log p as Song et al. 2021 (appendix D) compute it, with the directions of `Hutchinson` at `SEED`."""
    direction = _direction(x0)

    def drift(x: Tensor, t: Tensor) -> Tensor:
        f, g = sde.drift_coef(t), sde.diffusion(t)
        wide = (len(x), *(1,) * (x.ndim - 1))
        return f.reshape(wide) * x - 0.5 * g.reshape(wide) ** 2 * score_fn(x, t)

    def divergence(x: Tensor, t: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (grad,) = torch.autograd.grad((drift(x, t) * direction).sum(), x)
        return (grad * direction).flatten(1).sum(1)

    def rhs(t: float, state: Any) -> Any:
        x = torch.from_numpy(state[: x0.numel()]).to(x0).reshape(x0.shape)
        times = torch.full((len(x),), t).to(x0)
        with torch.no_grad():
            velocity = drift(x, times)
        return torch.cat([velocity.flatten(), divergence(x, times)]).double().cpu().numpy()

    start = torch.cat([x0.flatten(), x0.new_zeros(len(x0))]).double().cpu().numpy()
    end = solve_ivp(rhs, (sde.t_min, sde.t_max), start, method="RK45", rtol=tol, atol=tol).y[:, -1]
    z, delta = torch.from_numpy(end[: x0.numel()]).reshape(x0.shape), torch.from_numpy(end[x0.numel() :])
    return sde.prior_log_prob(z) + delta


def _direction(x0: Tensor) -> Tensor:
    """The Rademacher direction of each image that `Hutchinson` draws at `SEED`."""
    found: list[Tensor] = []

    def spy(x: Tensor, t: Tensor) -> Tensor:
        class Tap(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, x: Tensor) -> Tensor:
                return x.clone()

            @staticmethod
            def backward(ctx: Any, grad: Tensor) -> Tensor:
                found.append(grad)
                return grad

        return Tap.apply(x)

    Hutchinson().bind(x0, seed=SEED, start=0)(spy, x0, torch.ones(len(x0)).to(x0))
    return found[0]  # on the device of the images


def kernel_density(count: int) -> list[Problem]:
    """The kernel density over the digits under three processes; the reference is checked against the closed form."""
    images = torch.cat([batch.x for _, batch in sweep(Digits().load("train"), batch=500, seed=0)]).double()
    weights, stds = torch.ones(len(images)).double(), torch.full((len(images),), BANDWIDTH).double()
    x0, found = digits(count).double(), []
    for name, sde in {"VP": VPSDE(), "sub-VP": SubVPSDE(), "VE": VESDE()}.items():
        oracle = GaussianMixture(sde, weights, images, stds)
        reference = PerSampleODE(method="dop853", rtol=1e-9, atol=1e-9)
        check_closed_form(oracle, x0[:2], reference)
        found.append(Problem(f"kernel density, {name}", sde, oracle.score, x0, reference, TOLERANCES))
    return found


def check_closed_form(oracle: GaussianMixture, x0: Tensor, reference: AdaptiveODE) -> None:
    """The reference with the exact trace and the oracle's own end density is the density at t_min to 1e-6 bits/dim."""
    ends = [torch.tensor(t, dtype=torch.float64) for t in (oracle.sde.t_min, oracle.sde.t_max)]

    def closing(z: Tensor) -> Tensor:
        return oracle.log_prob(z, ends[1])

    found = log_likelihood(
        oracle.score, oracle.sde, x0, divergence=ExactTrace(), ode=reference, prior_log_prob=closing
    ).log_prob
    off = float((found - oracle.log_prob(x0, ends[0])).abs().max()) / (x0[0].numel() * math.log(2))
    assert off < 1e-6, f"the reference misses the closed form by {off:.1e} bits/dim"


def trained(path: Path, count: int, device: str = "cpu") -> Problem:
    """A trained model on images of its own test split, in float32 against its own tight solve."""
    own = trained_model(path, torch.device(device))
    (_, batch), *_ = sweep(own.config.data.load("test"), batch=count, seed=SEED, limit=count)
    reference = PerSampleODE(rtol=1e-6, atol=1e-6)
    return Problem(
        f"{own.spec.name}, trained U-Net", own.model.sde, own.model, batch.x.to(device), reference, TOLERANCES[:5]
    )


@dataclass
class Results:
    """Curves of one problem, and the usual way at its usual tolerance."""

    curves: dict[str, Curve] = field(default_factory=dict)

    @property
    def usual(self) -> tuple[float, float, float]:
        """Error, evaluations and seconds of the usual way at 1e-5."""
        curve = self.curves[USUAL]
        at = int(np.abs(np.log(np.array(curve.tolerances) / USUAL_TOLERANCE)).argmin())
        return curve.errors[at], curve.evaluations[at], curve.seconds[at]

    def cost(self, name: str, target: float, of: str) -> tuple[float, bool]:
        """Evaluations or seconds at an error, and whether the loosest run was already better."""
        curve = self.curves[name]
        values: list[float] = getattr(curve, of)
        if max(curve.errors) < target:
            return values[0], True
        return curve.cost_at(target, values), False


def measure(problem: Problem, tolerances: tuple[float, ...], rounds: int) -> Results:
    """All contenders at all tolerances."""
    exact = problem.bits(problem.exact())
    results = Results({name: Curve() for name in problem.contenders()})

    def once(scorer: Scorer, tol: float) -> Callable[[], tuple[Tensor, int]]:
        def run() -> tuple[Tensor, int]:
            counted = Counted(problem.score_fn)
            return problem.bits(scorer(counted, tol)), counted.images

        return run

    for tol in tolerances:
        runs = {name: once(scorer, tol) for name, scorer in problem.contenders().items()}
        for name, timings in alternate(runs, rounds, warm_up=0).items():
            values, images = timings[0].result
            errors, curve = (values - exact).abs(), results.curves[name]
            curve.tolerances.append(tol)
            curve.errors.append(float(errors.square().mean().sqrt()))
            curve.worst.append(float(errors.max()))
            curve.evaluations.append(images / len(exact))
            curve.seconds.append(float(np.median([timing.cpu for timing in timings])))
    return results


def report(results: Results) -> str:
    """Costs at the error of the usual way at 1e-5 and at the targets, and the ratio to the usual way."""
    error, evaluations, seconds = results.usual
    rows = []
    for name in results.curves:
        row = [name]
        for target in (error, *TARGETS):
            for of in ("evaluations", "seconds"):
                value, better = (
                    ((evaluations if of == "evaluations" else seconds), False)
                    if name == USUAL and target == error
                    else results.cost(name, target, of)
                )
                row.append(("≤ " if better else "") + short(value))
        row.append(short(results.cost(name, error, "seconds")[0] / seconds if name != USUAL else 1.0, 2))
        rows.append(row)
    heads = [f"{of} at {target:.1e}" for target in (error, *TARGETS) for of in ("eval.", "s")]
    return table(["contender", *heads, "time / usual way, equal error"], rows)


def as_json(results: Results) -> Mapping[str, Any]:
    """Curves and the ratios of the summary."""
    error, evaluations, seconds = results.usual
    return {
        "usual_way_at_1e-5": {"error": error, "evaluations": evaluations, "seconds": seconds},
        "seconds_over_usual_way_at_equal_error": {
            name: results.cost(name, error, "seconds")[0] / seconds for name in results.curves if name != USUAL
        },
        "curves": {name: vars(curve) for name, curve in results.curves.items()},
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="4 images, one process, two tolerances")
    parser.add_argument("--rounds", type=int, default=3, help="alternating rounds (default 3)")
    parser.add_argument("--batch", type=int, default=64, help="digits in the batch (default 64)")
    parser.add_argument("--checkpoint", type=Path, help="also a trained model: a run's folder or a checkpoint file")
    parser.add_argument("--images", type=int, default=16, help="images for the trained model (default 16)")
    parser.add_argument("--out", type=Path, default=RESULTS / "likelihood.json", help="result file")
    options = parser.parse_args()

    use_one_thread()
    facts = machine_facts(("numpy", "scipy", "torchdiffeq"))
    print(describe(facts))
    problems = kernel_density(4 if options.quick else options.batch)[: 1 if options.quick else None]
    if options.checkpoint:
        problems.append(trained(options.checkpoint, options.images))
    written = {}
    for problem in problems:
        tolerances, rounds = problem.tolerances, options.rounds
        if options.quick:
            tolerances, rounds = (1e-2, USUAL_TOLERANCE), 1
        found = measure(problem, tolerances, rounds)
        print(f"\n{problem.name}, {len(problem.x0)} images\n\n{report(found)}", flush=True)
        written[problem.name] = as_json(found) | {"images": len(problem.x0)}
    write_results(options.out, {"machine": facts, "rounds": options.rounds, "problems": written})


if __name__ == "__main__":
    main()
