"""`classifier`: train a noise-aware classifier, for classifier guidance."""

from pathlib import Path

import click

from sde_diffusion.build import build_classifier_trainer, choose_device, plain_config
from sde_diffusion.checkpoints import RUNS
from sde_diffusion.commands.asked import flags, request
from sde_diffusion.commands.common import shared_options, show_config, timeout_option
from sde_diffusion.commands.train import KEYS, run
from sde_diffusion.distributed import joined
from sde_diffusion.sde import SDES
from sde_diffusion.training import CLASSIFIERS, RunFolder

EPILOG = """\b
Examples:
  sde-diffusion classifier --config configs/digits_conditional.yaml --steps 1000
  sde-diffusion classifier --sde vp --set classifier.network.channels=64 --out runs/classifier
  sde-diffusion classifier --set data=two_moons --set classifier.network=mlp --set model.sigma_data=1
  sde-diffusion sample runs/digits_vp --label 3 --guidance 2 --set sampling.guidance.name=classifier \\
    --set sampling.guidance.checkpoint=runs/digits_vp_classifier

\b
It reads the config of the model that it is to guide: process, data, model.sigma_data, training and classifier. The
log has the accuracy on held-out examples by t. The same command again resumes the run. Ctrl-C saves first.
"""


@click.command(epilog=EPILOG, short_help="Train a classifier of noisy data, for guidance.")
@click.option("--sde", help=f"The process: {', '.join(SDES)}.")
@click.option("--steps", type=int, help="Optimizer steps in all.")
@timeout_option
@shared_options
def classifier(
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
    """Train a classifier that knows noise: p(y | x_t) at every t. Without a config: of the embedded 8×8 digits."""
    target = choose_device(device)
    with joined(target, timeout=timeout) as ranks:
        with ranks.agreed():
            given = flags({"sde": sde, "steps": steps, "seed": seed}, KEYS)
            config = request(config_file, assignments, given).over({}).config()
            config.training.check_ranks(ranks.size)
        raw = plain_config(config)
        name = f"{raw['data']['name']}_{raw['sde']['name']}" if config_file is None else config_file.stem
        if not dry_run:
            folder = RunFolder(out or RUNS / f"{name}_classifier", CLASSIFIERS)
            return run(build_classifier_trainer, config, folder, target, ranks=ranks, kind="classifier")
        if ranks.main:
            show_config({key: raw[key] for key in ("seed", "sde", "data", "training", "classifier")})
        return 0
