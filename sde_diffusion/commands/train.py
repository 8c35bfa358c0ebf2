"""`train`: a new run, or more of an old one."""

from collections.abc import Callable, Sequence
from pathlib import Path

import click
import torch

from sde_diffusion.build import (
    Config,
    build_trainer,
    check_training,
    choose_device,
    count_parameters,
    plain_config,
    read_config,
    resolve_perf,
    resolve_precision_of,
)
from sde_diffusion.commands.common import RUNS, as_assignments, shared_options, show_config, stored_config
from sde_diffusion.config import Raw, differences
from sde_diffusion.errors import InputError, require
from sde_diffusion.perf import resolve_precision
from sde_diffusion.sde import SDES
from sde_diffusion.training import RunFolder, Trainer, load_checkpoint

EPILOG = """\b
Examples:
  python cli.py train --sde vp
  python cli.py train --config configs/fashion_mnist_vp.yaml
  python cli.py train --config configs/fashion_mnist_vp.yaml --set training.batch=128 --out runs/wide
  python cli.py train --sde subvp --set loss.weighting=simple --steps 500 --dry-run

\b
The same command again resumes the run where its newest checkpoint stands. Ctrl-C saves first.
"""

# may differ from the run's first command without making it another run
FREE = (
    *("training.steps", "training.keep", "training.workers", "training.validation_examples"),
    *("training.log_every", "training.validate_every", "training.sample_every", "training.save_every"),
    *("training.snapshot_every", "training.preview", "training.preview_count"),
    *("perf", "sampling", "likelihood", "classifier"),
    *("data.root", "data.download", "data.file", "data.test", "data.labels", "data.test_labels"),
)


@click.command(epilog=EPILOG)
@click.option("--sde", help=f"The process: {', '.join(SDES)}.")
@click.option("--steps", type=int, help="Optimizer steps in all.")
@shared_options
def train(
    sde: str | None,
    steps: int | None,
    config_file: Path | None,
    assignments: tuple[str, ...],
    seed: int | None,
    device: str,
    out: Path | None,
    dry_run: bool,
) -> int:
    """Train a score model. Without a config: the embedded 8×8 digits, about 3 minutes on 2 cores."""
    named = as_assignments(sde__name=sde)  # before the options that belong to it
    config = read_config(config_file, [*named, *assignments, *as_assignments(training__steps=steps, seed=seed)])
    check_training(config)
    raw = plain_config(config)
    name = f"{raw['data']['name']}_{raw['sde']['name']}" if config_file is None else config_file.stem
    folder = RunFolder(out or RUNS / name)
    target = choose_device(device)
    if dry_run:
        show_config(raw)
        precision = resolve_precision(config.training.precision, target)
        click.echo(f"# on {target}: {precision}, {resolve_perf(config, target)}")
        return 0
    with folder.locked():
        return run(build_trainer, config, folder, target)


def run(
    build: Callable[[Config, RunFolder, torch.device], Trainer],
    config: Config,
    folder: RunFolder,
    device: torch.device,
    *,
    free: Sequence[str] = FREE,
) -> int:
    """Train what `build` makes, from the newest checkpoint of the run or from the start.

    Args:
        folder: Locked.
        free: Sections and keys that may differ from those of the run's first command.

    Returns:
        The exit code.

    Raises:
        InputError: The run is another, or its data have changed.
    """
    config = resolve_precision_of(config, device)
    raw = plain_config(config)
    newest = folder.latest()
    checkpoint = None if newest is None else load_checkpoint(newest, device)
    if newest is not None and checkpoint is not None:
        _same_run(stored_config(checkpoint, newest), raw, folder, free)
    trainer = build(config, folder, device)
    if checkpoint is not None:
        require(
            checkpoint.meta["data"] == trainer.train.spec.to_dict(),
            f"the data of the run {folder.path} have changed: {trainer.train.spec} now, {checkpoint.meta['data']} then",
        )
        trainer.restore(checkpoint)
    folder.write_config(raw)
    spec, total = trainer.train.spec, config.training.steps
    click.echo(
        f"{spec.name}: {len(trainer.train)} examples of shape {spec.shape}; {raw['sde']['name']}; "
        f"{count_parameters(trainer.model):,} parameters on {device}"
    )
    if trainer.step >= total:
        click.echo(f"{folder.path} already has {trainer.step} steps; --steps {trainer.step + 1000} goes on")
        return 0
    click.echo(f"{'resuming' if trainer.step else 'training'} {folder.path} from step {trainer.step} to {total}")
    stopped = trainer.run()
    click.echo(f"{'stopped' if stopped else 'done'} at step {trainer.step}: {folder.latest()}")
    if stopped:
        click.echo("the same command resumes it")
        return 128 + stopped
    return 0


def _same_run(old: Raw, new: Raw, folder: RunFolder, free: Sequence[str]) -> None:
    for key, (before, after) in differences(old, new).items():
        if not any(f"{key}.".startswith(f"{allowed}.") for allowed in free):
            raise InputError(
                f"the run {folder.path} was started with {key} = {before}, not {after}; resume it with its own "
                f"{folder.path / 'config.yaml'}, or choose another --out"
            )
        if key == "training.steps" and new["training"]["decay"] == "cosine":
            click.echo(f"the learning rate now falls over {after} steps, not {before}: another run from here on")
        if key.startswith("data."):
            click.echo(f"{key} was {before} and is now {after}; taken to be the same data", err=True)
