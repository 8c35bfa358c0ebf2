"""A run and its continuation: the options of training, the run's own config, and what must not change on the way."""

from pathlib import Path

import click

from sde_diffusion.checkpoints import stored_config
from sde_diffusion.commands.common import Command, timeout_option
from sde_diffusion.config.build import Config, plain_config, read_config
from sde_diffusion.config.parse import Raw, differences, read_yaml
from sde_diffusion.data import Dataset
from sde_diffusion.errors import InputError, require
from sde_diffusion.fields import Kind, changes
from sde_diffusion.sde import SDES
from sde_diffusion.training import CLASSIFIERS, Checkpoint, RunFolder, load_checkpoint
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


def require_same_run(old: Raw, config: Config, folder: RunFolder, kind: Kind, *, step: int) -> list[str]:
    """Refuse to continue with what would be another run.

    Args:
        old: The config of the run so far.
        step: Where it stands.

    Returns:
        A line on each change that is allowed, but not without effect.

    Raises:
        InputError: A change of what the run is.
    """
    notes = []
    for key, (before, after) in differences(old, plain_config(config)).items():
        if key == "training.precision" and before == "auto":  # of an imported model, not trained so far
            continue
        if changes(config, key, kind) != "nothing":
            raise InputError(
                f"the run {folder.path} was started with {key} = {before}, not {after}; continue it as it is: "
                f"{resuming(folder, kind)}; or start another in another folder with --out"
            )
        falling = min(config.training.falling_from(), read_config(None, (), old).training.falling_from())
        if key == "training.steps" and step > falling:
            notes.append(
                f"the learning rate now falls until step {after} instead of {before}; the result will differ from "
                f"that of a run of {after} steps from the start"
            )
        if key == "training.precision":
            notes.append(f"{key} is now {after} instead of {before}; the result will differ from that of either")
        if key.startswith("data."):
            notes.append(f"{key} is now {after} instead of {before}; the data are taken to be the same")
    return notes


def require_same_data(now: Dataset, checkpoint: Checkpoint, config: Config, folder: RunFolder) -> list[str]:
    """Refuse to continue with other data.

    Returns:
        A line on a change that is allowed.

    Raises:
        InputError: Data of another specification, or of another length unless `training.changed_data` accepts that.
    """
    spec, before = now.spec, checkpoint.meta["data"]
    require(
        before == spec.to_dict(),
        f"the data of the run {folder.path} have changed: {spec} now, {before} before",
    )
    count, then = len(now), checkpoint.meta.get("examples")
    if then is None or count == then:  # older checkpoints do not say
        return []
    require(
        config.training.changed_data == "accept",
        f"the training split of the run {folder.path} had {then} examples and now has {count}; restore the data, or "
        f"continue with what is there, in another order: --set training.changed_data=accept",
    )
    return [f"there are {count} examples instead of {then}; from here on they come in another order"]
