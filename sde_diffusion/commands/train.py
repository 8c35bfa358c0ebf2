"""`train`: a new run, or more of an old one."""

from pathlib import Path
from typing import Any

import click

from sde_diffusion.build import Config, build_trainer, choose_device, count_parameters, plain_config, read_config
from sde_diffusion.commands.common import RUNS, as_assignments, shared_options, show_config
from sde_diffusion.config import differences
from sde_diffusion.errors import InputError
from sde_diffusion.sde import SDES
from sde_diffusion.training import RunFolder, load_checkpoint

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
FREE = {
    f"training.{name}"
    for name in (
        "steps",
        "keep",
        "workers",
        "log_every",
        "validate_every",
        "sample_every",
        "save_every",
        "preview_count",
    )
} | {"training.validation_examples"}


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
    overrides = [*assignments, *as_assignments(sde__name=sde, training__steps=steps, seed=seed)]
    config = read_config(config_file, overrides)
    raw = plain_config(config)
    folder = RunFolder(out or RUNS / f"{raw['data']['name']}_{raw['sde']['name']}")
    target = choose_device(device)
    if dry_run:
        show_config(raw)
        return 0
    with folder.locked():
        return _train(config, folder, raw, target)


def _train(config: Config, folder: RunFolder, raw: dict[str, Any], target: Any) -> int:
    trainer = build_trainer(config, folder, target)
    newest = folder.latest()
    if newest is not None:
        checkpoint = load_checkpoint(newest, target)
        _same_run(checkpoint.meta["config"], raw, folder)
        trainer.restore(checkpoint)
    folder.write_config(raw)
    spec, total = trainer.train.spec, config.training.steps
    click.echo(
        f"{spec.name}: {len(trainer.train)} examples of shape {spec.shape}; {raw['sde']['name']}; "
        f"{count_parameters(trainer.model):,} parameters on {target}"
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


def _same_run(old: dict[str, Any], new: dict[str, Any], folder: RunFolder) -> None:
    for key, (before, after) in differences(old, new).items():
        if key not in FREE and key.partition(".")[0] not in ("sampling", "likelihood"):
            raise InputError(
                f"the run {folder.path} was started with {key} = {before}, not {after}; resume it with its own "
                f"{folder.path / 'config.yaml'}, or choose another --out"
            )
