"""`train`: a new run, or more of an old one."""

import logging
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import click
import torch

from sde_diffusion.checkpoints import RUNS
from sde_diffusion.commands.annotated import annotated
from sde_diffusion.commands.asked import flags, request
from sde_diffusion.commands.common import shared_options
from sde_diffusion.commands.estimate import does_not_fit, print_estimate
from sde_diffusion.commands.resuming import (
    config_to_resume,
    remedies,
    resuming,
    run_name,
    training_options,
)
from sde_diffusion.config.build import (
    Config,
    build_trainer,
    check_training,
    choose_device,
    count_parameters,
    plain_config,
    resolve_perf,
)
from sde_diffusion.continuing import continued
from sde_diffusion.errors import InputError
from sde_diffusion.fields import Kind
from sde_diffusion.runtime.memory import is_shortage
from sde_diffusion.runtime.performance import precision_advice, resolve_precision
from sde_diffusion.runtime.ranks import Ranks, joined
from sde_diffusion.training import RunFolder, Trainer

EPILOG = """\b
Examples:
  sde-diffusion train --sde vp
  sde-diffusion train --config fashion_mnist_vp
  sde-diffusion train --config fashion_mnist_vp --set training.batch=128 --out runs/wide
  sde-diffusion train --sde subvp --set loss.weighting=simple --steps 500 --dry-run
  sde-diffusion train --resume runs/wide --steps 3000

\b
Ctrl-C saves a checkpoint first. --resume RUN continues the run from its newest checkpoint, and so does the command that
started it. The names that --config knows: sde-diffusion configs
Several processes, one for each GPU: torchrun --nproc-per-node 4 --no-python sde-diffusion train ...
"""

KEYS = {"sde": "sde.name", "steps": "training.steps", "seed": "seed"}  # options -> the config keys they stand for
SECTIONS = ("seed", "sde", "data", "model", "loss", "training", "perf")  # of a config: those that training reads


@click.command(epilog=EPILOG)
@training_options
@click.option("--no-estimate", is_flag=True, help="With --dry-run: measure no time and no memory.")
@shared_options
def train(
    sde: str | None,
    steps: int | None,
    resume: Path | None,
    timeout: float,
    no_estimate: bool,
    config_file: Path | None,
    assignments: tuple[str, ...],
    seed: int | None,
    device: str,
    out: Path | None,
    dry_run: bool,
) -> int:
    """Train a score model. Without a config: the embedded 8×8 digits, about 2 minutes on 2 cores."""
    target = choose_device(device)
    with joined(target, timeout=timeout) as ranks:
        with ranks.agreed():
            given = request(config_file, assignments, flags({"sde": sde, "steps": steps, "seed": seed}, KEYS))
            config = given.over(config_to_resume(resume, config_file, out)).config()
            check_training(config)
            config.training.check_ranks(ranks.size)
        if not dry_run:
            folder = resume or out or RUNS / run_name(config, config_file)
            return run(build_trainer, config, RunFolder(folder), target, ranks=ranks)
        if ranks.main:
            _foresee(config, target, ranks, estimate=not no_estimate)
        return 0


def _foresee(config: Config, device: torch.device, ranks: Ranks, *, estimate: bool) -> None:
    """Print the config, and what a run of it will take.

    Raises:
        InputError: The run could not begin, such as for data that cannot be read.
    """
    click.echo(annotated(config, SECTIONS), nl=False)
    asked = config.training.precision
    click.echo(f"# on {device}: {resolve_precision(asked, device)}, {resolve_perf(config, device)}")
    if (advice := precision_advice(asked, device, asked=asked)) is not None:
        click.echo(f"# {advice}")
    if estimate:
        print_estimate(config, ranks.device(device), lambda line: click.echo(line, err=True), ranks=ranks.size)
    else:
        config.data.load("train")


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
        words = remedies(folder, kind)
        trainer, config, notes = continued(build, config, folder, device, ranks, kind=kind, remedies=words)
        if ranks.main:
            for note in notes:
                click.echo(note, err=True)
            click.echo(_described(trainer, folder, config, kind))
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
                click.echo(f"the same command resumes it, and so does: {resuming(folder, kind)}")
        return 128 + stopped if stopped else 0


def _described(trainer: Trainer, folder: RunFolder, config: Config, kind: Kind) -> str:
    """What is trained, where it stands and how far it goes, for the user."""
    spec, ranks, process = trainer.train.spec, trainer.ranks, plain_config(config)["sde"]["name"]
    where = str(trainer.device) if ranks.alone else f"{ranks.size} ranks of {trainer.device.type}"
    what = (
        f"{spec.name}: {len(trainer.train)} examples of shape {spec.shape}; {process}; "
        f"{count_parameters(trainer.model):,} parameters on {where} in {trainer.config.precision}\n"
    )
    step, total = trainer.step, config.training.steps
    if step >= total:
        return (
            what + f"{folder.path} already has {step} steps; to go on: {resuming(folder, kind)} --steps {step + 1000}"
        )
    return what + f"{'resuming' if step else 'training'} {folder.path} from step {step} to {total}"
