"""`likelihood`: bits/dim of data under a trained model."""

import dataclasses
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
    shared_options,
    show_config,
    write_json,
)
from sde_diffusion.data import Batch, Dataset, TensorDataset, sweep
from sde_diffusion.data.arrays import Arrays
from sde_diffusion.errors import InputError, require
from sde_diffusion.likelihood import GaussianReference, Interval, log_likelihood, mean_interval, probe_half_width
from sde_diffusion.pictures import save_histogram

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
    named = ["likelihood.divergence.name=exact"] if exact else []
    overrides = [*named, *assignments, *as_assignments(**options, **trace, seed=seed)]
    loaded = load(checkpoint, config_file, overrides, device=device, ema=ema)
    config = loaded.trained.config
    if dry_run:
        show_config({"seed": config.seed, "likelihood": plain_config(config)["likelihood"]})
        return
    dataset = _file_dataset(data_file, loaded.trained) if data_file else _split(loaded.trained)
    what = data_file.stem if data_file else config.likelihood.split
    folder = out or loaded.folder / f"likelihood_{what}_seed{config.seed}"
    reference_fit = _fit_reference(loaded.trained) if reference else None
    _score(loaded, dataset, reference_fit, folder, what, {"ema": ema, "file": str(data_file) if data_file else None})


def _score(
    loaded: Loaded,
    dataset: Dataset,
    reference: GaussianReference | None,
    folder: Path,
    what: str,
    extra: dict[str, Any],
) -> None:
    trained, clock = loaded.trained, time.perf_counter()
    config, options, spec = trained.config, trained.config.likelihood, trained.spec
    facts = loaded.facts() | extra | {"split": what, "seed": config.seed}
    stop = len(dataset) if options.limit is None else min(len(dataset), options.start + options.limit)
    require(options.start < stop, f"`likelihood.start` must be < {len(dataset)}, the size of the data")
    store = GrowingArrays(folder / "per_image.npz", facts)
    nfe: list[int] = []
    done = options.start + len(store)
    with tqdm(total=stop - options.start, initial=len(store), unit="img", disable=None) as bar:
        for start, batch in _examples(dataset, loaded, done, stop):
            result = log_likelihood(
                trained.model,
                trained.model.sde,
                batch.x,
                divergence=options.divergence,
                ode=options.ode,
                seed=config.seed,
                start=start,
            )
            rows = {
                "bits_per_dim": spec.bits_per_dim(result.log_prob.double()),
                "prior_nats": result.prior,
                "delta_nats": result.delta.mean(1),
                "standard_error_nats": result.standard_error,
                "index": torch.arange(start, start + len(batch.x)),
            }
            if reference is not None:
                rows["gaussian_bits_per_dim"] = spec.bits_per_dim(reference.log_prob(batch.x.cpu()))
            store.append(**{name: value.cpu().numpy() for name, value in rows.items()})
            nfe.append(result.nfe)
            bar.update(len(batch.x))
    store.finish()
    columns = {name: torch.from_numpy(values) for name, values in store.arrays.items()}
    seconds = time.perf_counter() - clock
    report = _report(trained, columns, options.confidence)
    write_json(folder / "likelihood.json", facts | report | {"nfe_per_batch": nfe, "seconds": seconds})
    save_histogram(
        folder / "histogram.png",
        columns["bits_per_dim"],
        label=f"bits/dim, {what} of {spec.name}",
        mean=report["bits_per_dim"],
        half_width=report["half_width"],
    )
    _print(trained, report, what, nfe, seconds)
    click.echo(f"wrote {folder / 'likelihood.json'}, per_image.npz, histogram.png")


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
    bits = _interval(columns["bits_per_dim"], confidence)
    report: dict[str, Any] = {
        "bits_per_dim": bits.mean,
        "half_width": bits.half_width,
        "confidence": confidence,
        "images": len(columns["bits_per_dim"]),
        "units": spec.describe_units(),
        "prior": f"N(0, {trained.model.sde.prior_std:g}² I) at t = {trained.model.sde.t_max:g}",
        "density_at_t": trained.model.sde.t_min,
    }
    errors = columns["standard_error_nats"]
    if bool(errors.isfinite().all()):
        per_dim = spec.bits_per_dim(-errors.double()) - spec.bits_offset
        report["half_width_of_probes"] = probe_half_width(per_dim, confidence)
    if "gaussian_bits_per_dim" in columns:
        gaussian = _interval(columns["gaussian_bits_per_dim"], confidence)
        report |= {"gaussian_bits_per_dim": gaussian.mean, "gaussian_half_width": gaussian.half_width}
    return report


def _interval(values: Tensor, confidence: float) -> Interval:
    return mean_interval(values, confidence) if len(values) > 1 else Interval(float(values[0]), 0.0)


def _print(trained: Trained, report: dict[str, Any], what: str, nfe: list[int], seconds: float) -> None:
    level = f"{100 * report['confidence']:g} %"
    click.echo(
        f"{report['bits_per_dim']:.4f} ± {report['half_width']:.4f} bits/dim ({level} interval of the mean over "
        f"{report['images']} examples, {what} of {trained.spec.name})"
    )
    if "gaussian_bits_per_dim" in report:
        click.echo(
            f"{report['gaussian_bits_per_dim']:.4f} ± {report['gaussian_half_width']:.4f} bits/dim for a Gaussian "
            f"with full covariance fitted to the training split, on the same examples"
        )
    if "half_width_of_probes" in report:
        click.echo(f"of the half-width, ± {report['half_width_of_probes']:.4f} comes from the trace probes")
    click.echo(f"units: {report['units']}")
    click.echo(
        f"density of the data noised to t = {report['density_at_t']:g}, prior {report['prior']}; "
        f"{max(nfe, default=0)} score evaluations at most, {seconds:.1f} s"
    )


def _split(trained: Trained) -> Dataset:
    dataset = trained.config.data.load(trained.config.likelihood.split)
    require(
        dataset.spec.to_dict() == trained.spec.to_dict(),
        f"the data of {trained.spec.name} have changed since the model was trained: {dataset.spec} now, "
        f"{trained.spec} then",
    )
    return dataset


def _file_dataset(file: Path, trained: Trained) -> Dataset:
    """All examples of a file, in the units of the model's data."""
    found = Arrays(file=str(file), test=str(file), levels=trained.spec.levels).load("test")
    spec = dataclasses.replace(trained.spec, classes=())
    if found.spec.shape != spec.shape or (found.spec.levels is None) != (spec.levels is None):
        raise InputError(
            f"{file} holds examples of shape {found.spec.shape} with {found.spec.levels or 'continuous'} levels; the "
            f"model takes {spec.shape} with {spec.levels or 'continuous'} levels"
        )
    return TensorDataset(spec, found.fetch(torch.arange(len(found)))[0])


def _fit_reference(trained: Trained) -> GaussianReference | None:
    config: Config = trained.config
    if trained.spec.dims > REFERENCE_DIMS:
        return None
    train = config.data.load("train")
    rows = [batch.x for _, batch in sweep(train, batch=1024, seed=config.seed, limit=REFERENCE_EXAMPLES)]
    return GaussianReference.fit(torch.cat(rows))
