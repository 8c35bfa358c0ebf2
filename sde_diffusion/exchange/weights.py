"""Our own model as one small file: the weights it is used with, without what only more training needs.

`sample`, `likelihood` and the others take it as they take any checkpoint; it is a quarter of one, or less.
"""

from pathlib import Path

from sde_diffusion.config.build import Trained, plain_config
from sde_diffusion.config.parse import Raw
from sde_diffusion.errors import InputError
from sde_diffusion.exchange.base import Format, Imported
from sde_diffusion.training import Checkpoint, save_checkpoint
from sde_diffusion.training.checkpoint import SUFFIX
from sde_diffusion.training.ema import MAIN


class Weights(Format):
    """`weights.safetensors`, a checkpoint of this package that holds one set of weights, in float32."""

    def detects(self, path: Path) -> bool:
        return False

    def read(self, path: Path, *, shape: tuple[int, ...] | None, config: Raw) -> Imported:
        raise InputError(f"weights of this package need no import: use {path} as a checkpoint, e.g. sample {path}")

    def write(self, trained: Trained, folder: Path) -> list[Path]:
        tensors = {f"{MAIN}.{name}": value for name, value in trained.model.state_dict().items()}
        for name, part in trained.parts.items():
            tensors |= {f"parts.{name}.{key}": value for key, value in part.state_dict().items()}
        facts = {"config": plain_config(trained.config), "data": trained.spec.to_dict(), "step": trained.step}
        file = folder / f"weights{SUFFIX}"
        save_checkpoint(file, Checkpoint(tensors, facts))
        return [file]
