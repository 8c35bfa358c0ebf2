"""What the commands share: options, where the checkpoint is, and results that grow on the disk."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click
import torch
import yaml

from sde_diffusion.build import MODEL, Config, Trained, choose_device, load_trained, plain_config
from sde_diffusion.checkpoints import find_checkpoint, home, require_described, stored_config
from sde_diffusion.commands.asked import Request, request
from sde_diffusion.config import Raw, differences
from sde_diffusion.data import DataSpec
from sde_diffusion.distributed import ALONE, TIMEOUT, Ranks, joined
from sde_diffusion.errors import InputError, require
from sde_diffusion.fields import changes
from sde_diffusion.files import write_atomically
from sde_diffusion.pretrained import PRETRAINED, name_of, pretrained
from sde_diffusion.training import Checkpoint, RunFolder, load_checkpoint
from sde_diffusion.version import __version__
from sde_diffusion_cli.configs import ConfigType

PATIENCE = 7 * 86400.0  # seconds that one process waits for the batch that another has in hand
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
                "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Override, e.g. sde.t_min=1e-4."
            ),
            click.option("--seed", type=int, help="Seed of every random number. Default: the config's, or 0."),
            click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps."),
            click.option("--out", type=click.Path(path_type=Path), help="Folder for what is written."),
            click.option("-n", "--dry-run", is_flag=True, help="Print the resolved config and stop."),
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
        help="Seconds that one of several processes (torchrun) waits for the others before it gives up.",
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
        metavar="[LENGTH]",
        callback=chosen,
        help="Averaged weights (default), those of the run's first rate; or LENGTH of the average over the training "
        "time, 0.05 or 0.15, also LENGTH@STEP; or another rate that the run kept; or none.",
    )
    last = click.option(
        "--no-ema", is_flag=True, expose_value=False, is_eager=True, callback=note, help="The last weights."
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
        help=f"A model that comes with the package: {', '.join(PRETRAINED)}.",
    )
    return argument(option(command))


def show_config(raw: Raw) -> None:
    """Print a resolved config as YAML."""
    click.echo(yaml.safe_dump(raw, sort_keys=False, allow_unicode=True), nl=False)


@dataclass(frozen=True, eq=False)
class Loaded:
    """A trained model, the checkpoint and config it came from, where results about it go, and who shares the work."""

    trained: Trained
    path: Path
    folder: Path
    digest: str
    device: torch.device
    own: Raw
    guide_digest: str | None = None
    ranks: Ranks = ALONE

    @property
    def name(self) -> str:
        """What the checkpoint is called."""
        ours = name_of(self.path)
        return f"pretrained {ours}" if ours else str(self.path)

    def describe(self) -> str:
        """What is used, for the user."""
        process = plain_config(self.trained.config)["sde"]["name"]
        weights = f"; {self.trained.origin}" if self.trained.origin else ""
        what = f"step {self.trained.step}, {self.trained.spec.name}, {process}{weights}"
        return f"using {self.name} ({what}) on {self._where}" + (
            "" if self.ranks.alone else f", {self.ranks.size} processes"
        )

    @property
    def _where(self) -> str:
        """The device; of several processes its kind, for what they give together is not of one of them."""
        return str(self.device) if self.ranks.alone else self.device.type

    def facts(self) -> dict[str, Any]:
        """What a result must say to be made again."""
        return {
            "checkpoint": self.name,
            "checkpoint_sha256": self.digest,
            **({} if self.guide_digest is None else {"guide_sha256": self.guide_digest}),
            "step": self.trained.step,
            "config": plain_config(self.trained.config),
            "device": self._where,
            "torch": torch.__version__,
            "sde_diffusion": __version__,
        }


@dataclass(frozen=True, eq=False)
class Found:
    """A model's checkpoint before its network is built: enough to settle what is asked of it.

    Attributes:
        own: The config that it was trained with, every default written out.
        device: Where it is to be used, by this process.
        ranks: The processes that share the work.
    """

    path: Path
    checkpoint: Checkpoint
    own: Raw
    device: torch.device
    ranks: Ranks

    @property
    def spec(self) -> DataSpec:
        """Of the data that it was trained on."""
        return DataSpec.from_dict(self.checkpoint.meta["data"])

    def load(self, config: Config, *, ema: bool | str = True) -> Loaded:
        """The model, to be used as `config` says.

        Raises:
            InputError: A change of what the checkpoint fixes, or no such average of the weights.
        """
        for key, (before, after) in differences(self.own, plain_config(config)).items():
            require(
                changes(config, key) != "weights",
                f"`{key}` is {before} in the checkpoint {self.path} and cannot be changed to {after} here; train a "
                f"new run",
            )
        folder = home(self.path)
        trained = load_trained(self.checkpoint, config, self.device, ema=ema, run=RunFolder(folder))
        digest = hashlib.sha256(self.path.read_bytes()).hexdigest()
        return Loaded(trained, self.path, folder, digest, self.device, self.own, ranks=self.ranks)


def find(given: Path | None, device: str) -> Found:
    """The checkpoint that `given` names, see `find_checkpoint`, and who is to use it where.

    Raises:
        InputError: No checkpoint, or a bad one; no such device.
    """
    asked = choose_device(device)
    ranks = meet(asked)
    path = find_checkpoint(given)
    checkpoint = load_checkpoint(path)
    require(
        checkpoint.meta.get("kind", MODEL) == MODEL,
        f"{path} holds a classifier, not a model; it is a guide: --set sampling.guidance.checkpoint={path}",
    )
    require_described(checkpoint, path)
    return Found(path, checkpoint, stored_config(checkpoint, path), ranks.device(asked), ranks)


def load(given: Path | None, wanted: Request | None = None, *, device: str, ema: bool | str = True) -> Loaded:
    """A checkpoint's model, to be used as its own config says, or as the user asks.

    Raises:
        InputError: See `find`, `Request.over`, `Asked.config` and `Found.load`.
    """
    found = find(given, device)
    asked = (wanted or request(None, ())).over(found.own)
    return found.load(asked.config(), ema=ema)


def meet(device: torch.device) -> Ranks:
    """The processes that share this command; all but the first are silent until it ends. Outside a command: one.

    Raises:
        InputError: See `joined`.
    """
    context = click.get_current_context(silent=True)
    if context is None:
        return ALONE
    ranks = context.with_resource(joined(device, timeout=PATIENCE))
    if not ranks.main:
        context.with_resource(_silent())
    return ranks


@contextmanager
def _silent() -> Iterator[None]:
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


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
