"""`train`: a new run, or more of an old one."""

import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
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
from sde_diffusion.checkpoints import RUNS, stored_config
from sde_diffusion.commands.asked import flags, request
from sde_diffusion.commands.common import shared_options, show_config, timeout_option
from sde_diffusion.commands.estimate import does_not_fit, print_estimate
from sde_diffusion.config import Raw, differences
from sde_diffusion.distributed import Ranks, joined
from sde_diffusion.errors import InputError, require
from sde_diffusion.fields import Kind, changes
from sde_diffusion.memory import is_shortage
from sde_diffusion.perf import precision_advice, resolve_precision
from sde_diffusion.sde import SDES
from sde_diffusion.training import RunFolder, Trainer, load_checkpoint

EPILOG = """\b
Examples:
  sde-diffusion train --sde vp
  sde-diffusion train --config configs/fashion_mnist_vp.yaml
  sde-diffusion train --config configs/fashion_mnist_vp.yaml --set training.batch=128 --out runs/wide
  sde-diffusion train --sde subvp --set loss.weighting=simple --steps 500 --dry-run

\b
The same command again resumes the run where its newest checkpoint stands. Ctrl-C saves first.
Several processes, one for each GPU: torchrun --nproc-per-node 4 --no-python sde-diffusion train ...
"""

KEYS = {"sde": "sde.name", "steps": "training.steps", "seed": "seed"}  # options -> the config keys they stand for


@click.command(epilog=EPILOG)
@click.option("--sde", help=f"The process: {', '.join(SDES)}.")
@click.option("--steps", type=int, help="Optimizer steps in all.")
@timeout_option
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
    timeout: float,
) -> int:
    """Train a score model. Without a config: the embedded 8×8 digits, about 2 minutes on 2 cores."""
    target = choose_device(device)
    with joined(target, timeout=timeout) as ranks:
        with ranks.agreed():
            given = flags({"sde": sde, "steps": steps, "seed": seed}, KEYS)
            config = request(config_file, assignments, given).over({}).config()
            check_training(config)
            config.training.check_ranks(ranks.size)
        raw = plain_config(config)
        name = f"{raw['data']['name']}_{raw['sde']['name']}" if config_file is None else config_file.stem
        if not dry_run:
            return run(build_trainer, config, RunFolder(out or RUNS / name), target, ranks=ranks)
        if ranks.main:
            show_config(raw)
            precision = resolve_precision(config.training.precision, target)
            click.echo(f"# on {target}: {precision}, {resolve_perf(config, target)}")
            asked = config.training.precision
            if (advice := precision_advice(asked, target, asked=asked)) is not None:
                click.echo(f"# {advice}")
            print_estimate(config, ranks.device(target), lambda line: click.echo(line, err=True), ranks=ranks.size)
        return 0


def run(
    build: Callable[[Config, RunFolder, torch.device, Ranks], Trainer],
    config: Config,
    folder: RunFolder,
    device: torch.device,
    *,
    ranks: Ranks,
    kind: Kind = "model",
) -> int:
    """Train what `build` makes, from the newest checkpoint of the run or from the start.

    Args:
        ranks: The processes that do so together; rank 0 locks the folder, writes and speaks.
        kind: What is trained.

    Returns:
        The exit code.

    Raises:
        InputError: The folder is held by another process, the run is another, or its data have changed.
    """
    device, asked = ranks.device(device), config.training.precision
    if not ranks.main:
        logging.disable(logging.WARNING)  # what rank 0 says too
    with ExitStack() as held:
        with ranks.agreed():
            if ranks.main:
                held.enter_context(folder.locked())
        trainer, config = _prepared(build, config, folder, device, ranks, kind)
        if ranks.main:
            click.echo(_described(trainer, folder, config))
            if (advice := precision_advice(config.training.precision, device, asked=asked)) is not None:
                click.echo(advice, err=True)
        if trainer.step >= config.training.steps:
            return 0
        stopped, short = None, False
        try:
            stopped = trainer.run()
        except (RuntimeError, MemoryError) as error:
            if not is_shortage(error):
                raise
            short = True
        if short:  # outside, where what the step held is free again
            del trainer
            raise InputError(does_not_fit(config, device, ranks.size))
        if ranks.main:
            click.echo(f"{'stopped' if stopped else 'done'} at step {trainer.step}: {folder.latest()}")
            if stopped:
                click.echo("the same command resumes it")
        return 128 + stopped if stopped else 0


def _prepared(
    build: Callable[[Config, RunFolder, torch.device, Ranks], Trainer],
    config: Config,
    folder: RunFolder,
    device: torch.device,
    ranks: Ranks,
    kind: Kind,
) -> tuple[Trainer, Config]:
    """A trainer that stands where the newest checkpoint of the run does, and the config with the run's precision."""
    newest = ranks.share(folder.latest() if ranks.main else None)
    checkpoint = stored = None
    with ranks.agreed():
        if newest is not None:
            checkpoint = load_checkpoint(newest, device if ranks.alone else "cpu")
            stored = stored_config(checkpoint, newest)
        config = resolve_precision_of(config, device, stored["training"]["precision"] if stored else "auto")
    config = replace(config, training=replace(config.training, precision=ranks.share(config.training.precision)))
    raw = plain_config(config)
    with ranks.agreed():
        if checkpoint is not None and stored is not None:
            falls = checkpoint.meta["step"] > config.training.falling_from()
            falls |= checkpoint.meta["step"] > read_config(None, (), stored).training.falling_from()
            _same_run(stored, config, folder, kind, tell=ranks.main, falls=falls)
        trainer = build(config, folder, device, ranks)
        if checkpoint is not None:
            now, then = trainer.train.spec, checkpoint.meta["data"]
            require(then == now.to_dict(), f"the data of the run {folder.path} have changed: {now} now, {then} then")
            _same_length(len(trainer.train), checkpoint.meta.get("examples"), folder, config, tell=ranks.main)
            trainer.restore(checkpoint)
        if ranks.main:
            folder.write_config(raw)
    return trainer, config


def _described(trainer: Trainer, folder: RunFolder, config: Config) -> str:
    """What is trained, where it stands and how far it goes, for the user."""
    spec, ranks, process = trainer.train.spec, trainer.ranks, plain_config(config)["sde"]["name"]
    where = str(trainer.device) if ranks.alone else f"{ranks.size} ranks of {trainer.device.type}"
    what = (
        f"{spec.name}: {len(trainer.train)} examples of shape {spec.shape}; {process}; "
        f"{count_parameters(trainer.model):,} parameters on {where} in {trainer.config.precision}\n"
    )
    step, total = trainer.step, config.training.steps
    if step >= total:
        return what + f"{folder.path} already has {step} steps; --steps {step + 1000} goes on"
    return what + f"{'resuming' if step else 'training'} {folder.path} from step {step} to {total}"


def _same_length(now: int, then: int | None, folder: RunFolder, config: Config, *, tell: bool) -> None:
    if then is None or now == then:  # older checkpoints do not tell
        return
    require(
        config.training.changed_data == "accept",
        f"the training split of the run {folder.path} had {then} examples and now has {now}; restore the data, or "
        f"go on with what is there, in another order: --set training.changed_data=accept",
    )
    if tell:
        click.echo(f"{now} examples where there were {then}: another order from here on", err=True)


def _same_run(old: Raw, config: Config, folder: RunFolder, kind: Kind, *, tell: bool, falls: bool) -> None:
    """Refuse to go on with another run, and say what has changed.

    Args:
        falls: Whether a learning rate that depends on the number of steps has been used.
    """
    for key, (before, after) in differences(old, plain_config(config)).items():
        if key == "training.precision" and before == "auto":  # of an imported model, not trained so far
            continue
        if changes(config, key, kind) != "nothing":
            raise InputError(
                f"the run {folder.path} was started with {key} = {before}, not {after}; resume it with its own "
                f"{folder.path / 'config.yaml'}, or choose another --out"
            )
        if not tell:
            continue
        if key == "training.steps" and falls:
            click.echo(f"the learning rate now falls over {after} steps, not {before}: another run from here on")
        if key == "training.precision":
            click.echo(f"training.precision was {before} and is now {after}: another run from here on", err=True)
        if key.startswith("data."):
            click.echo(f"{key} was {before} and is now {after}; taken to be the same data", err=True)
