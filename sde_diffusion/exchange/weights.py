"""Our own model as one small file: the weights it is used with, without what only more training needs.

`sample`, `likelihood` and the others take it as they take any checkpoint; it is a quarter of one, or less.
"""

from pathlib import Path

from sde_diffusion.checkpoints import write_weights
from sde_diffusion.config.build import Trained
from sde_diffusion.config.parse import Raw
from sde_diffusion.errors import InputError
from sde_diffusion.exchange.base import Format, Imported
from sde_diffusion.training.checkpoint import SUFFIX


class Weights(Format):
    """`weights.safetensors`, a checkpoint of this package that holds one set of weights, in float32."""

    def detects(self, path: Path) -> bool:
        return False

    def read(self, path: Path, *, shape: tuple[int, ...] | None, config: Raw) -> Imported:
        raise InputError(f"weights of this package need no import: use {path} as a checkpoint, e.g. sample {path}")

    def write(self, trained: Trained, folder: Path) -> list[Path]:
        file = folder / f"weights{SUFFIX}"
        write_weights(file, trained.model, trained.spec, config=trained.config, step=trained.step, parts=trained.parts)
        return [file]
