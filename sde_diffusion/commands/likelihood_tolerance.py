"""`likelihood --tol`: bits/dim of a split to a stated half-width, and what the half-width is made of."""

import dataclasses
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from sde_diffusion.commands.common import Options
from sde_diffusion.commands.fitting import fitting
from sde_diffusion.commands.growing import GrowingArrays, Rows, spans
from sde_diffusion.commands.job import results, write_results
from sde_diffusion.commands.likelihood_report import (
    Ends,
    aligned,
    end_rows,
    ends_of,
    finite,
    signed,
    split_facts,
    split_rows,
)
from sde_diffusion.commands.session import Session
from sde_diffusion.config.build import Trained
from sde_diffusion.config.parse import Raw
from sde_diffusion.data import Dataset
from sde_diffusion.likelihood import Divergence, Examples, Goal, Hutchinson, Outcome, Scoring
from sde_diffusion.likelihood.audit.tolerance import LADDER, PILOT_PROBES, Request, Tolerance
from sde_diffusion.likelihood.audit.variance import coupling_ratio
from sde_diffusion.pictures import save_histogram
from sde_diffusion.rng import generator

_ORDER = 0x0DE4  # purpose of random numbers
FILES = ("likelihood.json", "scores.npz", "histogram.png")
FINER = 0.1  # of the user's ODE tolerance, to measure its error by


def score_to_tolerance(
    session: Session, dataset: Dataset, folder: Path, facts: Raw, options: Options, *, given_ode: bool
) -> None:
    """Score until the half-width is met, print the split, write `likelihood.json`, `scores.npz` and a histogram.

    Args:
        session: The model; its section `likelihood` says what is wanted.
        dataset: The examples, of which `start` and `limit` say which the mean stands for.
        folder: Where the files go.
        facts: For the files: the model, and what is scored.
        options: Where results may be replaced.
        given_ode: Whether the user chose the ODE's tolerances; if not they are chosen here.

    Raises:
        InputError: A budget that cannot hold the pilot.
    """
    clock, config = time.perf_counter(), session.trained.config.likelihood
    goal = Goal(tol=config.tol or 0.0, confidence=config.confidence, max_solves=config.max_solves)
    ladder = LADDER
    if given_ode:
        ladder = tuple(Tolerance(scale * config.ode.rtol, scale * config.ode.atol) for scale in (1, FINER))
    facts |= {"ladder": [tolerance._asdict() for tolerance in ladder]}
    request = {key: value for key, value in facts.items() if key != "split"}  # there it means another thing
    with results(session, folder, request, FILES, options) as lacking:
        if not lacking:
            return
        examples = _in_random_order(session, dataset)
        store = GrowingArrays(folder / "scores.npz", facts, session.ranks)
        outcome = _scored(session, examples, goal, ladder, store)
        store.finish()
        if not session.ranks.main:
            return
        columns = {name: torch.from_numpy(values) for name, values in store.arrays.items()}
        probes = _with_probes(config.divergence, PILOT_PROBES)
        ends = ends_of(session.trained, examples, probes, first=0, count=min(goal.pilot, len(examples.order)))
        seconds, population = time.perf_counter() - clock, len(examples.order)
        report = _report(session.trained, outcome, ends, columns, goal, population) | {"seconds": seconds}
        save_histogram(
            folder / "histogram.png",
            _per_image(columns, outcome),
            label=f"bits/dim, {facts['split']} of {session.trained.spec.name}",
            mean=outcome.split.mean,
            half_width=outcome.half_width,
        )
        what = _named(facts["split"], config.start, population, len(dataset))
        write_results(folder, FILES, facts | report, _lines(session.trained, outcome, ends, report, goal, what))


def _scored(
    session: Session, examples: Examples, goal: Goal, ladder: tuple[Tolerance, ...], store: GrowingArrays
) -> Outcome:
    """Score until the goal is met or its solves are spent."""
    config = session.trained.config.likelihood
    with tqdm(unit="solve", disable=None) as bar:
        return Scoring(
            _Solves(session, examples, bar, store),
            len(examples.order),
            goal,
            ladder=ladder,
            dequantised=session.trained.spec.levels is not None,
            probed=not config.divergence.exact,
            probe_cost=config.divergence.probe_cost,
            draws=config.draws,
            tell=lambda outcome: bar.set_postfix_str(f"{_mean(outcome)} → ± {goal.tol:g} bits/dim"),
        ).run()


class _Solves:
    """Scores as they are asked for: those that the disk lacks are computed, by all processes together.

    Each process asks for the same, for what is asked next follows from the scores alone.
    """

    def __init__(self, session: Session, examples: Examples, bar: "tqdm[Any]", store: GrowingArrays) -> None:
        self._session, self._examples, self._bar, self._store = session, examples, bar, store
        self._used = 0  # rows

    def __call__(self, request: Request) -> Tensor:
        begin, draws = self._used, self._examples.draws
        each = draws * request.probes  # rows of an example
        self._used += request.count * each

        def compute(row: int, rows: int) -> Rows:
            first = request.first + (row - begin) // each
            return self._score(dataclasses.replace(request, first=first, count=rows // each))

        wanted = spans(begin, self._used, self._session.trained.config.likelihood.batch * each)
        self._store.fill(wanted, fitting(self._session, compute, unit=each), self._bar, unit=request.probes)
        rows = self._store.rows(wanted)
        assert (rows["place"][0], rows["rtol"][0]) == (request.first, request.ode.rtol)
        return torch.from_numpy(rows["bits_per_dim"]).reshape(request.count, draws, request.probes).mean(1)

    def _score(self, request: Request) -> Rows:
        trained, draws = self._session.trained, self._examples.draws
        options = trained.config.likelihood
        scores = self._examples.score(
            self._examples.score_fn(trained.model.bind, request.first, request.count),
            trained.model.sde,
            request.first,
            request.count,
            replicate=request.replicate,
            divergence=_with_probes(options.divergence, request.probes),
            ode=dataclasses.replace(options.ode, rtol=request.ode.rtol, atol=request.ode.atol),
        )
        place, draw, probe = np.indices(scores.bits_per_dim.shape).reshape(3, -1)
        place = place + request.first
        return {
            "place": place,
            "index": self._examples.order.numpy()[place],
            "replicate": np.full_like(place, request.replicate),
            "draw": draw,
            "probe": probe,
            "rtol": np.full(len(place), request.ode.rtol),
            "atol": np.full(len(place), request.ode.atol),
            "batch_nfe": np.full_like(place, scores.nfe // draws),
            "bits_per_dim": scores.bits_per_dim.flatten().numpy(),
        }


def _in_random_order(session: Session, dataset: Dataset) -> Examples:
    """The examples from `start` to `limit`; the first of a sorted data set would stand for nothing."""
    config = session.trained.config
    options = config.likelihood
    stop = len(dataset) if options.limit is None else min(len(dataset), options.start + options.limit)
    order = torch.randperm(stop - options.start, generator=generator(config.seed, _ORDER)) + options.start
    return Examples(
        dataset, order, session.trained.dequantisation, options.draws, config.seed, session.device, options.label
    )


def _named(split: str, start: int, count: int, total: int) -> str:
    """What the mean stands for: the split, or the part of it that `start` and `limit` leave."""
    return split if count == total else f"examples {start}…{start + count - 1} of {split}"


def _with_probes(divergence: Divergence, probes: int) -> Divergence:
    return dataclasses.replace(divergence, probes=probes) if isinstance(divergence, Hutchinson) else divergence


def _per_image(columns: dict[str, Tensor], outcome: Outcome) -> Tensor:
    """Mean score of each image at the tolerance that was chosen, (n,)."""
    rows = columns["rtol"] == outcome.tolerance.rtol
    _, image = torch.unique(columns["index"][rows], return_inverse=True)
    totals = torch.zeros(outcome.split.count, 2, dtype=torch.float64)
    values = columns["bits_per_dim"][rows]
    totals.index_add_(0, image, torch.stack([values, torch.ones_like(values)], 1))
    return totals[:, 0] / totals[:, 1]


def _coupling(outcome: Outcome, columns: dict[str, Tensor], draws: int) -> float | None:
    """`coupling_ratio` of the draws in a replicate, None for a single one."""
    if draws == 1:
        return None
    keys = torch.stack([columns[name] for name in ("place", "replicate", "draw")], 1)
    rows = columns["rtol"] == outcome.tolerance.rtol
    _, row, probes = torch.unique(keys[rows], dim=0, return_inverse=True, return_counts=True)
    totals = torch.zeros(len(probes), dtype=torch.float64).index_add_(0, row, columns["bits_per_dim"][rows])
    spread = (totals / probes).reshape(-1, draws).var(1).mean()  # `unique` sorts: the draws of a cell are neighbours
    noise = draws * outcome.split.probes * float((1 / probes).mean())  # of the probes of one draw
    return finite(coupling_ratio(outcome.split.dequantisation, float(spread) - noise, draws))


def _mean(outcome: Outcome) -> str:
    return f"{outcome.split.mean:.4f} ± {outcome.half_width:.4f}"


def _report(
    trained: Trained, outcome: Outcome, ends: Ends, columns: dict[str, Tensor], goal: Goal, population: int
) -> dict[str, Any]:
    sde, split = trained.model.sde, outcome.split
    ode = {"mean": outcome.ode.mean, "half_width": outcome.ode.half_width, "share": outcome.ode_share}
    return {
        "bits_per_dim": split.mean,
        "half_width": outcome.half_width,
        "confidence": goal.confidence,
        "tol": goal.tol,
        "status": outcome.status,
        "images": split.count,
        "population": population,
        "solves": outcome.solves,
        "probes": outcome.probes,
        "degrees_of_freedom": finite(split.df),
        "ode_tolerance": outcome.tolerance._asdict(),
        "split": split_facts(split) | {"ode": ode},
        "coupling_ratio": _coupling(outcome, columns, trained.config.likelihood.draws),
        "units": trained.spec.describe_units(trained.config.likelihood.dequantisation.noise),
        "prior": f"N(0, {sde.prior_std:g}² I) at t = {sde.t_max:g}",
        "density_at_t": sde.t_min,
        "nfe": [int(columns["batch_nfe"].min()), int(columns["batch_nfe"].max())],
    } | ends.facts()


def _lines(trained: Trained, outcome: Outcome, ends: Ends, report: Raw, goal: Goal, what: str) -> list[str]:
    """The report for people."""
    level = f"{100 * goal.confidence:g} %"
    rows = split_rows(outcome.split, _notes(trained, outcome, report))
    ode = f"rtol {outcome.tolerance.rtol:g}, atol {outcome.tolerance.atol:g}: {signed(outcome.ode)}"
    rows.append(("ODE", ode, f"{outcome.ode_share:.5f}"))
    rows.append(("total", "√(sum of squares) + ODE", f"{outcome.half_width:.5f}"))
    lines = [
        f"{_mean(outcome)} bits/dim ({level} interval of the mean over {what} of {trained.spec.name})",
        aligned([("source", "what", f"± bits/dim ({level})")], rows, end_rows(ends, trained)),
        f"units: {report['units']}",
        f"{outcome.solves} solves of one example, {report['seconds']:.1f} s",
    ]
    if outcome.status != "met":
        lines.append(f"the tolerance ± {goal.tol:g} was not met: {advice(outcome, goal)}")
    if abs(ends.truncation.mean) > goal.tol:
        lines.append(
            f"warning: the truncation is larger than the tolerance; the figure is that of the data noised to "
            f"t = {trained.model.sde.t_min:g}, not of the data"
        )
    return lines


def _notes(trained: Trained, outcome: Outcome, report: Raw) -> dict[str, str]:
    """What each random source of the error is."""
    options = trained.config.likelihood
    notes = {"images": f"{outcome.split.count} of {report['population']} examples, in random order"}
    if trained.spec.levels is not None:
        ratio = report["coupling_ratio"]
        saved = "" if ratio is None else f", variance {max(ratio, 0):.2f} of independent ones"
        coupling = f"{options.dequantisation.coupling} draws" if options.draws > 1 else "draw"
        notes["dequantisation"] = f"{options.draws} {coupling} in a replicate{saved}"
    if isinstance(options.divergence, Hutchinson):
        notes["probes"] = f"{outcome.probes} {options.divergence.distribution} a solve, {PILOT_PROBES} in the pilot"
    return notes


def advice(outcome: Outcome, goal: Goal) -> str:
    """What the error that is left comes from, and what would lessen it."""
    if outcome.status == "ode":
        return f"the ODE's error alone is ± {outcome.ode_share:.5f}; give tighter --rtol and --atol, or a larger --tol"
    widths = {name: width for name, width in outcome.split.half_widths.items() if not math.isnan(width)}
    largest = max(widths, key=lambda name: widths[name])
    ratio = (outcome.split.half_width / (goal.tol - outcome.ode_share)) ** 2
    source = {"images": "the finite subset", "dequantisation": "the dequantisation", "probes": "the trace probes"}
    return (
        f"after {outcome.solves} solves most of the error comes from {source[largest]}; "
        f"give --max-solves {math.ceil(outcome.solves * ratio)} or so, or --tol {outcome.half_width:.2g}"
    )
