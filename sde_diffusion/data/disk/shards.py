"""Rows of many array files as one array, read from the disk as they are needed.

Only headers are read beforehand. Rows are read by their position in the file (`preadv`) and not through a memory map: a
file that shrinks under a run is then an error that names it, where a map would kill the process, and what the system
caches is nobody's footprint. Nothing is ever unpickled.
"""

import json
import os
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from sde_diffusion.errors import InputError, require

SUFFIXES = (".npy", ".npz", ".safetensors")
HANDLES = 64  # files held open at once, by each process
UNREADABLE = (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile, struct.error)

_BFLOAT16 = "bfloat16"  # numpy has none: its bits are read as those of half a float32
_SAFETENSORS = {
    "BF16": _BFLOAT16,
    "BOOL": "|b1",
    "F16": "<f2",
    "F32": "<f4",
    "F64": "<f8",
    "U8": "|u1",
    "U16": "<u2",
    "U32": "<u4",
    "U64": "<u8",
    "I8": "|i1",
    "I16": "<i2",
    "I32": "<i4",
    "I64": "<i8",
}

Array = npt.NDArray[Any]
Indices = npt.NDArray[np.int64]


class Stored(NamedTuple):
    """Where an array lies in a file: from byte `offset` on, row by row. `dtype` is numpy's name, or bfloat16."""

    offset: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def row(self) -> int:
        """Bytes of one row."""
        return int(np.prod(self.shape[1:], dtype=np.int64)) * self.bits.itemsize

    @property
    def bits(self) -> np.dtype[Any]:
        """What the bytes are read as."""
        return np.dtype("<u2" if self.dtype == _BFLOAT16 else self.dtype)

    def __str__(self) -> str:
        return f"{self.dtype if self.dtype == _BFLOAT16 else self.bits.name} of shape {self.shape}"


def locate(file: Path) -> dict[str, Stored]:
    """The arrays of a .npy, .npz or .safetensors file by name, from its headers; that of a .npy file is "values".

    Raises:
        InputError: No such file, not a whole one of numbers, compressed, or in Fortran's order.
    """
    require(file.is_file(), f"array file {file} must exist; check the path")
    try:
        with file.open("rb") as opened:
            start = opened.read(6)
            if start[:2] == b"PK":
                found = _locate_npz(file, opened)
            elif start == b"\x93NUMPY":
                found = {"values": _locate_npy(file, opened, 0)}
            elif file.suffix == ".safetensors":
                found = _locate_safetensors(opened)
            else:
                raise ValueError("the magic string is not correct")
            size = opened.seek(0, os.SEEK_END)
    except InputError:
        raise
    except UNREADABLE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{file} is not a whole .npy, .npz or .safetensors file of numbers: {reason}") from error
    for stored in found.values():
        needed = stored.offset + (stored.row * stored.shape[0] if stored.shape else stored.bits.itemsize)
        require(
            needed <= size,
            f"{file} is not a whole .npy, .npz or .safetensors file of numbers: {size} bytes of {needed}",
        )
    return found


def shard_files(place: str) -> list[Path]:
    """The array files that `place` names: a file, a folder of them, or a pattern such as data/part_*.npy; by name.

    Raises:
        InputError: There is none.
    """
    path = Path(place).expanduser()
    if path.is_dir():
        files = [file for file in path.iterdir() if file.suffix in SUFFIXES and not file.name.startswith(".")]
        require(len(files) > 0, f"no array files in {path}; known endings: {', '.join(SUFFIXES)}")
        return sorted(files)
    if any(mark in path.name for mark in "*?[") and not path.exists():
        files = sorted(file for file in path.parent.glob(path.name) if file.is_file())
        require(len(files) > 0, f"no array files match {path}; check the pattern")
        return files
    return [path]


class Shards:
    """One array (N, *shape), the rows of its files one after another.

    Costs 100 bytes a file and one read from the disk for each run of consecutive rows; at most `HANDLES` files are open
    at once. Workers that are forked or that it is pickled to open their own.

    Args:
        files: Where the rows are.
        stored: The array in each of them.

    Raises:
        InputError: The files hold rows of different shapes or kinds.
    """

    def __init__(self, files: Sequence[Path], stored: Sequence[Stored]) -> None:
        first = stored[0]
        for file, other in zip(files, stored, strict=True):
            require(
                len(other.shape) > 0 and other.shape[1:] == first.shape[1:] and other.dtype == first.dtype,
                f"{file} must hold rows of shape {first.shape[1:]} and {first.dtype} like {files[0]}, got {other}",
            )
        self.files, self.stored = list(files), list(stored)
        self._ends = np.cumsum([other.shape[0] for other in stored])
        self._opened = _Opened(self.files, self.stored)
        self.shape: tuple[int, ...] = (int(self._ends[-1]), *first.shape[1:])
        self.dtype = np.dtype(np.float32) if first.dtype == _BFLOAT16 else first.bits

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def ndim(self) -> int:
        """Number of sides."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of numbers."""
        return int(np.prod(self.shape, dtype=np.int64))

    def __getitem__(self, key: slice | Indices) -> Array:
        """Consecutive rows or those at the indices, read into memory.

        Raises:
            InputError: A file is gone, shorter or another than when it was first looked at; the message names it.
        """
        rows = np.arange(*key.indices(len(self))) if isinstance(key, slice) else key
        first = self.stored[0]
        found = np.empty((len(rows), *first.shape[1:]), first.bits)
        which = np.searchsorted(self._ends, rows, side="right")
        cuts = np.flatnonzero((np.diff(rows) != 1) | (np.diff(which) != 0)) + 1
        starts = [0, *cuts.tolist()] if len(rows) else []
        below = rows - np.concatenate([[0], self._ends])[which]
        runs = zip(
            which[starts].tolist(), below[starts].tolist(), starts, [*starts[1:], len(rows)][: len(starts)], strict=True
        )
        self._opened.read(((shard, row, found[i:j]) for shard, row, i, j in sorted(runs)))
        if first.dtype == _BFLOAT16:
            return (found.astype(np.uint32) << 16).view(np.float32)
        return found


class _Opened:
    """The files that are open, the last used last."""

    def __init__(self, files: list[Path], stored: list[Stored]) -> None:
        self._files, self._stored = files, stored
        self._open: OrderedDict[int, tuple[int, tuple[int, int]]] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": OrderedDict()}

    def __del__(self) -> None:
        for descriptor, _ in self._open.values():
            with suppress(OSError):
                os.close(descriptor)

    def read(self, runs: Iterable[tuple[int, int, Array]]) -> None:
        """Fill each array with the rows of a file from a row on; those of one file come together."""
        current, descriptor = -1, -1
        for shard, row, into in runs:
            try:
                if shard != current:
                    current, descriptor = shard, self._descriptor(shard)
                self._fill(shard, descriptor, self._stored[shard].offset + row * self._stored[shard].row, into)
            except OSError as error:
                raise self._changed(shard, f"{error.strerror or error}") from error

    def _fill(self, shard: int, descriptor: int, place: int, into: Array) -> None:
        left = memoryview(into.reshape(-1).view(np.uint8).data)
        while len(left):
            count = os.preadv(descriptor, [left], place)
            if count == 0:
                raise self._changed(shard, f"{os.fstat(descriptor).st_size} bytes, too few")
            left, place = left[count:], place + count

    def _descriptor(self, shard: int) -> int:
        """The open file, which is looked at again where its size or date are new."""
        if shard in self._open:
            descriptor, mark = self._open[shard]
        else:
            descriptor, mark = os.open(self._files[shard], os.O_RDONLY | os.O_CLOEXEC), (-1, -1)
        now = os.fstat(descriptor)
        self._open[shard] = descriptor, (now.st_size, now.st_mtime_ns)
        self._open.move_to_end(shard)
        if mark != (now.st_size, now.st_mtime_ns):
            self._check(shard)
        if len(self._open) > HANDLES:
            os.close(self._open.popitem(last=False)[1][0])
        return descriptor

    def _check(self, shard: int) -> None:
        try:
            found = locate(self._files[shard])
        except InputError as error:
            raise self._changed(shard, str(error)) from error
        if self._stored[shard] not in found.values():
            raise self._changed(shard, ", ".join(map(str, found.values())) or "nothing")

    def _changed(self, shard: int, now: str) -> InputError:
        if shard in self._open:
            os.close(self._open.pop(shard)[0])
        return InputError(
            f"{self._files[shard]} has changed while it was in use: it held {self._stored[shard]}, now: {now}; "
            f"restore it and resume the run"
        )


def _locate_npy(file: Path, opened: BinaryIO, start: int) -> Stored:
    opened.seek(start)
    version = np.lib.format.read_magic(opened)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"version {version} is not for plain numbers")
    shape, fortran, dtype = readers[version](opened)
    if dtype.hasobject:
        raise ValueError("Python objects in dtype are refused")
    require(
        not fortran or len(shape) < 2,
        f"{file} must be in C's order, got Fortran's, whose rows are scattered; save np.ascontiguousarray of it",
    )
    return Stored(opened.tell(), dtype.str, shape)


def _locate_npz(file: Path, opened: BinaryIO) -> dict[str, Stored]:
    found = {}
    with zipfile.ZipFile(opened) as archive:
        for entry in archive.infolist():
            require(
                entry.compress_type == zipfile.ZIP_STORED,
                f"{file} must not be compressed, or its rows cannot be read one by one; write it by np.savez",
            )
            opened.seek(entry.header_offset + 26)
            name, extra = struct.unpack("<HH", opened.read(4))
            place = entry.header_offset + 30 + name + extra
            found[entry.filename.removesuffix(".npy")] = _locate_npy(file, opened, place)
    return found


def _locate_safetensors(opened: BinaryIO) -> dict[str, Stored]:
    opened.seek(0)
    (length,) = struct.unpack("<Q", opened.read(8))
    if length > 100_000_000:  # the format's own limit
        raise ValueError("its header is too long")
    header = json.loads(opened.read(length))
    header.pop("__metadata__", None)
    return {
        name: Stored(8 + length + entry["data_offsets"][0], _SAFETENSORS[entry["dtype"]], tuple(entry["shape"]))
        for name, entry in header.items()
    }
