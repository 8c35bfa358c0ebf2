"""A trained model in use: its checkpoint is found, what is asked of it settled, and only then the network built."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch

from sde_diffusion.checkpoints import find_checkpoint, home, require_described, stored_config
from sde_diffusion.commands.asked import Request, request
from sde_diffusion.config.build import MODEL, Config, Trained, choose_device, load_trained, plain_config
from sde_diffusion.config.parse import Raw, differences
from sde_diffusion.data import DataSpec
from sde_diffusion.errors import require
from sde_diffusion.fields import changes
from sde_diffusion.pretrained import name_of
from sde_diffusion.runtime.ranks import ALONE, Ranks, joined
from sde_diffusion.training import Checkpoint, RunFolder, load_checkpoint
from sde_diffusion.version import __version__

PATIENCE = 7 * 86400.0  # seconds that one process waits for the batch that another has in hand


@dataclass(frozen=True, eq=False)
class Session:
    """A trained model, the checkpoint and config it came from, where results about it go, and who shares the work."""

    trained: Trained
    path: Path
    folder: Path
    digest: str
    device: torch.device
    own: Raw
    guide_digest: str | None = None
    ema: bool | str = True
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
            "ema": self.ema,
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

    def load(self, config: Config, *, ema: bool | str = True) -> Session:
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
        return Session(trained, self.path, folder, digest, self.device, self.own, ema=ema, ranks=self.ranks)


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


def load(given: Path | None, wanted: Request | None = None, *, device: str, ema: bool | str = True) -> Session:
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
