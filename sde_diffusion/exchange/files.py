"""Files of other packages: JSON, safetensors, and pickles of tensors alone.

A pickle can name any function and have it called. These are opened by torch's restricted reader, which knows tensors,
numbers and containers and refuses every other name before anything is called. NumPy's numbers, such as the learning
rates that an optimizer may keep, are read past: a blank stands in for NumPy's functions.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sde_diffusion.errors import InputError, require

PICKLES = {".bin", ".ckpt", ".pkl", ".pt", ".pth"}


class Blank:
    """What a number of NumPy in a pickle becomes: nothing, whatever it is made of."""

    def __init__(self, *parts: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


BLANKS = [(Blank, f"numpy.{name}") for name in ("dtype", "core.multiarray.scalar", "_core.multiarray.scalar")]
"""The names under which a pickle has NumPy's numbers, none of which is looked up."""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        InputError: Missing, unreadable, not JSON, or no object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}; fetch it again") from None
    require(isinstance(found, dict), f"{path} must hold a JSON object, got {type(found).__name__}")
    return dict(found)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a flat file by name, floating-point ones in float32 at least.

    Raises:
        InputError: As `read_pickle`; or the file does not hold tensors by name.
    """
    if path.suffix not in PICKLES:
        require(path.is_file(), f"there is no file {path}")
        try:
            return {name: _widened(value) for name, value in load_file(path).items()}
        except (SafetensorError, OSError, ValueError) as error:
            raise InputError(f"cannot read {path} as safetensors: {' '.join(str(error).split())}") from None
    return tensors_of(read_pickle(path), path)


def tensors_of(found: Any, source: object) -> dict[str, Tensor]:
    """A dict of tensors by name, floating-point ones in float32 at least.

    Raises:
        InputError: It is something else.
    """
    sound = isinstance(found, dict) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in found.items())
    require(sound, f"{source} must hold tensors by name, got {type(found).__name__}")
    return {name: _widened(value) for name, value in found.items()}


def read_pickle(path: Path) -> Any:
    """What a file of `torch.save` holds, where that is tensors, numbers, text and containers alone.

    Raises:
        InputError: Missing, broken, or holding anything else, which is not executed.
    """
    require(path.is_file(), f"there is no file {path}")
    try:
        with torch.serialization.safe_globals(list(BLANKS)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken pickle raises nearly anything
        text = " ".join(str(error).split())
        named = re.search(r"GLOBAL (\S+)", text)
        reason = f"it names {named[1]}" if named else "it is damaged, or holds more than tensors"
        raise InputError(
            f"{path} was not loaded: {reason}, and a pickle may hold tensors alone, for the rest could run code; get "
            f"the weights as safetensors"
        ) from None


def _widened(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() and value.dtype.itemsize < 4 else value
