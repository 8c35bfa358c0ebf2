"""`encode`: data to latents, and back to see what the way costs."""

import time
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor
from tqdm import tqdm

from sde_diffusion.build import plain_config
from sde_diffusion.commands.common import (
    Loaded,
    checkpoint_options,
    ema_options,
    make_folder,
    shared_options,
    show_config,
    write_json,
)
from sde_diffusion.commands.examples import file_facts, open_examples
from sde_diffusion.commands.fitting import fitting
from sde_diffusion.commands.growing import GrowingArrays, Rows, spans
from sde_diffusion.commands.guiding import OWN, announce, class_options
from sde_diffusion.commands.latents import (
    compare_with_prior,
    interval,
    shown,
    solver_name,
    to_latents,
    undo,
    with_error,
)
from sde_diffusion.commands.naming import results_folder
from sde_diffusion.commands.solving import open_to_solve, solver_options
from sde_diffusion.data import Batch, Dataset, DataSpec, sweep
from sde_diffusion.data.base import Split
from sde_diffusion.errors import InputError, require
from sde_diffusion.pictures import save_rows
from sde_diffusion.sampling import require_deterministic

EPILOG = """\b
Examples:
  sde-diffusion encode                                      # test split, newest run
  sde-diffusion encode --limit 64 --rtol 1e-7 --atol 1e-7
  sde-diffusion encode runs/digits_vp --solver dpmpp_2m --steps 50 --split train --limit 100
  sde-diffusion encode --file mine.npy --no-check --out latents

\b
The data, dequantised as for `likelihood`, are taken to be the state at sde.t_min. latents.npz holds the latents `z`,
the `index` of each example, the `labels` of the data and the error of there and back; `decode --latents` reads it. The
picture shows originals, latents and reconstructions. A killed run goes on where it stopped.
"""

PICTURED, POINTS = 12, 5000  # most examples in the picture: images, and points of other data


@click.command(epilog=EPILOG, short_help="Carry data to latents and back.")
@checkpoint_options
@click.option("--split", type=click.Choice(["train", "validation", "test"]), help="Which data. Default: test.")
@click.option("--file", "data_file", type=click.Path(path_type=Path), help="Encode a .npy or .npz file instead.")
@click.option("--start", type=click.IntRange(min=0), default=0, help="First example.")
@click.option("--limit", type=click.IntRange(min=1), help="Number of examples; all by default.")
@solver_options
@click.option("--batch", type=int, help="Examples encoded at once.")
@class_options(OWN, help="Class the model is told, of a conditional one; own: each example's; -1 for none (default).")
@click.option("--check/--no-check", default=True, show_default=True, help="Decode again and report the error.")
@click.option("--dequantise/--no-dequantise", default=True, show_default=True, help="Noise, or the centres of bins.")
@ema_options
@shared_options
def encode(
    checkpoint: Path | None,
    data_file: Path | None,
    config_file: Path | None,
    assignments: tuple[str, ...],
    seed: int | None,
    device: str,
    out: Path | None,
    dry_run: bool,
    ema: bool | str,
    **given: Any,
) -> None:
    """Carry data to the latents of CHECKPOINT, a file or a run's folder; of the newest run without one."""
    require(not (data_file and given["split"]), "--file and --split exclude each other; drop one")
    loaded, asked = open_to_solve(checkpoint, config_file, assignments, given | {"seed": seed}, device=device, ema=ema)
    config = loaded.trained.config
    require_deterministic(config.sampling.solver)
    announce(loaded, dry_run=dry_run)
    split: Split = given["split"] or "test"
    how = {"split": data_file.stem if data_file else split} | {
        key: given[key] for key in ("start", "limit", "check", "dequantise")
    }
    how["own_labels"] = given["label"] == OWN
    if dry_run:
        show_config({"seed": config.seed, "encode": how, "sampling": plain_config(config)["sampling"]})
        return
    dataset = open_examples(loaded.trained, split, data_file)
    head = f"encode_{how['split']}_{solver_name(loaded)}_seed{config.seed}"
    more = {key: how[key] for key in ("start", "limit")} | {
        f"no_{key}": not how[key] for key in ("check", "dequantise")
    }
    word = OWN if how["own_labels"] else None
    folder = out or results_folder(loaded, head, asked, ema=ema, **more, label=word)
    _run(loaded, dataset, folder, loaded.facts() | file_facts(data_file) | {"ema": ema, "encode": how})


def _run(loaded: Loaded, dataset: Dataset, folder: Path, facts: dict[str, Any]) -> None:
    clock, how = time.perf_counter(), facts["encode"]
    require(
        how["start"] < len(dataset), f"`--start` must be < {len(dataset)}, the size of the data, got {how['start']}"
    )
    fixed = {key: value for key, value in facts.items() if key != "checkpoint"}
    store = GrowingArrays(make_folder(folder) / "latents.npz", fixed, loaded.ranks)
    _encode_all(loaded, dataset, store, how)
    store.finish(without=("decoded", "nfe"))
    if not loaded.ranks.main:
        return
    columns = {name: torch.from_numpy(values) for name, values in store.arrays.items()}
    report = _report(loaded, columns) | {"seconds": time.perf_counter() - clock}
    write_json(folder / "encode.json", facts | report)
    _picture(folder / "encode.png", loaded, dataset, columns)
    _print(loaded, report, how["split"])
    click.echo(f"wrote {folder / 'latents.npz'}, encode.json, encode.png")


def _encode_all(loaded: Loaded, dataset: Dataset, store: GrowingArrays, how: dict[str, Any]) -> None:
    """Encode what `store` lacks, batch by batch."""
    config, begin = loaded.trained.config, how["start"]
    stop = len(dataset) if how["limit"] is None else min(len(dataset), begin + how["limit"])

    def compute(first: int, count: int) -> Rows:
        _, batch = next(
            sweep(
                dataset,
                batch=count,
                seed=config.seed,
                device=loaded.device,
                dequantise=how["dequantise"],
                start=first,
                limit=count,
            )
        )
        labels = _labels(loaded, batch, first, own=how["own_labels"])
        latents = to_latents(loaded, batch.x, labels, first)
        rows = {
            "z": latents.x,
            "index": torch.arange(first, first + count),
            "nfe": torch.full((count,), latents.nfe),
        }
        if batch.label is not None:
            rows["labels"] = batch.label
        if how["check"]:
            rows |= _there_and_back(loaded.trained.spec, batch.x, undo(loaded, latents.x, labels, first).x)
        return {name: value.cpu().numpy() for name, value in rows.items()}

    with tqdm(total=stop - begin, unit="img", disable=None) as bar:
        store.fill(spans(begin, stop, config.sampling.batch), fitting(loaded, compute), bar)


def _labels(loaded: Loaded, batch: Batch, first: int, *, own: bool) -> Tensor:
    """The classes that the model is told, (B,)."""
    if not own:
        return loaded.trained.config.sampling.labels(first, len(batch.x))
    if batch.label is None:
        raise InputError(
            f"--label {OWN} needs examples with labels, but these have none; name a class, or leave it out"
        )
    return batch.label


def _there_and_back(spec: DataSpec, x: Tensor, back: Tensor) -> dict[str, Tensor]:
    """What came back, in data units, and how far it is from what went, for each example, (B,), in model coordinates."""
    error = (back.double() - x.double()).flatten(1)
    decoded = spec.from_model(back)
    rows = {"decoded": decoded, "rms": error.square().mean(1).sqrt(), "largest": error.abs().amax(1)}
    if spec.levels is not None:
        rows["exact"] = (decoded == spec.from_model(x)).flatten(1).double().mean(1)
    return rows


def _report(loaded: Loaded, columns: dict[str, Tensor]) -> dict[str, Any]:
    spec, sde = loaded.trained.spec, loaded.trained.model.sde
    report: dict[str, Any] = {
        "examples": len(columns["z"]),
        "nfe": [int(columns["nfe"].min()), int(columns["nfe"].max())],
        "t": [sde.t_min, sde.t_max],
        "z": compare_with_prior(columns["z"], sde.prior_std),
    }
    if "rms" in columns:
        unit = spec.unit if spec.levels is None else spec.levels / 2
        report["round_trip"] = {
            **interval("rms", columns["rms"]),
            "rms_max": float(columns["rms"].max()),
            "largest": float(columns["largest"].max()),
            "data_units_per_model_unit": unit,
            **interval("rms_in_data_units", columns["rms"] * unit),
            **(interval("exact", columns["exact"]) if "exact" in columns else {}),
        }
    return report


def _print(loaded: Loaded, report: dict[str, Any], what: str) -> None:
    z, count = report["z"], report["examples"]
    spec = loaded.trained.spec
    low, high = report["nfe"]
    evaluations = f"{low}–{high}" if low < high else str(low)
    click.echo(
        f"{count} example{'s' if count > 1 else ''}, {what} of {spec.name}, from t = {report['t'][0]:g} to "
        f"{report['t'][1]:g}; {evaluations} score evaluations each way, {report['seconds']:.1f} s"
    )
    click.echo(
        f"latents: mean {z['mean']:.3g}, std {z['std']:.4g}, norm {with_error(z, 'norm')}; "
        f"the prior's: 0, {z['prior_std']:.4g}, {z['prior_norm']:.4g}"
    )
    if "round_trip" not in report:
        return
    back = report["round_trip"]
    unit = "data units" if spec.levels is None else "levels"
    click.echo(
        f"there and back: rms {with_error(back, 'rms')} per example, at most {back['rms_max']:.2g}, any number "
        f"{back['largest']:.2g}, in model coordinates; rms {with_error(back, 'rms_in_data_units')} {unit}"
        + (f"; {100 * back['exact']:.3f} % of the numbers come back exactly" if "exact" in back else "")
    )


def _picture(path: Path, loaded: Loaded, dataset: Dataset, columns: dict[str, Tensor]) -> None:
    count = PICTURED if loaded.trained.spec.is_image else POINTS
    originals = dataset.fetch(columns["index"][:count])[0]
    states = [originals, shown(loaded, columns["z"][:count])]
    states += [columns["decoded"][:count]] if "decoded" in columns else []
    titles = ["data", "latents, scaled", "reconstructions"][: len(states)]
    save_rows(path, loaded.trained.spec, states, titles)
