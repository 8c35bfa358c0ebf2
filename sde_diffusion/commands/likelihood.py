"""`likelihood`: bits/dim of data under a trained model."""

import time
from collections.abc import Iterable
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
    load,
    make_folder,
    shared_options,
    show_config,
    write_json,
)
from sde_diffusion.commands.examples import file_facts, open_examples
from sde_diffusion.data import Batch, Dataset, sweep
from sde_diffusion.errors import InputError, require
from sde_diffusion.likelihood import GaussianReference, log_likelihood, mean_interval, probe_half_width
from sde_diffusion.pictures import save_histogram
from sde_diffusion.rng import derive_seed

EPILOG = """\b
Examples:
  python cli.py likelihood                                  # test split, newest run, one probe per image
  python cli.py likelihood --limit 256 --probes 4
  python cli.py likelihood runs/digits_vp --exact --split train --limit 100
  python cli.py likelihood --file mine.npy --rtol 1e-6 --atol 1e-6

\b
Each image is dequantised by one uniform draw that depends on the seed and its index. A killed run goes on where it
stopped.
"""

_REFERENCE = 0x6A0551  # purpose of random numbers
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
@click.option("--rtol", type=float, help="Relative tolerance of the ODE.")
@click.option("--atol", type=float, help="Absolute tolerance of the ODE.")
@click.option("--batch", type=int, help="Examples scored at once.")
@click.option("--ema/--no-ema", default=True, show_default=True, help="Averaged weights, or the last ones.")
@click.option("--reference/--no-reference", default=True, show_default=True, help="Also score a Gaussian.")
@shared_options
def likelihood(
    checkpoint: Path | None,
    data_file: Path | None,
    exact: bool,
    ema: bool,
    reference: bool,
    config_file: Path | None,
    assignments: tuple[str, ...],
    seed: int | None,
    device: str,
    out: Path | None,
    dry_run: bool,
    **given: Any,
) -> None:
    """Score data under CHECKPOINT, a file or a run's folder; under the newest run without one."""
    require(
        not exact or (given["probes"] is None and given["distribution"] is None),
        "--exact needs no random directions; drop --probes and --distribution",
    )
    options = {f"likelihood__{key}": given[key] for key in ("split", "start", "limit", "rtol", "atol", "batch")}
    trace = {f"likelihood__divergence__{key}": given[key] for key in ("probes", "distribution")}
    require(not (data_file and given["split"]), "--file and --split exclude each other; drop one")
    kind = "exact" if exact else "hutchinson" if given["probes"] or given["distribution"] else None
    named = as_assignments(likelihood__divergence__name=kind)
    overrides = [*named, *assignments, *as_assignments(**options, **trace, seed=seed)]
    loaded = load(checkpoint, config_file, overrides, device=device, ema=ema)
    config = loaded.trained.config
    click.echo(f"{'# ' if dry_run else ''}{loaded.describe()}")
    if dry_run:
        show_config({"seed": config.seed, "likelihood": plain_config(config)["likelihood"]})
        return
    dataset = open_examples(loaded.trained, config.likelihood.split, data_file)
    what = data_file.stem if data_file else config.likelihood.split
    folder = out or loaded.folder / f"likelihood_{what}_seed{config.seed}"
    source = file_facts(data_file) | {"ema": ema, "split": what, "seed": config.seed}
    _score(loaded, dataset, reference, folder, source)


def _score(loaded: Loaded, dataset: Dataset, reference: bool, folder: Path, extra: dict[str, Any]) -> None:
    trained, clock = loaded.trained, time.perf_counter()
    options, what = trained.config.likelihood, extra["split"]
    require(
        options.start < len(dataset),
        f"`likelihood.start` must be < {len(dataset)}, the size of the data, got {options.start}",
    )
    facts = loaded.facts() | extra
    fixed = {key: value for key, value in facts.items() if key != "checkpoint"}
    store = GrowingArrays(make_folder(folder) / "per_image.npz", fixed | {"reference": reference})
    _score_all(loaded, dataset, _fit_reference(trained) if reference else None, store)
    store.finish()
    columns = {name: torch.from_numpy(values) for name, values in store.arrays.items()}
    report = _report(trained, columns, options.confidence)
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
    click.echo(f"wrote {folder / 'likelihood.json'}, per_image.npz, histogram.png")


def _score_all(loaded: Loaded, dataset: Dataset, reference: GaussianReference | None, store: GrowingArrays) -> None:
    """Score what `store` lacks, batch by batch."""
    trained = loaded.trained
    options, spec = trained.config.likelihood, trained.spec
    stop = len(dataset) if options.limit is None else min(len(dataset), options.start + options.limit)
    with tqdm(total=stop - options.start, initial=len(store), unit="img", disable=None) as bar:
        for start, batch in _examples(dataset, loaded, options.start + len(store), stop):
            result = log_likelihood(
                trained.model,
                trained.model.sde,
                batch.x,
                divergence=options.divergence,
                ode=options.ode,
                seed=trained.config.seed,
                start=start,
            )
            rows = {
                "bits_per_dim": spec.bits_per_dim(result.log_prob.double()),
                "prior_nats": result.prior,
                "delta_nats": result.delta.mean(1),
                "standard_error_nats": result.standard_error,
                "index": torch.arange(start, start + len(batch.x)),
                "nfe": torch.full((len(batch.x),), result.nfe),
            }
            if reference is not None:
                rows["gaussian_bits_per_dim"] = spec.bits_per_dim(reference.log_prob(batch.x.cpu()))
            store.append(**{name: value.cpu().numpy() for name, value in rows.items()})
            bar.update(len(batch.x))


def _examples(dataset: Dataset, loaded: Loaded, start: int, stop: int) -> Iterable[tuple[int, Batch]]:
    if start >= stop:
        return ()
    config = loaded.trained.config
    return sweep(
        dataset,
        batch=config.likelihood.batch,
        seed=config.seed,
        device=loaded.device,
        start=start,
        limit=stop - start,
    )


def _report(trained: Trained, columns: dict[str, Tensor], confidence: float) -> dict[str, Any]:
    spec = trained.spec
    mean, half_width = _interval(columns["bits_per_dim"], confidence)
    report: dict[str, Any] = {
        "bits_per_dim": mean,
        "half_width": half_width,
        "confidence": confidence,
        "images": len(columns["bits_per_dim"]),
        "units": spec.describe_units(),
        "prior": f"N(0, {trained.model.sde.prior_std:g}² I) at t = {trained.model.sde.t_max:g}",
        "density_at_t": trained.model.sde.t_min,
        "nfe": [int(columns["nfe"].min()), int(columns["nfe"].max())],
    }
    errors = columns["standard_error_nats"]
    if bool(errors.isfinite().all()):
        per_dim = spec.bits_per_dim(-errors.double()) - spec.bits_offset
        report["half_width_of_probes"] = probe_half_width(per_dim, confidence)
    if "gaussian_bits_per_dim" in columns:
        mean, half_width = _interval(columns["gaussian_bits_per_dim"], confidence)
        report |= {"gaussian_bits_per_dim": mean, "gaussian_half_width": half_width}
    return report


def _interval(values: Tensor, confidence: float) -> tuple[float, float | None]:
    """Mean and half-width of its interval, None for a single value, which does not tell its spread."""
    interval = mean_interval(values, confidence)
    return interval.mean, interval.half_width if len(values) > 1 else None


def _print(trained: Trained, report: dict[str, Any], what: str, seconds: float) -> None:
    level = f"{100 * report['confidence']:g} %"
    kind = f"{level} interval of the mean over {report['images']} examples" if report["images"] > 1 else "1 example"
    click.echo(f"{_with_error(report, '')} bits/dim ({kind}, {what} of {trained.spec.name})")
    if "gaussian_bits_per_dim" in report:
        click.echo(
            f"{_with_error(report, 'gaussian_')} bits/dim for a Gaussian with full covariance fitted to the training "
            f"split, on the same examples"
        )
    if report.get("half_width_of_probes") and report["half_width"] is not None:
        click.echo(f"of the half-width, ± {report['half_width_of_probes']:.4f} comes from the trace probes")
    click.echo(f"units: {report['units']}")
    click.echo(
        f"density of the data noised to t = {report['density_at_t']:g}, prior {report['prior']}; "
        f"{report['nfe'][1]} score evaluations at most, {seconds:.1f} s"
    )


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
