"""What the commands share: options, where the checkpoint is, and results that grow on the disk."""

import dataclasses
import functools
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click
import yaml

from sde_diffusion.config.parse import Raw
from sde_diffusion.errors import InputError, require
from sde_diffusion.pretrained import PRETRAINED, pretrained
from sde_diffusion.runtime.atomic_write import write_atomically
from sde_diffusion.runtime.ranks import TIMEOUT
from sde_diffusion_cli.configs import ConfigType

_USUAL, _LAST = "usual", "sde_diffusion.last_weights"  # a value of --ema, and where --no-ema is noted
_PRETRAINED = "sde_diffusion.pretrained"  # where --pretrained is noted

Command = TypeVar("Command", bound=Callable[..., Any])


def shared_options(command: Command) -> Command:
    """--config, --set, --seed, --device, --out and --dry-run."""
    for option in reversed(
        [
            click.option(
                "--config",
                "config_file",
                type=ConfigType(),
                metavar="FILE|NAME",
                help="A YAML file of settings, or the name of a config that comes with the package (see `configs`).",
            ),
            click.option(
                "--set",
                "assignments",
                multiple=True,
                metavar="KEY=VALUE",
                help="Set one key of the config, for example sde.t_min=1e-4. May be repeated.",
            ),
            click.option("--seed", type=int, help="Seed of every random number. Default: the config's, or 0."),
            click.option(
                "--device",
                default="auto",
                show_default=True,
                help="Where to compute: auto (CUDA where there is one), cpu, cuda, cuda:N or mps.",
            ),
            click.option(
                "--out",
                type=click.Path(path_type=Path),
                help="The folder for the results. Each command has a default of its own.",
            ),
            click.option(
                "-n", "--dry-run", is_flag=True, help="Print the config that results, every default included, and stop."
            ),
        ]
    ):
        command = option(command)
    return command


def timeout_option(command: Command) -> Command:
    """--timeout."""
    return click.option(
        "--timeout",
        type=float,
        default=TIMEOUT,
        show_default=True,
        help="With several processes (torchrun): seconds that each waits for the others before it gives up.",
    )(command)


def ema_options(command: Command) -> Command:
    """--ema and --no-ema, together `ema: bool | str` as `training.averaged` takes it."""

    def chosen(context: click.Context, _: click.Parameter, value: str) -> bool | str:
        last = bool(context.meta.get(_LAST))
        require(not last or value == _USUAL, f"--ema {value} and --no-ema exclude each other; drop one")
        require(
            not Path(value).exists(), f"--ema takes a length, got the path {value}; name the checkpoint before --ema"
        )
        return False if last or value == "none" else True if value == _USUAL else value

    def note(context: click.Context, _: click.Parameter, value: bool) -> None:
        context.meta[_LAST] = value

    average = click.option(
        "--ema",
        is_flag=False,
        flag_value=_USUAL,
        default=_USUAL,
        metavar="[AVERAGE]",
        callback=chosen,
        help="Which weights to use. Without it: the run's first average (`training.ema_decay`). "
        "--ema 0.9999: the average of another decay rate that the run kept. "
        "--ema 0.05: an average over a span of σ_rel = 0.05 of the training. "
        "--ema 0.05@2000: the same average as it was at step 2000. "
        "--ema none: the last weights.",
    )
    last = click.option(
        "--no-ema",
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=note,
        help="Use the last weights, without averaging.",
    )
    return average(last(command))


def checkpoint_options(command: Command) -> Command:
    """The argument CHECKPOINT, or --pretrained in its place, together `checkpoint: Path | None`."""

    def note(context: click.Context, _: click.Parameter, value: str | None) -> None:
        if value is not None:
            context.meta[_PRETRAINED] = pretrained(value)

    def chosen(context: click.Context, _: click.Parameter, value: Path | None) -> Path | None:
        ours: Path | None = context.meta.get(_PRETRAINED)
        require(
            ours is None or value is None, f"--pretrained and a checkpoint exclude each other, got {value}; drop one"
        )
        return ours or value

    kind = click.Path(path_type=Path)
    argument = click.argument("checkpoint", required=False, type=kind, callback=chosen)
    option = click.option(
        "--pretrained",
        metavar="NAME",
        expose_value=False,
        is_eager=True,
        callback=note,
        help=f"Use a model that comes with the package: {', '.join(PRETRAINED)}.",
    )
    return argument(option(command))


@dataclass(frozen=True, kw_only=True)
class Options:
    """What every command that uses a model is told besides its own options."""

    checkpoint: Path | None
    config_file: Path | None
    assignments: tuple[str, ...]
    seed: int | None
    device: str
    ema: bool | str
    out: Path | None
    overwrite: bool
    dry_run: bool


def result_options(command: Callable[..., None]) -> Callable[..., None]:
    """--ema, --overwrite and those of all commands, which the command gets as `Options`, with CHECKPOINT."""
    names = [field.name for field in dataclasses.fields(Options)]

    @functools.wraps(command)
    def packed(**values: Any) -> None:
        command(Options(**{name: values.pop(name) for name in names}), **values)

    overwrite = click.option("--overwrite", is_flag=True, help="Replace results of another request in the same folder.")
    return ema_options(shared_options(overwrite(packed)))


def show_config(raw: Raw) -> None:
    """Print a resolved config as YAML."""
    click.echo(yaml.safe_dump(raw, sort_keys=False, allow_unicode=True), nl=False)


def make_folder(path: Path) -> Path:
    """Make the folder of results, before the work whose results it takes.

    Raises:
        InputError: It cannot be written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "it is no folder" if isinstance(error, FileExistsError) else error.strerror
        raise InputError(f"cannot write to {path}: {reason}; choose another --out") from None
    require(os.access(path, os.W_OK), f"cannot write to {path}: Permission denied; choose another --out")
    return path


def write_json(path: Path, facts: dict[str, Any]) -> None:
    """Write facts as indented JSON."""
    write_atomically(path, (json.dumps(facts, indent=2, allow_nan=False) + "\n").encode())
