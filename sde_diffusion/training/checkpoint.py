"""A checkpoint is one safetensors file: tensors under prefixes, everything else as JSON, and a hash over both.

Nothing in it can name code, so an untrusted file is safe to open. It is written under a temporary name, synced and
renamed: at any moment the path holds either the old checkpoint or the new one, whole.
"""

import hashlib
import json
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from sde_diffusion.errors import InputError, require
from sde_diffusion.runtime.atomic_write import as_path, write_atomically
from sde_diffusion.training.stop import stop_on_signals

FORMAT = "sde_diffusion/1"
SUFFIX = ".safetensors"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Tensors by dotted name (`model.…`, `ema.…`, `optimizer.…`) and JSON-able facts (config, data, step)."""

    tensors: dict[str, Tensor]
    meta: dict[str, Any]

    def group(self, prefix: str) -> dict[str, Tensor]:
        """The tensors under `prefix.`, without it."""
        start = prefix + "."
        return {name.removeprefix(start): value for name, value in self.tensors.items() if name.startswith(start)}


def save_checkpoint(path: str | Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint, atomically.

    Raises:
        InputError: The file cannot be written; an older one at `path` survives.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in checkpoint.tensors.items()}
    meta = json.dumps(checkpoint.meta, sort_keys=True)
    header = {"format": FORMAT, "meta": meta, "sha256": _digest(tensors, meta)}
    write_atomically(as_path("path", path), save(tensors, metadata=header))


def load_checkpoint(path: str | Path, device: torch.device | str = "cpu") -> Checkpoint:
    """Read a checkpoint and check its hash.

    Raises:
        InputError: Missing, truncated, of another format, or damaged. Other formats are never unpickled.
    """
    path = as_path("path", path)
    require(path.exists(), f"there is no checkpoint at {path}")
    require(path.is_file(), f"the checkpoint {path} is not a file")
    try:
        # An interrupt in the midst of a tensor would look like a damaged file: it waits for the end of the file.
        with stop_on_signals() as stop, safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(
            f"cannot read {path} as a checkpoint: {' '.join(str(error).split())}; it is truncated, damaged or of "
            f"another format (only safetensors files of this package are read, pickles never)"
        ) from None
    if stop.signal is not None:
        signal.raise_signal(stop.signal)
    require(
        header.get("format") == FORMAT and "meta" in header,
        f"{path} is a safetensors file, but no checkpoint of this package (format {FORMAT!r} expected, "
        f"got {header.get('format')!r})",
    )
    require(
        header.get("sha256") == _digest(tensors, header["meta"]),
        f"the checkpoint {path} is damaged: its content does not match its hash; use an older one, "
        f"or delete it to resume from that",
    )
    return Checkpoint({name: value.to(device) for name, value in tensors.items()}, json.loads(header["meta"]))


def _digest(tensors: Mapping[str, Tensor], meta: str) -> str:
    digest = hashlib.sha256(meta.encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
