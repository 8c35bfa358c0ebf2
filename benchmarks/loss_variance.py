"""How much the training loss varies by its random times: every time sampler, for every weighting and process.

All samplers estimate the same integral, so the one of less variance needs fewer draws for the same error:

- `per sample` is Var[ℓ] of one draw ℓ = λ/(σ² r) · mean_D (σ s_θ + ε)². It sees the density r, not stratification.
- `per batch` is B · Var[mean of a batch of B], equal to `per sample` for independent draws. It sees both, and is what
  training feels.
- `worth` is how many draws of the registry's first sampler replace one draw of this one: the ratio of their variances
  per batch.

A sampler that learns from the losses is measured after it has: it has then seen 100 losses of each of its levels.
Samplers on the levels of a chain estimate a mean over the levels in place of the integral, and are held to each other.
The log-normal times of EDM go with EDM's weight alone: under another some draws are rare and heavy beyond measure. A
weighting that is learned is at its start its base, and left out.

The score is wrong on purpose, as every trained one is: the exact score of a mixture whose means, widths and weights are
off. With --checkpoint it is also a trained model, on its own test data and process. Samplers, weightings and processes
are read from their registries.

With λ/σ² ~ 1/t the variance of uniform times comes from the few draws in 100,000 next to t_min, and plain sampling
misjudges it by factors. So the uniform numbers u behind the times are drawn in turn from narrow cells of [0, 1), finer
towards 0, and every cell counts with its width: first and second moments at each position in the batch are then right
to a percent or so. Errors are standard errors over independent repetitions.

A quadrature over cells of t, which uses no sampler and no density, gives the integral once more. The script exits with
1 if two samplers, or one and the quadrature, are more than 4 standard errors apart.

    python benchmarks/loss_variance.py [--quick] [--weighting NAME]... [--checkpoint FILE]
"""

import argparse
import hashlib
import itertools
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from common import RESULTS, describe, machine_facts, short, table, use_one_thread, write_results
from torch import Generator, Tensor

from sde_diffusion.config.build import load_trained, read_config
from sde_diffusion.losses import (
    TIME_SAMPLERS,
    WEIGHTINGS,
    EDMWeighting,
    LogNormalTime,
    TimeSampler,
    Weighting,
    denoising_error,
    dsm_loss,
)
from sde_diffusion.losses.time_sampling import stratify
from sde_diffusion.oracle import GaussianMixture
from sde_diffusion.rng import generator
from sde_diffusion.score import ScoreFn
from sde_diffusion.sde import SDE, SDES
from sde_diffusion.training import load_checkpoint

LIMIT = 4.0  # standard errors

Draw = Callable[[int, Generator], tuple[ScoreFn, Tensor]]
"""(count, generator) -> a score function and clean data (count, *D) for it."""


@dataclass(frozen=True, eq=False)
class Problem:
    """A process, data and a score that is not quite theirs.

    Attributes:
        name: Short, for the table.
        facts: What identifies data and score.
        repeats: Independent repetitions of the measurement, at least 2.
    """

    name: str
    sde: SDE
    draw: Draw
    facts: dict[str, Any]
    repeats: int


class Estimate(NamedTuple):
    """A number and its standard error."""

    value: float
    error: float

    @classmethod
    def mean(cls, values: Tensor) -> "Estimate":
        """Of independent values (n,)."""
        return cls(float(values.mean()), float(values.std()) / math.sqrt(len(values)))

    def away(self, other: "Estimate") -> float:
        """Distance in standard errors."""
        return abs(self.value - other.value) / math.hypot(self.error, other.error)

    def __str__(self) -> str:
        return f"{short(self.value, 4)} ± {short(self.error, 2)}"


def cells(low: float, high: float, count: int, finest: float) -> tuple[Tensor, Tensor]:
    """Lower ends and widths (count,) of cells from `low` to `high`: half even, half even in the logarithm."""
    even = torch.linspace(low, high, count // 2 + 1, dtype=torch.float64)
    first = low or finest
    logarithmic = torch.logspace(math.log10(first), math.log10(high), count - count // 2 + 1, dtype=torch.float64)
    edges = torch.cat([even, logarithmic[1 if low else 0 : -1]]).sort().values
    return edges[:-1], edges.diff()


CELL_LOW, CELL_WIDTH = cells(0.0, 1.0, 64, finest=1e-7)


@dataclass(frozen=True)
class InCells(TimeSampler):
    """One batch of `inner` for each cell, all of its uniform numbers from that cell."""

    inner: TimeSampler
    batch: int

    def draw(self, sde: SDE, weighting: Weighting, u: Tensor) -> tuple[Tensor, Tensor]:
        moved = CELL_LOW[:, None] + CELL_WIDTH[:, None] * u.reshape(-1, self.batch)
        if self.inner.in_strata:
            moved = torch.stack([stratify(row, 0, self.batch) for row in moved])
        times, densities = zip(*(self.inner.draw(sde, weighting, row) for row in moved), strict=True)
        return torch.cat(times), torch.cat(densities)


def positions_are_independent(sampler: TimeSampler, sde: SDE, weighting: Weighting) -> bool:
    """Whether a draw depends on its own uniform number alone, so that variances over the batch add up."""
    u = torch.rand(8, generator=generator(0), dtype=torch.float64)
    changed = torch.cat([u[:4], 1 - u[4:]])
    return torch.equal(sampler.draw(sde, weighting, u)[0][:4], sampler.draw(sde, weighting, changed)[0][:4])


def pairs(weighting: Weighting, sde: SDE) -> dict[str, TimeSampler]:
    """The samplers that are measured with a weighting on a process."""
    return {
        name: kind()
        for name, kind in TIME_SAMPLERS.items()
        if (sde.levels or not kind().on_levels(sde))
        and (isinstance(weighting, EDMWeighting) or kind is not LogNormalTime)
    }


def taught(problem: Problem, weighting: Weighting, sampler: TimeSampler, random: Generator) -> TimeSampler:
    """The sampler with what it learns of the problem's losses."""
    state = sampler.initial_state(problem.sde)
    for _ in range(0 if state is None else 10):
        score_fn, x0 = problem.draw(10 * len(state), random)
        how = {"weighting": weighting, "time_sampler": sampler, "generator": random}
        terms = dsm_loss(score_fn, problem.sde, x0, **how)
        state = sampler.updated(problem.sde, state, terms.t, loss=terms.loss * terms.density)
    return sampler.at(state)


@dataclass(frozen=True)
class Row:
    """One sampler on one problem.

    Attributes:
        integral: The loss.
        per_sample, per_batch: See the module; the latter is NaN if the draws of a batch depend on each other.
        levels: Whether the integral is a mean over the levels of a chain.
    """

    sampler: str
    integral: Estimate
    per_sample: Estimate
    per_batch: Estimate
    levels: bool


@dataclass(frozen=True)
class Comparison:
    """All samplers on one problem with one weighting."""

    problem: Problem
    weighting: str
    quadrature: Estimate
    rows: list[Row]

    def worth(self, row: Row) -> float:
        """Draws of the first sampler that replace one of this."""
        return self.rows[0].per_batch.value / row.per_batch.value

    def disagreements(self) -> list[str]:
        """Pairs of estimates of the integral that are too far apart."""
        named = [("quadrature", self.quadrature, False)]
        named += [(row.sampler, row.integral, row.levels) for row in self.rows]
        return [
            f"{self.problem.name}, {self.weighting}: {a} {x} and {b} {y} are {x.away(y):.1f} standard errors apart"
            for (a, x, of_levels), (b, y, too) in itertools.combinations(named, 2)
            if of_levels == too and not x.away(y) <= LIMIT
        ]


def oracle_problems(repeats: int) -> Iterator[Problem]:
    """Every process at its defaults, with a mixture of five Gaussians in 16 dimensions and a score that is off."""
    random = generator(0)
    count, shape, shift, widen = 5, (1, 4, 4), 0.1, 1.25
    means = 1.6 * torch.rand(count, *shape, generator=random) - 0.8
    stds = 0.1 + 0.2 * torch.rand(count, generator=random)
    weights = 0.5 + torch.rand(count, generator=random)
    wrong_means = means + shift * torch.randn(means.shape, generator=random)
    facts = {"components": count, "shape": list(shape), "means_shifted_by": shift, "stds_times": widen}
    for name, kind in SDES.items():
        sde = kind()
        truth = GaussianMixture(sde, weights, means, stds)
        wrong = GaussianMixture(sde, torch.ones(count), wrong_means, widen * stds)

        def draw(
            count: int, random: Generator, truth: GaussianMixture = truth, wrong: GaussianMixture = wrong
        ) -> tuple[ScoreFn, Tensor]:
            return wrong.score, truth.sample(count, generator=random)

        yield Problem(name, sde, draw, {"score": "mixture", **facts}, repeats)


def checkpoint_problem(path: Path, repeats: int) -> Problem:
    """A trained model with averaged weights, on its test data, drawn with replacement and dequantised anew."""
    checkpoint = load_checkpoint(path)
    config = read_config(None, (), checkpoint.meta["config"])
    trained = load_trained(checkpoint, config, torch.device("cpu"))
    data, sde = config.data.load("test"), config.sde
    name = next(name for name, kind in SDES.items() if type(sde) is kind)

    def draw(count: int, random: Generator) -> tuple[ScoreFn, Tensor]:
        values, labels = data.fetch(torch.randint(len(data), (count,), generator=random))
        known = labels if config.model.conditional and labels is not None else torch.full((count,), -1)
        u = torch.rand(values.shape, generator=random)

        def score(x: Tensor, t: Tensor) -> Tensor:  # in pieces: memory
            pieces = zip(x.split(256), t.split(256), known.split(256), strict=True)
            return torch.cat([trained.model.bind(label)(x, t) for x, t, label in pieces])

        return score, trained.spec.to_model(values, u)

    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    facts = {"score": "checkpoint", "data": trained.spec.name, "step": trained.step, "checkpoint_sha256": digest}
    return Problem(f"{trained.spec.name} model, {name}", sde, draw, facts, repeats)


def quadrature(problem: Problem, weighting: Weighting, random: Generator) -> Estimate:
    """∫ λ/σ² E[error] dt from one draw in each of 4096 cells of time per repetition."""
    sde = problem.sde
    low, width = cells(sde.t_min, sde.t_max, 4096, finest=sde.t_min)
    integrals = []
    for _ in range(problem.repeats):
        t = (low + width * torch.rand(len(low), generator=random, dtype=torch.float64)).clamp(sde.t_min, sde.t_max)
        score_fn, x0 = problem.draw(len(t), random)
        error = denoising_error(score_fn, sde, x0, t.float(), torch.randn(x0.shape, generator=random))
        integrals.append((width * weighting.of_eps(sde, t) * error).sum())
    return Estimate.mean(torch.stack(integrals))


def measure(
    problem: Problem, weighting: Weighting, name: str, sampler: TimeSampler, batch: int, random: Generator
) -> Row:
    """Integral and variances of the loss with one sampler."""
    sampler = taught(problem, weighting, sampler, random)
    integrals, per_sample, per_batch = [], [], []
    for _ in range(problem.repeats):
        score_fn, x0 = problem.draw(batch * len(CELL_LOW), random)
        drawn = dsm_loss(
            score_fn,
            problem.sde,
            x0,
            weighting=weighting,
            time_sampler=InCells(sampler, batch),
            generator=random,
        )
        loss = drawn.loss.double().reshape(-1, batch)
        mean, square = CELL_WIDTH @ loss, CELL_WIDTH @ loss**2  # of each position in the batch
        integrals.append(mean.mean())
        per_sample.append(square.mean() - mean.mean() ** 2)
        per_batch.append((square - mean**2).mean())
    if not positions_are_independent(sampler, problem.sde, weighting):
        per_batch = [torch.tensor(math.nan)] * problem.repeats
    found = (Estimate.mean(torch.stack(values)) for values in (integrals, per_sample, per_batch))
    return Row(name, *found, levels=sampler.on_levels(problem.sde))


def compare(problem: Problem, weightings: Sequence[str], batch: int, seed: int) -> Iterator[Comparison]:
    """Some weightings, each with all samplers; every estimate has random numbers of its own."""
    for i, (weighting_name, weighting_kind) in enumerate(WEIGHTINGS.items()):
        weighting = weighting_kind()
        if weighting_name not in weightings or weighting.part() is not None:
            continue
        rows = [
            measure(problem, weighting, name, sampler, batch, generator(seed, i, j))
            for j, (name, sampler) in enumerate(pairs(weighting, problem.sde).items(), start=1)
        ]
        yield Comparison(problem, weighting_name, quadrature(problem, weighting, generator(seed, i, 0)), rows)


def report(comparisons: list[Comparison]) -> str:
    """One row for each process, weighting and sampler."""
    rows = [
        [
            f"{c.problem.name}, {c.weighting}: {row.sampler}",
            str(row.integral),
            f"{row.integral.away(c.quadrature):.1f}",
            str(row.per_sample),
            str(row.per_batch),
            short(c.worth(row)),
        ]
        for c in comparisons
        for row in c.rows
    ]
    return table(["", "integral", "errors off quadrature", "variance per sample", "per batch", "worth"], rows)


def as_json(comparison: Comparison) -> dict[str, Any]:
    """One comparison as JSON values."""
    return {
        "process": comparison.problem.name,
        "problem": comparison.problem.facts,
        "weighting": comparison.weighting,
        "repeats": comparison.problem.repeats,
        "quadrature": comparison.quadrature._asdict(),
        "samplers": {
            row.sampler: {
                "integral": row.integral._asdict(),
                "variance_per_sample": row.per_sample._asdict(),
                "variance_per_batch": row.per_batch._asdict(),
                "worth": comparison.worth(row),
                "levels": row.levels,
            }
            for row in comparison.rows
        },
    }


@torch.no_grad()
def main() -> int:
    """Measure, print, write, check."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="an eighth of the repetitions, to see that it works")
    names = ", ".join(WEIGHTINGS)
    parser.add_argument("--weighting", action="append", choices=WEIGHTINGS, metavar="NAME", help=f"of {names}; all")
    parser.add_argument("--checkpoint", type=Path, help="also a trained model, on its own test data")
    parser.add_argument("--batch", type=int, default=128, help="batch size B (default 128)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS / "loss_variance.json", help="result file")
    options = parser.parse_args()
    options.weighting = options.weighting or list(WEIGHTINGS)

    use_one_thread()
    facts = machine_facts()
    print(describe(facts))
    problems = list(oracle_problems(16 if options.quick else 128))
    if options.checkpoint:
        problems.append(checkpoint_problem(options.checkpoint, 4 if options.quick else 8))
    comparisons = [c for problem in problems for c in compare(problem, options.weighting, options.batch, options.seed)]
    print(f"\nbatches of {options.batch}\n\n{report(comparisons)}\n")
    disagreements = [line for c in comparisons for line in c.disagreements()]
    print("\n".join(disagreements) or f"all estimates of each integral agree within {LIMIT:g} standard errors")
    write_results(
        options.out,
        {
            "machine": facts,
            "batch": options.batch,
            "seed": options.seed,
            "agree": not disagreements,
            "comparisons": [as_json(c) for c in comparisons],
        },
    )
    return 1 if disagreements else 0


if __name__ == "__main__":
    sys.exit(main())
