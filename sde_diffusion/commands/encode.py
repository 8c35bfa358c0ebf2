"""`encode`: data to latents, and back to see what the way costs."""

from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from sde_diffusion.commands.common import Options, checkpoint_options, result_options, show_config
from sde_diffusion.commands.examples import file_facts, open_examples
from sde_diffusion.commands.growing import Rows, spans
from sde_diffusion.commands.guiding import OWN, announce, class_options
from sde_diffusion.commands.job import Job, run_job
from sde_diffusion.commands.latents import (
    between,
    compare_with_prior,
    interval,
    shown,
    solver_name,
    to_latents,
    undo,
    with_error,
)
from sde_diffusion.commands.naming import results_folder
from sde_diffusion.commands.session import Session
from sde_diffusion.commands.solving import open_to_solve, solver_options
from sde_diffusion.config.build import plain_config
from sde_diffusion.config.parse import Raw
from sde_diffusion.data import Batch, Dataset, DataSpec, sweep
from sde_diffusion.data.dataset import Split
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
@click.option("--split", type=click.Choice(["train", "validation", "test"]), help="The data to encode. Default: test.")
@click.option(
    "--file",
    "data_file",
    type=click.Path(path_type=Path),
    help="Encode the examples in this .npy or .npz file instead.",
)
@click.option("--start", type=click.IntRange(min=0), default=0, help="Number of the first example. Default: 0.")
@click.option("--limit", type=click.IntRange(min=1), help="How many examples to encode. Default: all.")
@solver_options
@click.option("--batch", type=int, help="How many examples to encode at once. It changes speed and memory.")
@class_options(OWN, help="The class given to a conditional model. `own` gives each example its own. Default: -1, none.")
@click.option(
    "--check/--no-check", default=True, show_default=True, help="Decode the latents again and report the error."
)
@click.option(
    "--dequantise/--no-dequantise",
    default=True,
    show_default=True,
    help="Add noise within the bins of discrete data, or take their centres.",
)
@result_options
def encode(
    options: Options,
    data_file: Path | None,
    **given: Any,
) -> None:
    """Carry data to the latents of CHECKPOINT, a file or a run's folder; of the newest run without one."""
    require(not (data_file and given["split"]), "--file and --split exclude each other; drop one")
    session, asked = open_to_solve(options, given)
    config = session.trained.config
    require_deterministic(config.sampling.solver)
    announce(session, dry_run=options.dry_run)
    split: Split = given["split"] or "test"
    how = {"split": data_file.stem if data_file else split} | {
        key: given[key] for key in ("start", "limit", "check", "dequantise")
    }
    how["own_labels"] = given["label"] == OWN
    if options.dry_run:
        show_config({"seed": config.seed, "encode": how, "sampling": plain_config(config)["sampling"]})
        return
    dataset = open_examples(session.trained, split, data_file)
    head = f"encode_{how['split']}_{solver_name(session)}_seed{config.seed}"
    more = {key: how[key] for key in ("start", "limit")} | {
        f"no_{key}": not how[key] for key in ("check", "dequantise")
    }
    word = OWN if how["own_labels"] else None
    folder = options.out or results_folder(session, head, "sampling", asked, **more, label=word)
    require(
        how["start"] < len(dataset), f"`--start` must be < {len(dataset)}, the size of the data, got {how['start']}"
    )
    facts = session.facts() | file_facts(data_file) | {"encode": how}
    run_job(session, folder, _job(session, dataset, folder, facts), options)


def _job(session: Session, dataset: Dataset, folder: Path, facts: Raw) -> Job:
    config, how = session.trained.config, facts["encode"]
    begin = how["start"]
    stop = len(dataset) if how["limit"] is None else min(len(dataset), begin + how["limit"])

    def finish(rows: Rows, seconds: float) -> tuple[Raw, list[str]]:
        columns = {name: torch.from_numpy(values) for name, values in rows.items()}
        report = _report(session, columns) | {"seconds": seconds}
        _picture(folder / "encode.png", session, dataset, columns)
        return report, _lines(session, report, how["split"])

    return Job(
        files=("latents.npz", "encode.json", "encode.png"),
        arrays="latents.npz",
        facts=facts,
        spans=spans(begin, stop, config.sampling.batch),
        compute=partial(_encode, session, dataset, how),
        finish=finish,
        without=("decoded", "nfe"),
    )


def _encode(session: Session, dataset: Dataset, how: Raw, first: int, count: int) -> Rows:
    """The examples `first … first + count − 1`, there and, if that is wanted, back."""
    batches = sweep(
        dataset,
        batch=count,
        seed=session.trained.config.seed,
        device=session.device,
        dequantise=how["dequantise"],
        start=first,
        limit=count,
    )
    _, batch = next(batches)
    labels = _labels(session, batch, first, own=how["own_labels"])
    latents = to_latents(session, batch.x, labels, first)
    rows = {"z": latents.x, "index": torch.arange(first, first + count), "nfe": torch.full((count,), latents.nfe)}
    if batch.label is not None:
        rows["labels"] = batch.label
    if how["check"]:
        rows |= _there_and_back(session.trained.spec, batch.x, undo(session, latents.x, labels, first).x)
    return {name: value.cpu().numpy() for name, value in rows.items()}


def _labels(session: Session, batch: Batch, first: int, *, own: bool) -> Tensor:
    """The classes that the model is told, (B,)."""
    if not own:
        return session.trained.config.sampling.labels(first, len(batch.x))
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


def _report(session: Session, columns: dict[str, Tensor]) -> dict[str, Any]:
    spec, sde = session.trained.spec, session.trained.model.sde
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


def _lines(session: Session, report: Raw, what: str) -> list[str]:
    """The report for people."""
    z, count, spec = report["z"], report["examples"], session.trained.spec
    lines = [
        f"{count} example{'s' if count > 1 else ''}, {what} of {spec.name}, from t = {report['t'][0]:g} to "
        f"{report['t'][1]:g}; {between(*report['nfe'])} score evaluations each way, {report['seconds']:.1f} s",
        f"latents: mean {z['mean']:.3g}, std {z['std']:.4g}, norm {with_error(z, 'norm')}; "
        f"the prior's: 0, {z['prior_std']:.4g}, {z['prior_norm']:.4g}",
    ]
    if "round_trip" in report:
        back, unit = report["round_trip"], "data units" if spec.levels is None else "levels"
        lines.append(
            f"there and back: rms {with_error(back, 'rms')} per example, at most {back['rms_max']:.2g}, any number "
            f"{back['largest']:.2g}, in model coordinates; rms {with_error(back, 'rms_in_data_units')} {unit}"
            + (f"; {100 * back['exact']:.3f} % of the numbers come back exactly" if "exact" in back else "")
        )
    return lines


def _picture(path: Path, session: Session, dataset: Dataset, columns: dict[str, Tensor]) -> None:
    count = PICTURED if session.trained.spec.is_image else POINTS
    originals = dataset.fetch(columns["index"][:count])[0]
    states = [originals, shown(session, columns["z"][:count])]
    states += [columns["decoded"][:count]] if "decoded" in columns else []
    titles = ["data", "latents, scaled", "reconstructions"][: len(states)]
    save_rows(path, session.trained.spec, states, titles)
