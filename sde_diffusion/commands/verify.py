"""`verify`: everything against closed forms on this machine, and a trained model against what can be known of it."""

import time
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import click
import torch
from tqdm import tqdm

from sde_diffusion.commands.common import make_folder, write_json
from sde_diffusion.commands.session import Session, load
from sde_diffusion.config.build import choose_device
from sde_diffusion.data import sweep
from sde_diffusion.errors import RunError, require
from sde_diffusion.likelihood import mean_interval
from sde_diffusion.pictures import save_curves
from sde_diffusion.registry import lookup
from sde_diffusion.verify import CHECKS, Check, Outcome, Setting, collect, run
from sde_diffusion.verify.model import SOLVED, Examination
from sde_diffusion.version import __version__

EPILOG = """\b
Examples:
  sde-diffusion verify                          # every row of every registry: about half a minute
  sde-diffusion verify --only solvers --verbose
  sde-diffusion verify --device cuda --dtype float32 --out verified
  sde-diffusion verify --run runs/digits_vp     # and the trained model, on its held-out data
  sde-diffusion verify --run runs/digits_vp --only model

\b
Bounds are derived: a multiple of the dtype's spacing, 4.5 standard errors, or a slope within 0.25 of the declared
order. Checks that a dtype cannot resolve are skipped and reported. Exit code 1 if a check fails.
"""

AREAS = CHECKS | {"model": None}  # the last is for --run
DTYPES = {"float64": torch.float64, "float32": torch.float32}
HELD_OUT, FITTED = 256, 20_000  # examples of the score's error, and of the Gaussian
LISTED = 5  # failures in the last line


@click.command(epilog=EPILOG, short_help="Check everything against closed forms.")
@click.option("--only", multiple=True, metavar="AREA", help=f"Check only this: {', '.join(AREAS)}. May be repeated.")
@click.option(
    "--run", "checkpoint", type=click.Path(path_type=Path), help="Also check the trained model in this folder or file."
)
@click.option(
    "--device",
    default="auto",
    show_default=True,
    help="Where to compute: auto (CUDA where there is one), cpu, cuda or cuda:N.",
)
@click.option("--dtype", default="float64", show_default=True, help=f"The number format: {', '.join(DTYPES)}.")
@click.option("--verbose", is_flag=True, help="Print a line for every check instead of one for every kind of check.")
@click.option("--fail-fast", is_flag=True, help="Stop at the first failure.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="The folder for verify.json. Default: none is written, or the run's with --run.",
)
def verify(
    only: tuple[str, ...],
    checkpoint: Path | None,
    device: str,
    dtype: str,
    verbose: bool,
    fail_fast: bool,
    out: Path | None,
) -> None:
    """Check every process, prediction, solver and likelihood against closed forms, here and now."""
    setting = Setting(choose_device(device), lookup(DTYPES, dtype, "dtype"))
    require(setting.device.type != "mps", "`device` must have float64, in which the references are; use --device cpu")
    areas = {area: lookup(AREAS, area, "area") for area in only or CHECKS}
    require("model" not in areas or checkpoint is not None, "`--only model` needs a trained model: add --run RUN")
    folder = None if out is None else make_folder(out)
    clock = time.perf_counter()
    checks = [(area, check) for area, make in areas.items() if make for check in collect(area, make, setting)]
    examined = None
    if checkpoint:
        session = load(checkpoint, device=device)
        click.echo(session.describe())
        folder, examined = folder or make_folder(session.folder / "verify"), _examine(session)
        checks += [("model", check) for check in examined.checks()]
    outcomes = _run_all(checks, fail_fast)
    seconds = time.perf_counter() - clock
    _print(outcomes, verbose)
    if examined and folder and len(outcomes) == len(checks):
        _report(examined, folder)
    if folder:
        facts = {"device": str(setting.device), "dtype": dtype, "seconds": seconds}
        facts |= {"torch": torch.__version__, "sde_diffusion": __version__}
        write_json(folder / "verify.json", facts | {"checks": [vars(o) | _finite(o) for o in outcomes]})
        click.echo(f"wrote {folder / 'verify.json'}")
    counts = {status: sum(o.status == status for o in outcomes) for status in ("ok", "skipped", "failed")}
    skipped = f", {counts['skipped']} skipped" if counts["skipped"] else ""
    click.echo(f"{counts['ok']} checks passed{skipped} in {seconds:.1f} s on {setting.device} in {dtype}")
    if counts["failed"]:
        raise RunError(_complaint(outcomes))


def _examine(session: Session) -> Examination:
    """The model with held-out and training examples, dequantised as in training."""
    trained, learned = session.trained, session.trained.learned_noise
    seed, rows, data = trained.config.seed, [], trained.config.data
    flat = trained.config.training.dequantise.uniform
    for examples, limit in ((data.load("test"), HELD_OUT), (data.load("train"), FITTED)):
        batches = sweep(examples, batch=1024, seed=seed, device=session.device, dequantise=flat, limit=limit)
        x = torch.cat([batch.x for _, batch in batches])
        if learned is not None:
            values = trained.spec.from_model(x)
            x = learned.draw(trained.spec, trained.model.sde, values, seed=seed).x[0]
        rows.append(x)
    return Examination(trained, *rows)


def _report(examined: Examination, folder: Path) -> None:
    """The tables and the picture of a trained model."""
    levels, trip = examined.levels, examined.round_trip
    click.echo(f"\nerror of ε̂ by noise level, per dimension, on {len(examined.held_out)} held-out examples")
    click.echo(f"{'λ':>7}  {'t':>8}  {'network':>16}  {'Gaussian':>16}  {'better by':>16}")
    for level in levels:
        parts = (level.error, level.gaussian, mean_interval(level.gain))
        numbers = (f"{f'{mean:.3g} ± {half_width:.1g}':>16}" for mean, half_width in parts)
        click.echo(f"{level.half_log_snr:7.2f}  {level.t:8.2g}  {'  '.join(numbers)}")
    click.echo(
        f"The Gaussian is the best denoiser that is linear in x_t. Over all levels the network is better by "
        f"{examined.gain} bits/dim.\nThe floor, the error of these data's true score, is unknown."
    )
    click.echo(f"\nbits/dim by tolerance of the ODE, on {SOLVED} held-out examples, the same probe each at all")
    for solve in examined.solves:
        click.echo(f"{solve.tolerance:7.0e}  {solve.bits}  off the tightest by {solve.off}, {solve.nfe} evaluations")
    click.echo(f"\nencoded and decoded: off by {float(trip.mean()):.2g} on average, {float(trip.max()):.2g} at most")
    save_curves(
        folder / "score_error.png",
        [level.half_log_snr for level in levels],
        {"network": [level.error for level in levels], "Gaussian": [level.gaussian for level in levels]},
        xlabel="λ = log(a/std), noise at the left",
        ylabel="held-out error of ε̂ per dimension",
    )
    write_json(folder / "model.json", examined.as_dict())
    click.echo(f"wrote {folder / 'score_error.png'}, model.json")


def _run_all(checks: Sequence[tuple[str, Check]], fail_fast: bool) -> list[Outcome]:
    outcomes: list[Outcome] = []
    with tqdm(checks, unit="check", disable=None, leave=False, dynamic_ncols=True) as bar:
        for area, check in bar:
            bar.set_postfix_str(f"{area}: {check.family}", refresh=False)
            outcomes.append(run(area, check))
            if fail_fast and outcomes[-1].status == "failed":
                break
    return outcomes


def _finite(outcome: Outcome) -> dict[str, Any]:
    """JSON has no NaN: what has no number has null."""
    numbers = {"error": outcome.error, "bound": outcome.bound}
    return {name: value if abs(value) < float("inf") else None for name, value in numbers.items()}


def _print(outcomes: Sequence[Outcome], verbose: bool) -> None:
    """A line for each family with its worst case, or for each check."""
    lines: list[tuple[str, ...]] = []
    for (area, family), group in groupby(sorted(outcomes, key=_place(outcomes)), key=lambda o: (o.area, o.family)):
        members = list(group)
        shown = [[o] for o in members] if verbose else [members]
        lines.extend((area, family, *_row(max(part, key=lambda o: o.share), part)) for part in shown)
    headers = ("area", "what", "case" if verbose else "worst case", "error", "bound", "checks")
    widths = [max(map(len, column)) for column in zip(headers, *lines, strict=True)]
    before = headers[0]
    for area, *rest in (headers, *lines):
        if area != before:
            click.echo()
        cells = [cell.ljust(width) for cell, width in zip((area, *rest), widths, strict=True)]
        click.echo("  ".join(cells).rstrip())
        before = area


def _place(outcomes: Iterable[Outcome]) -> Any:
    """Families in the order of their first check."""
    order: dict[tuple[str, str], int] = {}
    for outcome in outcomes:
        order.setdefault((outcome.area, outcome.family), len(order))
    return lambda outcome: order[outcome.area, outcome.family]


def _row(worst: Outcome, members: Sequence[Outcome]) -> tuple[str, str, str, str]:
    counts = {status: sum(o.status == status for o in members) for status in ("ok", "failed", "skipped")}
    told = " ".join(f"{count} {status}" for status, count in counts.items() if count)
    if worst.note:
        return f"{worst.case}: {worst.note}", "", "", told
    return worst.case, f"{worst.error:.1e}", f"{worst.bound:.1e}", told


def _complaint(outcomes: Sequence[Outcome]) -> str:
    failed = [o for o in outcomes if o.status == "failed"]
    told = [f"{o.area}: {o.family} ({o.case}, {o.note or f'{o.error:.2g} > {o.bound:.2g}'})" for o in failed[:LISTED]]
    more = f"; and {len(failed) - LISTED} more" if len(failed) > LISTED else ""
    return f"{len(failed)} of {len(outcomes)} checks failed: {'; '.join(told)}{more}"
