"""Models of other packages: import and export. A new one is a file here and a row in `FORMATS`."""

from pathlib import Path

from sde_diffusion.errors import InputError, require
from sde_diffusion.exchange.base import Format, Imported
from sde_diffusion.exchange.diffusers.format import Diffusers
from sde_diffusion.exchange.run import first_checkpoint, run_config
from sde_diffusion.exchange.score_sde.format import ScoreSDE
from sde_diffusion.exchange.slots import Slot, to_ours, to_theirs
from sde_diffusion.exchange.weights import Weights
from sde_diffusion.registry import lookup

FORMATS: dict[str, type[Format]] = {"diffusers": Diffusers, "score_sde": ScoreSDE, "weights": Weights}


def find_format(path: Path, name: str | None) -> Format:
    """The format of that name, or without one the first that knows its own files in `path`.

    Raises:
        InputError: Nothing at `path`, an unknown name, or content that no format knows.
    """
    require(path.exists(), f"there is nothing at {path}")
    if name is not None:
        return lookup(FORMATS, name, "format")()
    for row in FORMATS.values():
        if row().detects(path):
            return row()
    raise InputError(f"cannot tell what {path} is; known formats: {', '.join(FORMATS)}; give one by --format")


__all__ = [
    "FORMATS",
    "Format",
    "Imported",
    "Slot",
    "find_format",
    "first_checkpoint",
    "run_config",
    "to_ours",
    "to_theirs",
]
