"""`likelihood`: bits/dim of data under a trained model."""

import dataclasses
import math
import re
import time
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor
from tqdm import tqdm

from sde_diffusion.build import Config, Trained, plain_config
from sde_diffusion.commands.common import (
    GrowingArrays,
    Loaded,
    as_assignments,
    ema_options,
    load,
    make_folder,
    shared_options,
    show_config,
    write_json,
)
from sde_diffusion.commands.examples import file_facts, open_examples
from sde_diffusion.commands.guiding import OWN, Labels, LabelsType, require_unlabelled
from sde_diffusion.commands.ledger import write_ledger
from sde_diffusion.commands.likelihood_report import Ends, end_rows, ends_of, split_facts, split_rows, table
from sde_diffusion.commands.likelihood_tolerance import score_to_tolerance
from sde_diffusion.commands.naming import results_folder
from sde_diffusion.data import Dataset, sweep
from sde_diffusion.errors import InputError, require
from sde_diffusion.likelihood import (
    DEQUANTISATIONS,
    Cells,
    Dequantisation,
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

EPILOG = """\b
Examples:
  python cli.py likelihood                                  # test split, newest run, one probe per image
  python cli.py likelihood --limit 256 --probes 4
  python cli.py likelihood runs/digits_vp --exact --split train --limit 100
  python cli.py likelihood --ledger --limit 32
  python cli.py likelihood --label own --limit 256          # p(x | y) of a conditional model, beside p(x) without it
  python cli.py likelihood --file mine.npy --rtol 1e-6 --atol 1e-6
  python cli.py likelihood --tol 0.02 --conf 0.95           # as many images, probes and repeats as that takes

\b
Each image is dequantised by a draw that depends on the seed and its index. With --tol images come in random order, the
ODE's tolerance is chosen unless it is given, and the mean stands for the whole split, or for what --start and --limit
leave of it, scored or not. A killed run goes on where it stopped. Without --out the folder is named by what was asked
for: likelihood_test_seed0_probes4_limit256.
"""

_REFERENCE = 0x6A0551  # purpose of random numbers
PROBING = ("probes", "distribution", "mode")  # options that the exact trace does not have
SECTIONS = {
    **dict.fromkeys((*PROBING, "chunk"), "divergence__"),
    **dict.fromkeys(("rtol", "atol"), "ode__"),
    "coupling": "dequantisation__",
}
REPEATS = {  # options that say how often a score is repeated, which a ledger's rows do in their own way
    "draws": "--draws",
    "replicates": "--replicates",
    "dequantisation": "--dequantisation and --coupling",
}
PILOT = 64  # examples on which truncation and prior gap are measured
REFERENCE_DIMS, REFERENCE_EXAMPLES = 4096, 60_000  # what a full covariance is affordable for


@click.command(epilog=EPILOG, short_help="Score data in bits/dim.")
@click.argument("checkpoint", required=False, type=click.Path(path_type=Path))
@click.option("--split", help="train, validation or test (default).")
@click.option("--file", "data_file", type=click.Path(path_type=Path), help="Score a .npy or .npz file instead.")
@click.option("--start", type=int, help="First example scored.")
@click.option("--limit", type=int, help="Number of examples scored; all by default.")
@click.option("--probes", type=int, help="Random directions per image (Hutchinson).")
@click.option("--distribution", help="Of their entries: rademacher or gaussian.")
@click.option("--exact", is_flag=True, help="Exact trace: as many directions as there are dimensions.")
@click.option("--chunk", type=int, help="Directions of one pass: more memory, fewer passes.")
@click.option("--mode", help="Of their derivatives: reverse or forward.")
@click.option("--dequantisation", help=f"{', '.join(DEQUANTISATIONS)}. Default: uniform.")
@click.option("--coupling", help="Of its draws: independent, antithetic or stratified.")
@click.option("--draws", type=int, help="Coupled draws in one replicate of an image.")
@click.option("--replicates", type=int, help="Independent repeats, each with its own noise and directions.")
@click.option("--tol", type=float, help="Stop at this half-width of the mean; says what it is made of.")
@click.option("--conf", "confidence", type=float, help="Level of the interval. Default: 0.95.")
@click.option("--max-solves", type=int, help="With --tol: solves of one image to stop at in any case.")
@click.option("--rtol", type=float, help="Relative tolerance of the ODE.")
@click.option("--atol", type=float, help="Absolute tolerance of the ODE.")
@click.option("--batch", type=int, help="Examples scored at once.")
@click.option(
    "--label",
    type=LabelsType(OWN),
    help="Class a conditional model is told, for p(x | y); own: each example's; -1 for none (default).",
)
@ema_options
@click.option("--reference/--no-reference", default=True, show_default=True, help="Also score a Gaussian.")
@click.option("--ledger", is_flag=True, help="All bounds of these examples in one table, in place of the score.")
@shared_options
def likelihood(
    checkpoint: Path | None,
    data_file: Path | None,
    exact: bool,
    ema: bool | str,
    reference: bool,
    ledger: bool,
    config_file: Path | None,
    assignments: tuple[str, ...],
    seed: int | None,
    device: str,
    out: Path | None,
    dry_run: bool,
    **given: Any,
) -> None:
    """Score data under CHECKPOINT, a file or a run's folder; under the newest run without one."""
    _refuse_contradictions(exact, data_file, given)
    kind = "exact" if exact else "hutchinson" if any(given[key] is not None for key in PROBING) else None
    named = as_assignments(
        likelihood__divergence__name=kind, likelihood__dequantisation__name=given.pop("dequantisation")
    )
    told = _label_assignments(given.pop("label"))
    options = {f"likelihood__{SECTIONS.get(key, '')}{key}": value for key, value in given.items()}
    overrides = [*named, *assignments, *as_assignments(**options, seed=seed), *told]
    if ledger:
        _refuse_repeats(overrides)
    loaded = load(checkpoint, config_file, overrides, device=device, ema=ema)
    config = loaded.trained.config
    if config.likelihood.tol is not None:
        chosen = any(re.match(r"\s*likelihood\.divergence(\.probes\s*=|\s*=.*\bprobes\b)", key) for key in overrides)
        require(not chosen, "--tol chooses the probes itself; drop likelihood.divergence.probes or --tol")
    _check_label(loaded)
    click.echo(f"{'# ' if dry_run else ''}{loaded.describe()}{_given(config.likelihood.label)}")
    if dry_run:
        show_config({"seed": config.seed, "likelihood": plain_config(config)["likelihood"]})
        return
    dataset = open_examples(loaded.trained, config.likelihood.split, data_file)
    require(
        config.likelihood.start < len(dataset),
        f"`likelihood.start` must be < {len(dataset)}, the size of the data, got {config.likelihood.start}",
    )
    _tell_misfit(loaded.trained, None if ledger else config.likelihood.dequantisation)
    what = data_file.stem if data_file else config.likelihood.split
    word = OWN if config.likelihood.label is None else None
    folder = out or results_folder(
        loaded, f"likelihood_{what}_seed{config.seed}", config.likelihood, ema=ema, label=word
    )
    source = file_facts(data_file) | {"ema": ema, "split": what, "seed": config.seed}
    if ledger:
        require(config.likelihood.tol is None, "--ledger and --tol exclude each other; drop one")
        write_ledger(loaded, _examples(loaded, dataset), folder, source)
        return
    if config.likelihood.tol is None:
        _score(loaded, dataset, reference, folder, source)
        return
    given_ode = any(re.match(r"likelihood\.ode\.[ra]tol", key) for key in overrides)
    score_to_tolerance(loaded, dataset, folder, source, given_ode=given_ode)


def _refuse_contradictions(exact: bool, data_file: Path | None, given: dict[str, Any]) -> None:
    require(
        not exact or all(given[key] is None for key in PROBING),
        "--exact needs no random directions; drop --probes, --distribution and --mode",
    )
    require(not (data_file and given["split"]), "--file and --split exclude each other; drop one")
    for key in ("probes", "replicates"):
        require(given["tol"] is None or given[key] is None, f"--tol chooses the {key} itself; drop --{key} or --tol")
    require(given["max_solves"] is None or given["tol"] is not None, "--max-solves goes with --tol; give it as well")


def _label_assignments(label: Labels | None) -> list[str]:
    require(not isinstance(label, tuple) or len(label) == 1, f"--label must be one class or {OWN}, got {label}")
    return [] if label is None else [f"likelihood.label={'null' if label == OWN else label[0]}"]


def _check_label(loaded: Loaded) -> None:
    """Refuse labels that the model was not trained with.

    Raises:
        InputError: See `ScoreModel.bind`; own labels of a model that knows none, or none where it was always told one.
    """
    label = loaded.trained.config.likelihood.label
    if label is None:
        require(
            loaded.trained.conditional,
            f"--label {OWN} needs a model that was trained with labels, but {loaded.path} was not; leave it out, or "
            f"train one with model.conditional = true",
        )
        return
    if label < 0:
        require_unlabelled(loaded)
    loaded.trained.model.bind(label)


def _given(label: int | None) -> str:
    return "" if label == -1 else f", log p(x | y) given {'their own labels' if label is None else f'label {label}'}"


def _tell_misfit(trained: Trained, scored: Dequantisation | None) -> None:
    """Say if another noise than that of `likelihood.dequantisation` fits the model.

    Raises:
        InputError: The noise is one that the checkpoint or its data cannot have.
    """
    noise = trained.config.training.dequantise
    _ = trained.dequantisation
    if scored is None or trained.spec.levels is None or isinstance(scored, DEQUANTISATIONS[noise.scored_by]):
        return
    name = next(name for name, row in DEQUANTISATIONS.items() if type(scored) is row)
    click.echo(
        f"the model was trained on {noise.trained_on}: likelihood.dequantisation={noise.scored_by} fits it, {name} "
        "noise costs bits"
    )


def _refuse_repeats(overrides: list[str]) -> None:
    for key, flags in REPEATS.items():
        require(
            not any(re.match(rf"\s*likelihood\.{key}\b", override) for override in overrides),
            f"--ledger takes no {flags} (likelihood.{key}): its rows have their own noise and draws; drop it, or set "
            "likelihood.ledger.importance_draws or likelihood.ledger.draws",
        )


def _score(loaded: Loaded, dataset: Dataset, reference: bool, folder: Path, extra: dict[str, Any]) -> None:
    trained, clock = loaded.trained, time.perf_counter()
    options, what = trained.config.likelihood, extra["split"]
    facts = loaded.facts() | extra
    fixed = {key: value for key, value in facts.items() if key != "checkpoint"}
    store = GrowingArrays(make_folder(folder) / "per_image.npz", fixed | {"reference": reference})
    _score_all(loaded, dataset, _fit_reference(trained) if reference else None, store)
    store.finish(without=("cells",))
    columns = {name: torch.from_numpy(values) for name, values in store.arrays.items()}
    split = _split(trained, columns)
    count = min(PILOT, len(columns["index"]))
    ends = ends_of(trained, _examples(loaded, dataset), options.divergence, first=options.start, count=count)
    report = _report(trained, columns, options.confidence) | {"split": split_facts(split)} | ends.facts()
    seconds = time.perf_counter() - clock
    write_json(folder / "likelihood.json", facts | report | {"seconds": seconds})
    save_histogram(
        folder / "histogram.png",
        columns["bits_per_dim"],
        label=f"bits/dim, {what} of {trained.spec.name}",
        mean=report["bits_per_dim"],
        half_width=report["half_width"],
    )
    _print(trained, report, what, seconds)
    _print_split(trained, split, ends)
    click.echo(f"wrote {folder / 'likelihood.json'}, per_image.npz, histogram.png")


def _score_all(loaded: Loaded, dataset: Dataset, reference: GaussianReference | None, store: GrowingArrays) -> None:
    """Score what `store` lacks, batch by batch."""
    trained = loaded.trained
    options, spec = trained.config.likelihood, trained.spec
    examples = _examples(loaded, dataset)
    flat = dataclasses.replace(examples, dequantisation=UniformDequantisation(), draws=1)  # what the Gaussian is of
    stop = len(dataset) if options.limit is None else min(len(dataset), options.start + options.limit)
    with tqdm(total=stop - options.start, initial=len(store), unit="img", disable=None) as bar:
        for start in range(options.start + len(store), stop, options.batch):
            count = min(options.batch, stop - start)
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
                x = flat.noised(start, count, trained.model.sde).x[0]
                rows["gaussian_bits_per_dim"] = spec.bits_per_dim(reference.log_prob(x.cpu()))
            store.append(**{name: value.cpu().numpy() for name, value in rows.items()})
            bar.update(count)


def _examples(loaded: Loaded, dataset: Dataset) -> Examples:
    config = loaded.trained.config
    options, order = config.likelihood, torch.arange(len(dataset))
    noise = loaded.trained.dequantisation
    return Examples(dataset, order, noise, options.draws, config.seed, loaded.device, options.label)


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


def _print(trained: Trained, report: dict[str, Any], what: str, seconds: float) -> None:
    level = f"{100 * report['confidence']:g} %"
    kind = f"{level} interval of the mean over {report['images']} examples" if report["images"] > 1 else "1 example"
    click.echo(f"{_with_error(report, '')} bits/dim ({kind}, {what} of {trained.spec.name})")
    if "gaussian_bits_per_dim" in report:
        click.echo(
            f"{_with_error(report, 'gaussian_')} bits/dim for a Gaussian with full covariance fitted to the training "
            f"split, on the same examples"
        )
    click.echo(f"units: {report['units']}")
    click.echo(
        f"density of the data noised to t = {report['density_at_t']:g}, prior {report['prior']}; "
        f"{report['nfe'][1]} score evaluations at most, {seconds:.1f} s"
    )


def _split(trained: Trained, columns: dict[str, Tensor]) -> Split:
    """What the interval of the mean over like images is made of, as far as replicates and probes tell."""
    options, cells = trained.config.likelihood, columns["cells"]
    return nested_split(
        Cells.join(Cells.of(columns["index"], cells[:, replicate]) for replicate in range(cells.shape[1])),
        confidence=options.confidence,
        dequantised=trained.spec.levels is not None,
        probed=not options.divergence.exact,
    )


def _print_split(trained: Trained, split: Split, ends: Ends) -> None:
    options = trained.config.likelihood
    notes = {"images": f"{split.count} images"}
    if trained.spec.levels is not None:
        draws = f" of {options.draws} coupled draws" if options.draws > 1 else ""
        notes["dequantisation"] = f"{options.replicates} replicate{'s' * (options.replicates > 1)}{draws}"
    if not options.divergence.exact:
        notes["probes"] = f"{options.divergence.estimates} a solve"
    rows = split_rows(split, notes) if math.isfinite(split.half_width) else []
    level = f"± bits/dim ({100 * options.confidence:g} %)"
    click.echo(table(("source", "what", level), rows, end_rows(ends, trained)))


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
