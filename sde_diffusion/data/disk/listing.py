"""Names of millions of files, packed: two tensors in place of a Python object a name, 16 bytes each beside the text.

Tensors are shared with workers, however these are started, where a list of paths would be copied into each.
"""

import hashlib
import os
from array import array
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sde_diffusion.errors import InputError


class Listing:
    """Files below a folder, and for each the sub-folder of the first level that it is in.

    Args:
        root: The folder.
        text: All names below it, one after another, UTF-8 in uint8.
        spans: Where each begins and ends, (N, 2) int64.
        places: The index of each in `folders`, (N,) int32; −1 for those in `root` itself.
        folders: Names of the sub-folders of the first level.
    """

    def __init__(self, root: Path, text: Tensor, spans: Tensor, *, places: Tensor, folders: list[str]) -> None:
        self.root, self.places, self.folders = root, places, folders
        self._text, self._spans = text, spans

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, index: int) -> Path:
        return self.root / os.fsdecode(self._name(index))

    def __iter__(self) -> Iterator[Path]:
        return (self[index] for index in range(len(self)))

    def take(self, indices: Tensor | slice) -> "Listing":
        """Those at the indices; the text stays shared."""
        return Listing(self.root, self._text, self._spans[indices], places=self.places[indices], folders=self.folders)

    def keys(self) -> Tensor:
        """For each a number in 0 … 2^48 − 1 from its name, (N,) int64."""
        keys = array("q", (_key(self._name(index)) for index in range(len(self))))
        return torch.from_numpy(np.frombuffer(keys, np.int64).copy())

    @property
    def nbytes(self) -> int:
        """Memory that it holds."""
        return sum(part.nbytes for part in (self._text, self._spans, self.places))

    def _name(self, index: int) -> bytes:
        start, stop = self._spans[index].tolist()
        return self._text[start:stop].numpy().tobytes()


def list_files(root: Path, suffixes: Collection[str]) -> Listing:
    """The files in `root` and below with one of the endings, without hidden ones; symbolic links to folders are left.

    Raises:
        InputError: A folder cannot be read; the message names it.
    """
    text, ends, places = bytearray(), array("q", [0]), array("i")
    folders: list[str] = []
    waiting = [("", -1)]  # names below `root`, each with the index of its first part
    while waiting:
        below, place = waiting.pop()
        for entry in _entries(root / below):
            name = os.path.join(below, entry.name)
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                if not entry.is_symlink():
                    if not below:
                        folders.append(entry.name)
                    waiting.append((name, place if below else len(folders) - 1))
            elif os.path.splitext(entry.name)[1].lower() in suffixes and entry.is_file():
                text += os.fsencode(name)
                ends.append(len(text))
                places.append(place)
    borders = np.frombuffer(ends, np.int64)
    return Listing(
        root,
        torch.from_numpy(np.frombuffer(text, np.uint8).copy()),
        torch.from_numpy(np.stack([borders[:-1], borders[1:]], 1)),
        places=torch.from_numpy(np.frombuffer(places, np.int32).copy()),
        folders=folders,
    )


def _entries(folder: Path) -> Iterator["os.DirEntry[str]"]:
    """One after another: a list of a million takes 300 MB."""
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except OSError as error:
        raise InputError(
            f"image folder {error.filename or folder} cannot be read: {error.strerror}; check its permissions"
        ) from error


def _key(name: bytes) -> int:
    return int.from_bytes(hashlib.sha256(name).digest()[:6])
