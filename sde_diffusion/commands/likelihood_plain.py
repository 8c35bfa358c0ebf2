"""`likelihood` without a tolerance to reach: every example is scored as often as the config says."""

import dataclasses
import math
from functools import lru_cache
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from sde_diffusion.commands.growing import Rows, spans
from sde_diffusion.commands.job import Job
from sde_diffusion.commands.likelihood_report import Ends, aligned, end_rows, ends_of, split_facts, split_rows
from sde_diffusion.commands.session import Session
from sde_diffusion.config.build import Config, Trained
from sde_diffusion.config.parse import Raw
from sde_diffusion.data import Dataset, sweep
from sde_diffusion.errors import InputError
from sde_diffusion.likelihood import (
    Cells,
    Examples,
    GaussianReference,
    Scores,
    Split,
    UniformDequantisation,
    mean_interval,
    nested_split,
    probe_half_width,
)
from sde_diffusion.pictures import save_histogram
from sde_diffusion.rng import derive_seed

_REFERENCE = 0x6A0551  # purpose of random numbers
PILOT = 64  # examples on which truncation and prior gap are measured
REFERENCE_DIMS, REFERENCE_EXAMPLES = 4096, 60_000  # what a full covariance is affordable for


def plain_job(session: Session, dataset: Dataset, reference: bool, folder: Path, facts: Raw) -> Job:
    """Score every example asked for, and report the mean with its interval.

    Args:
        reference: Whether a Gaussian is scored beside the model.
        facts: For the files: the model, and what is scored.
    """
    trained = session.trained
    options, examples = trained.config.likelihood, examples_of(session, dataset)
    stop = len(dataset) if options.limit is None else min(len(dataset), options.start + options.limit)
    gaussian = lru_cache(lambda: _fit_reference(trained) if reference else None)  # not before it is wanted

    def finish(rows: Rows, seconds: float) -> tuple[Raw, list[str]]:
        columns = {name: torch.from_numpy(values) for name, values in rows.items()}
        split = _split(trained, columns)
        count = min(PILOT, len(columns["index"]))
        ends = ends_of(trained, examples, options.divergence, first=options.start, count=count)
        report = _report(trained, columns, options.confidence) | {"split": split_facts(split)} | ends.facts()
        save_histogram(
            folder / "histogram.png",
            columns["bits_per_dim"],
            label=f"bits/dim, {facts['split']} of {trained.spec.name}",
            mean=report["bits_per_dim"],
            half_width=report["half_width"],
        )
        lines = [*_lines(trained, report, facts["split"], seconds), _split_table(trained, split, ends)]
        return report | {"seconds": seconds}, lines

    return Job(
        files=("likelihood.json", "per_image.npz", "histogram.png"),
        arrays="per_image.npz",
        facts=facts | {"reference": reference},
        request={key: value for key, value in facts.items() if key != "split"} | {"reference": reference},
        spans=spans(options.start, stop, options.batch),
        compute=lambda start, count: _scored(session, examples, gaussian(), start, count),
        finish=finish,
        without=("cells",),
    )


def _scored(session: Session, examples: Examples, reference: GaussianReference | None, start: int, count: int) -> Rows:
    """The examples `start … start + count − 1`, by the model and, if there is one, the reference."""
    trained, options = session.trained, session.trained.config.likelihood
    rows = _rows(
        [
            examples.score(
                examples.score_fn(trained.model.bind, start, count),
                trained.model.sde,
                start,
                count,
                replicate=replicate,
                divergence=options.divergence,
                ode=options.ode,
            )
            for replicate in range(options.replicates)
        ]
    )
    rows["index"] = torch.arange(start, start + count)
    if options.divergence.exact:
        rows["standard_error_nats"] = torch.zeros(count, dtype=torch.float64)
    if reference is not None:
        flat = dataclasses.replace(examples, dequantisation=UniformDequantisation(), draws=1)  # what it is fitted to
        x = flat.noised(start, count, trained.model.sde).x[0]
        rows["gaussian_bits_per_dim"] = trained.spec.bits_per_dim(reference.log_prob(x.cpu()))
    return {name: value.cpu().numpy() for name, value in rows.items()}


def examples_of(session: Session, dataset: Dataset) -> Examples:
    """The data in their order, with the noise, the label and the seed that the config says."""
    config = session.trained.config
    options, order = config.likelihood, torch.arange(len(dataset))
    noise = session.trained.dequantisation
    return Examples(dataset, order, noise, options.draws, config.seed, session.device, options.label)


def _rows(replicates: list[Scores]) -> dict[str, Tensor]:
    """Columns of one batch from its replicates; a row is an example, `batch_nfe` the evaluations of its slowest."""
    cells = torch.stack([scores.bits_per_dim.mean(1) for scores in replicates], 1)  # (B, replicates, k)
    delta = torch.stack([scores.delta.mean(1) for scores in replicates], 1)
    probes = cells.shape[2]
    error = delta.var(2).mean(1).div(probes * len(replicates)).sqrt() if probes > 1 else delta[:, 0, 0] * math.nan
    return {
        "bits_per_dim": cells.mean((1, 2)),
        "prior_nats": torch.stack([scores.prior.mean(1) for scores in replicates], 1).mean(1),
        "delta_nats": delta.mean((1, 2)),
        "standard_error_nats": error,
        "cells": cells,
        "batch_nfe": torch.full((len(cells),), sum(scores.nfe for scores in replicates)),
    }


def _report(trained: Trained, columns: dict[str, Tensor], confidence: float) -> dict[str, Any]:
    spec = trained.spec
    mean, half_width = mean_interval(columns["bits_per_dim"], confidence).plain()
    report: dict[str, Any] = {
        "bits_per_dim": mean,
        "half_width": half_width,
        "confidence": confidence,
        "images": len(columns["bits_per_dim"]),
        "units": spec.describe_units(trained.config.likelihood.dequantisation.noise),
        "prior": f"N(0, {trained.model.sde.prior_std:g}² I) at t = {trained.model.sde.t_max:g}",
        "density_at_t": trained.model.sde.t_min,
        "nfe": [int(columns["batch_nfe"].min()), int(columns["batch_nfe"].max())],
    }
    errors = columns["standard_error_nats"]
    if bool(errors.isfinite().all()):
        per_dim = spec.bits_per_dim(-errors.double()) - spec.bits_offset
        report["half_width_of_probes"] = probe_half_width(per_dim, confidence)
    if "gaussian_bits_per_dim" in columns:
        mean, half_width = mean_interval(columns["gaussian_bits_per_dim"], confidence).plain()
        report |= {"gaussian_bits_per_dim": mean, "gaussian_half_width": half_width}
    return report


def _lines(trained: Trained, report: Raw, what: str, seconds: float) -> list[str]:
    """The report for people."""
    level = f"{100 * report['confidence']:g} %"
    kind = f"{level} interval of the mean over {report['images']} examples" if report["images"] > 1 else "1 example"
    lines = [f"{_with_error(report, '')} bits/dim ({kind}, {what} of {trained.spec.name})"]
    if "gaussian_bits_per_dim" in report:
        lines.append(
            f"{_with_error(report, 'gaussian_')} bits/dim for a Gaussian with full covariance fitted to the training "
            f"split, on the same examples"
        )
    return [
        *lines,
        f"units: {report['units']}",
        f"density of the data noised to t = {report['density_at_t']:g}, prior {report['prior']}; "
        f"{report['nfe'][1]} score evaluations at most, {seconds:.1f} s",
    ]


def _split(trained: Trained, columns: dict[str, Tensor]) -> Split:
    """What the interval of the mean over like images is made of, as far as replicates and probes tell."""
    options, cells = trained.config.likelihood, columns["cells"]
    return nested_split(
        Cells.join(Cells.of(columns["index"], cells[:, replicate]) for replicate in range(cells.shape[1])),
        confidence=options.confidence,
        dequantised=trained.spec.levels is not None,
        probed=not options.divergence.exact,
    )


def _split_table(trained: Trained, split: Split, ends: Ends) -> str:
    """The sources of the error."""
    options = trained.config.likelihood
    notes = {"images": f"{split.count} examples"}
    if trained.spec.levels is not None:
        draws = f" of {options.draws} coupled draws" if options.draws > 1 else ""
        notes["dequantisation"] = f"{options.replicates} replicate{'s' * (options.replicates > 1)}{draws}"
    if not options.divergence.exact:
        notes["probes"] = f"{options.divergence.estimates} a solve"
    rows = split_rows(split, notes) if math.isfinite(split.half_width) else []
    level = f"± bits/dim ({100 * options.confidence:g} %)"
    return aligned([("source", "what", level)], rows, end_rows(ends, trained))


def _with_error(report: dict[str, Any], prefix: str) -> str:
    half_width = report[f"{prefix}half_width"]
    return f"{report[f'{prefix}bits_per_dim']:.4f}" + ("" if half_width is None else f" ± {half_width:.4f}")


def _fit_reference(trained: Trained) -> GaussianReference | None:
    config: Config = trained.config
    if trained.spec.dims > REFERENCE_DIMS:
        click.echo(f"no Gaussian beside it: {trained.spec.dims} dimensions are more than {REFERENCE_DIMS}", err=True)
        return None
    try:
        train = config.data.load("train")
    except InputError as error:
        raise InputError(
            f"the Gaussian needs the training split ({error}), or leave it out by --no-reference"
        ) from None
    if len(train) > REFERENCE_EXAMPLES:
        click.echo(f"the Gaussian is fitted to the first {REFERENCE_EXAMPLES} of {len(train)} examples", err=True)
    seed = derive_seed(config.seed, _REFERENCE)  # noise of its own: the scored examples have that of config.seed
    rows = [batch.x for _, batch in sweep(train, batch=1024, seed=seed, limit=REFERENCE_EXAMPLES)]
    return GaussianReference.fit(torch.cat(rows))
