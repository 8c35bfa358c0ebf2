"""What the commands share: options, where the checkpoint is, and results that grow on the disk."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar
from zipfile import BadZipFile

import click
import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from sde_diffusion.build import Config, Trained, choose_device, load_trained, plain_config, read_config
from sde_diffusion.config import Raw, differences
from sde_diffusion.errors import InputError, require
from sde_diffusion.files import write_atomically
from sde_diffusion.training import RunFolder, load_checkpoint, newest_run
from sde_diffusion.version import __version__

RUNS = Path("runs")

Command = TypeVar("Command", bound=Callable[..., Any])


def shared_options(command: Command) -> Command:
    """--config, --set, --seed, --device, --out and --dry-run."""
    for option in reversed(
        [
            click.option("--config", "config_file", type=click.Path(path_type=Path), help="A YAML file of sections."),
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


def as_assignments(**values: Any) -> list[str]:
    """Overrides `section.key=value` of the options that were given; `__` in a keyword stands for the dot."""
    return [f"{key.replace('__', '.')}={json.dumps(value)}" for key, value in values.items() if value is not None]


def show_config(raw: Raw) -> None:
    """Print a resolved config as YAML."""
    click.echo(yaml.safe_dump(raw, sort_keys=False, allow_unicode=True), nl=False)


@dataclass(frozen=True, eq=False)
class Loaded:
    """A trained model, the checkpoint it came from and where results about it go."""

    trained: Trained
    path: Path
    folder: Path
    digest: str
    device: torch.device

    def facts(self) -> dict[str, Any]:
        """What a result must say to be made again."""
        return {
            "checkpoint": str(self.path),
            "checkpoint_sha256": self.digest,
            "step": self.trained.step,
            "config": plain_config(self.trained.config),
            "device": str(self.device),
            "torch": torch.__version__,
            "sde_diffusion": __version__,
        }


def find_checkpoint(given: Path | None) -> Path:
    """The checkpoint file that `given` names: a file, a run's folder, or, if None, the newest run.

    Raises:
        InputError: There is none.
    """
    if given is not None and not given.is_dir():
        return given
    run = newest_run(RUNS) if given is None else RunFolder(given)
    found = run.latest() if run else None
    if found is None:
        where = RUNS if given is None else given
        raise InputError(f"there is no checkpoint in {where}; train one first: python cli.py train --sde vp")
    return found


def load(
    given: Path | None, config_file: Path | None, assignments: list[str], *, device: str, ema: bool = True
) -> Loaded:
    """Load a checkpoint; file and overrides may change its seed and the sections that the weights do not fix.

    Raises:
        InputError: No checkpoint, a bad one, a bad config, or a change of what the checkpoint fixes.
    """
    path = find_checkpoint(given)
    checkpoint = load_checkpoint(path)
    own: Raw = checkpoint.meta["config"]
    config: Config = read_config(config_file, assignments, own)
    for key, (before, after) in differences(own, plain_config(config)).items():
        require(
            key == "seed" or key.partition(".")[0] in ("sampling", "likelihood", "training"),
            f"`{key}` is {before} in the checkpoint {path} and cannot be changed to {after} here; train a new run",
        )
    target = choose_device(device)
    folder = path.parent.parent if path.parent.name == "checkpoints" else path.parent
    trained = load_trained(checkpoint, config, target, ema=ema)
    click.echo(
        f"using {path} (step {trained.step}, {trained.spec.name}, {plain_config(config)['sde']['name']}) on {target}"
    )
    return Loaded(trained, path, folder, hashlib.sha256(path.read_bytes()).hexdigest(), target)


class GrowingArrays:
    """Arrays with one row per example that grow batch by batch in an .npz file, so that long work can be killed.

    Args:
        path: The file, complete only at the end.
        facts: What the rows depend on; rows of other facts are not taken up.
    """

    def __init__(self, path: Path, facts: dict[str, Any]) -> None:
        self._path = path
        self._partial = path.with_suffix(".partial.npz")
        self._key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        self.arrays: dict[str, NDArray[Any]] = {}
        self._resume()

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values()))) if self.arrays else 0

    def append(self, **rows: NDArray[Any]) -> None:
        """Add a batch and write what there is."""
        self.arrays = {
            name: np.concatenate([self.arrays[name], new]) if self.arrays else new for name, new in rows.items()
        }
        self._write(self._partial, self.arrays | {"key": np.array(self._key)})

    def finish(self) -> None:
        """Write the complete file."""
        self._write(self._path, self.arrays)
        self._partial.unlink(missing_ok=True)

    def _resume(self) -> None:
        if not self._partial.exists():
            return
        try:
            with np.load(self._partial, allow_pickle=False) as stored:
                if str(stored["key"]) == self._key:
                    self.arrays = {name: stored[name] for name in stored.files if name != "key"}
        except (OSError, ValueError, KeyError, BadZipFile):
            return  # not ours, or damaged: start anew

    @staticmethod
    def _write(path: Path, arrays: dict[str, NDArray[Any]]) -> None:
        buffer = BytesIO()
        np.savez(buffer, allow_pickle=False, **arrays)
        write_atomically(path, buffer.getvalue())


def write_json(path: Path, facts: dict[str, Any]) -> None:
    """Write facts as indented JSON."""
    write_atomically(path, (json.dumps(facts, indent=2, allow_nan=False) + "\n").encode())
