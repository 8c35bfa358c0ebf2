"""The options of training, and those that continue a run."""

from pathlib import Path

import click

from sde_diffusion.checkpoints import stored_config
from sde_diffusion.commands.common import Command, timeout_option
from sde_diffusion.config.build import Config, plain_config
from sde_diffusion.config.parse import Raw, read_yaml
from sde_diffusion.errors import require
from sde_diffusion.fields import Kind
from sde_diffusion.sde import SDES
from sde_diffusion.training import CLASSIFIERS, RunFolder, load_checkpoint
from sde_diffusion_cli.exits import program

FOLDERS = {"model": "checkpoints", "classifier": CLASSIFIERS}  # of a run: where the checkpoints of a kind are


def training_options(command: Command) -> Command:
    """--sde, --steps, --resume and --timeout."""
    command = timeout_option(command)
    for option in (
        click.option(
            "--resume",
            type=click.Path(path_type=Path),
            metavar="RUN",
            help="Continue the run in this folder from its newest checkpoint, with its own config.",
        ),
        click.option("--steps", type=int, help="Number of optimizer steps, those before --resume included."),
        click.option("--sde", help=f"The process: {', '.join(SDES)}. Default: vp, or the config's."),
    ):
        command = option(command)
    return command


def run_name(config: Config, file: Path | None) -> str:
    """What a new run is called: by its config file, else by data and process."""
    raw = plain_config(config)
    return f"{raw['data']['name']}_{raw['sde']['name']}" if file is None else file.stem


def resuming(folder: RunFolder, kind: Kind) -> str:
    """The command that continues a run."""
    return f"{program()} {'classifier' if kind == 'classifier' else 'train'} --resume {folder.path}"


def config_to_resume(resume: Path | None, file: Path | None, out: Path | None, kind: Kind = "model") -> Raw:
    """The config of the run to be continued; empty for a new run.

    Raises:
        InputError: There is no such run, or a config or a folder is given beside it.
    """
    if resume is None:
        return {}
    for name, value in (("--config", file), ("--out", out)):
        require(value is None, f"--resume takes config and folder from the run {resume}; drop {name} {value}")
    newest, own = RunFolder(resume, FOLDERS[kind]).latest(), resume / "config.yaml"
    if newest is not None:
        return stored_config(load_checkpoint(newest), newest)
    require(own.is_file(), f"there is no run in {resume}: neither a checkpoint of a {kind} nor a config.yaml")
    return read_yaml(own)


def remedies(folder: RunFolder, kind: Kind) -> dict[str, str]:
    """What to do about a run that is another, and about data of another length, as `continuing.REMEDIES`."""
    return {
        "run": f"continue it as it is: {resuming(folder, kind)}; or start another in another folder with --out",
        "data": "continue with what is there, in another order: --set training.changed_data=accept",
    }
