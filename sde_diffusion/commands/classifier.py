"""`classifier`: train a noise-aware classifier, for classifier guidance."""

from pathlib import Path

import click

from sde_diffusion.checkpoints import RUNS
from sde_diffusion.commands.annotated import annotated
from sde_diffusion.commands.asked import flags, request
from sde_diffusion.commands.common import shared_options
from sde_diffusion.commands.resuming import config_to_resume, run_name, training_options
from sde_diffusion.commands.train import KEYS, run
from sde_diffusion.config.build import build_classifier_trainer, choose_device
from sde_diffusion.runtime.ranks import joined
from sde_diffusion.training import CLASSIFIERS, RunFolder

EPILOG = """\b
Examples:
  sde-diffusion classifier --config digits_conditional --steps 1000
  sde-diffusion classifier --sde vp --set classifier.network.channels=64 --out runs/classifier
  sde-diffusion classifier --set data=two_moons --set classifier.network=mlp --set model.sigma_data=1
  sde-diffusion sample runs/digits_vp --label 3 --guidance 2 --set sampling.guidance.name=classifier \\
    --set sampling.guidance.checkpoint=runs/digits_vp_classifier

\b
It reads the config of the model that it is to guide: process, data, model.sigma_data, training and classifier. The
log has the accuracy on held-out examples by t. Ctrl-C saves a checkpoint first. --resume RUN continues the run, and so
does the command that started it.
"""

SECTIONS = ("seed", "sde", "data", "training", "classifier")  # of a config: those that it reads, and model.sigma_data


@click.command(epilog=EPILOG, short_help="Train a classifier of noisy data, for guidance.")
@training_options
@shared_options
def classifier(
    sde: str | None,
    steps: int | None,
    resume: Path | None,
    timeout: float,
    config_file: Path | None,
    assignments: tuple[str, ...],
    seed: int | None,
    device: str,
    out: Path | None,
    dry_run: bool,
) -> int:
    """Train a classifier that knows noise: p(y | x_t) at every t. Without a config: of the embedded 8×8 digits."""
    target = choose_device(device)
    with joined(target, timeout=timeout) as ranks:
        with ranks.agreed():
            given = request(config_file, assignments, flags({"sde": sde, "steps": steps, "seed": seed}, KEYS))
            config = given.over(config_to_resume(resume, config_file, out, "classifier")).config()
            config.training.check_ranks(ranks.size)
        if not dry_run:
            path = resume or out or RUNS / f"{run_name(config, config_file)}_classifier"
            folder = RunFolder(path, CLASSIFIERS)
            return run(build_classifier_trainer, config, folder, target, ranks=ranks, kind="classifier")
        if ranks.main:
            click.echo(annotated(config, SECTIONS), nl=False)
            config.data.load("train")
        return 0
