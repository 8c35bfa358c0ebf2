"""Numbers of any shape from .npy, .npz and .safetensors files: vectors, series, volumes, images of any depth."""

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sde_diffusion.data import dataset as base
from sde_diffusion.data.dataset import Dataset, DataSource, TensorDataset, fits_in_memory
from sde_diffusion.data.disk.scan import scan_floats, scan_levels
from sde_diffusion.data.disk.shards import Array, Shards, locate, shard_files
from sde_diffusion.data.spec import DataSpec
from sde_diffusion.errors import InputError, require
from sde_diffusion.fields import option

MAX_CLASSES = 10_000  # more are most likely not class indices
_UNREADABLE = (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error)


class Table(NamedTuple):
    """The examples of a file or of several, (N, *shape), and their labels, (N,) int16, or None."""

    file: Path
    values: Array | Shards
    labels: Tensor | None


@dataclass(frozen=True)
class Arrays(DataSource):
    """Examples (N, *shape) from a file, or from a folder of files one after another.

    Integers are discrete values 0 … levels − 1. Floating-point numbers are continuous: the model sees
    (y − shift)/scale. What is above `MEMORY_LIMIT` stays on the disk, if it is not compressed.

    Args:
        file: The .npy, .npz or .safetensors file to train on, a folder of them, or a pattern such as data/part_*.npy;
            the order is that of the names.
        test: The same for the test split; empty to take the end of `file`.
        key: The array's name in the files; empty where there is only one beside `labels`.
        labels, test_labels: Files of class indices (N,); empty for the arrays `labels` of the files, if they have them.
        classes: Names of the classes; empty for "0", "1", … up to the greatest label.
        levels: Number of discrete values; None for 256 (uint8), 2 (bool) and continuous data.
        shift, scale: Of continuous data, a number or one for each channel; empty for the mean and the standard
            deviation of all numbers of the training split.
        test_fraction: Part of `file` that is the test split where `test` is empty, in [0, 1).

    Raises:
        InputError: A file is missing, broken, of objects, or does not fit the options or the other files; a number is
            not finite or not below `levels`. The message names the file. Nothing is ever unpickled.
    """

    file: str = option("", "nothing")
    test: str = option("", "nothing")
    key: str = ""
    labels: str = option("", "nothing")
    test_labels: str = option("", "nothing")
    classes: tuple[str, ...] = ()
    levels: int | None = None
    shift: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()
    test_fraction: float = 0.1

    def read(self, split: Literal["train", "test"]) -> Dataset:
        require(self.file != "", "`data.file` must name a .npy or .npz file or a folder of them, got nothing; set it")
        require(0 <= self.test_fraction < 1, f"`data.test_fraction` must be in [0, 1), got {self.test_fraction}")
        require(self.levels is None or self.levels >= 2, f"`data.levels` must be ≥ 2, got {self.levels}")
        table = self._table(self.file, self.labels)
        count = len(table.values)
        cut = count if self.test else count - _tail(count, self.test_fraction)
        spec = self._spec(table, cut)
        start, stop = (0, cut) if split == "train" else (cut, count)
        if self.test and split == "test":
            table = self._table(self.test, self.test_labels)
            self._check_fellow(table, spec)
            start, stop = 0, len(table.values)
        require(
            start < stop,
            f"the {split} split of {self.file} is empty with `data.test_fraction` = {self.test_fraction} of "
            f"{count} examples; change it or set `data.test` to a file",
        )
        if split == "test":
            _look_through(table, spec.levels, start, stop)
        labels = None if table.labels is None else table.labels[start:stop]
        if isinstance(table.values, Shards) and not fits_in_memory(spec, stop - start):
            return ShardedDataset(spec, table.values, start, labels, count=stop - start)
        return TensorDataset(spec, _tensor(table.values[start:stop], spec), labels)

    def _table(self, place: str, label_file: str) -> Table:
        path = Path(place).expanduser()
        arrays = open_rows(place)
        own = arrays.pop("labels", None)
        if self.key:
            require(
                self.key in arrays, f"`data.key` must be an array of {path} ({', '.join(arrays)}), got {self.key!r}"
            )
        elif len(arrays) != 1:
            raise InputError(
                f"{path} must hold one array beside `labels`, got {', '.join(arrays) or 'none'}; name one by `data.key`"
            )
        values = arrays[self.key or next(iter(arrays))]
        require(
            values.ndim >= 2 and values.size > 0,
            f"{path} must hold examples (N, …) of at least one number each, got shape {values.shape}; "
            f"reshape numbers to (N, 1)",
        )
        return Table(path, values, read_labels(path, own, label_file, count=len(values)))

    def _spec(self, table: Table, cut: int) -> DataSpec:
        """What the first `cut` rows of the training file, which are looked at in full, and its labels say."""
        require(cut > 0, f"the train split of {table.file} is empty; lower `data.test_fraction`")
        shape, classes = tuple(table.values.shape[1:]), self.classes
        if table.labels is None:
            require(not classes, f"`data.classes` needs labels, and {table.file} has none; set `data.labels`")
        else:
            classes = classes or tuple(map(str, range(int(table.labels.max()) + 1)))
        levels = self._levels(table)
        mean, std = _look_through(table, levels, 0, cut)
        require(std > 0, f"{table.file} must hold more than one value, got {mean:g} everywhere")
        shift, scale = _units(self.shift, mean), _units(self.scale, std)
        spec = DataSpec("arrays", shape, levels=levels, classes=classes, shift=shift, scale=scale)
        if table.labels is not None:
            spec.check_labels(table.labels, source=self.labels or f"labels of {table.file}")
        return spec

    def _levels(self, table: Table) -> int | None:
        file, dtype = table.file, table.values.dtype
        require(dtype.kind in "buif", f"{file} must hold integers or real numbers, got {dtype}")
        if dtype.kind == "f":
            require(
                self.levels is None,
                f"`data.levels` must be left out for floating-point data, got {self.levels}; store {file} as integers",
            )
            return None
        levels = {"bool": 2, "uint8": 256}.get(dtype.name) if self.levels is None else self.levels
        if levels is None:
            raise InputError(f"`data.levels` must be set: {file} holds {dtype}, values up to {_greatest(table)}")
        return levels

    def _check_fellow(self, table: Table, spec: DataSpec) -> None:
        """Check that the test file holds what the training file holds."""
        values = table.values
        require(
            values.shape[1:] == spec.shape,
            f"{table.file} must hold examples of shape {spec.shape} like {self.file}, got {values.shape[1:]}",
        )
        require(
            (values.dtype.kind == "f") == (spec.levels is None) and values.dtype.kind in "buif",
            f"{table.file} must hold the same kind of numbers as {self.file}, got {values.dtype}",
        )
        require(
            (table.labels is None) == (not spec.classes),
            f"{table.file} and {self.file} must both have labels or neither; see `data.labels` and `data.test_labels`",
        )
        if table.labels is not None:
            spec.check_labels(table.labels, source=self.test_labels or f"labels of {table.file}")


class ShardedDataset(Dataset):
    """Consecutive rows of array files, read when they are fetched."""

    def __init__(self, spec: DataSpec, values: Shards, start: int, labels: Tensor | None, *, count: int) -> None:
        self.spec, self.labels = spec, labels
        self._values, self._start, self._count = values, start, count

    def __len__(self) -> int:
        return self._count

    def fetch(self, indices: Tensor) -> tuple[Tensor, Tensor | None]:
        labels = None if self.labels is None else self.labels[indices].long()
        return _tensor(self._values[indices.numpy() + self._start], self.spec), labels


def open_rows(place: str) -> dict[str, Array | Shards]:
    """The arrays by name of a file, a folder or a pattern; what is not one small or compressed .npz file is not read.

    Raises:
        InputError: No such file; not a whole one of numbers; files that do not hold the same.
    """
    files = shard_files(place)
    if len(files) == 1 and _to_be_read_whole(files[0]):
        return dict(open_arrays(files[0]))
    tables = [locate(file) for file in files]
    for file, table in zip(files, tables, strict=True):
        require(
            table.keys() == tables[0].keys(),
            f"{file} must hold the arrays {', '.join(tables[0])} like {files[0]}, got {', '.join(table) or 'none'}",
        )
        counts = {name: stored.shape[0] for name, stored in table.items() if stored.shape}
        require(len({*counts.values()}) <= 1, f"the arrays of {file} must have equally many rows, got {counts}")
    return {name: Shards(files, [table[name] for table in tables]) for name in tables[0]}


def _to_be_read_whole(file: Path) -> bool:
    """Whether it is a .npz file that fits in memory, which is checked as it is read, or in Fortran's order."""
    if not file.is_file():
        return False
    with file.open("rb") as opened:
        start = opened.read(256)
    small = file.stat().st_size <= base.MEMORY_LIMIT
    return (start[:2] == b"PK" and small) or b"'fortran_order': True" in start


def read_labels(path: Path, own: Array | Shards | None, file: str, *, count: int) -> Tensor | None:
    """The labels (N,) int16 of a `file` of them, or the files' `own`; None if there are none.

    Raises:
        InputError: They are no class indices, or not one per example.
    """
    if not file:
        return None if own is None else _labels(path, own, count)
    found = list(open_arrays(Path(file).expanduser()).values())
    require(len(found) == 1, f"{file} must hold one array of labels, got {len(found)}")
    return _labels(Path(file), found[0], count)


def open_arrays(path: Path) -> dict[str, Array]:
    """The arrays of a .npz file by name; a .npy file has one, which is mapped and not read.

    Raises:
        InputError: No such file, or not a whole one of numbers. Nothing is ever unpickled.
    """
    require(path.is_file(), f"array file {path} must exist; check the path")
    try:
        with path.open("rb") as file:
            if file.read(2) == b"PK":  # a .npz file is a zip archive
                file.seek(0)
                with np.load(file, allow_pickle=False) as archive:
                    return {name: archive[name] for name in archive.files}
        return {"values": np.lib.format.open_memmap(path, mode="r")}  # refuses objects
    except _UNREADABLE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path} is not a whole .npy, .npz or .safetensors file of numbers: {reason}") from error


def _labels(path: Path, labels: Array | Shards, count: int) -> Tensor:
    require(
        labels.dtype.kind in "ui" and labels.shape == (count,),
        f"labels in {path} must be {count} integers, one per example, got {labels.dtype} of shape {labels.shape}",
    )
    held = labels[:]
    low, high = int(held.min()), int(held.max())
    require(
        low >= 0 and high < MAX_CLASSES,
        f"labels in {path} must be class indices from 0 to {MAX_CLASSES - 1}, got {low if low < 0 else high}",
    )
    return torch.from_numpy(held.astype(np.int16))


def _tail(count: int, fraction: float) -> int:
    return max(1, round(count * fraction)) if fraction > 0 else 0


def _greatest(table: Table) -> int:
    rows = max(1, (1 << 21) // int(np.prod(table.values.shape[1:])))
    return max(int(table.values[i : i + rows].max()) for i in range(0, len(table.values), rows))


def _look_through(table: Table, levels: int | None, start: int, stop: int) -> tuple[float, float]:
    """Check every number, and return the mean and the standard deviation of continuous ones, (0, 1) of others."""
    if levels is not None:
        scan_levels(table.file, table.values, levels, start=start, stop=stop)
        return 0.0, 1.0
    found = scan_floats(table.file, table.values, start=start, stop=stop)
    return found.mean[0], found.std[0]


def _units(given: tuple[float, ...], found: float) -> float | tuple[float, ...]:
    """The numbers `given`, one alone as a number; what was `found` in the data where there are none."""
    return found if not given else given[0] if len(given) == 1 else given


def _tensor(values: Array, spec: DataSpec) -> Tensor:
    """A copy in the type of the spec; but 64-bit floats, whose digits a large shift may need, stay."""
    if spec.levels is None:
        return torch.from_numpy(values.astype(np.float64 if values.dtype.itemsize > 4 else np.float32))
    return torch.from_numpy(values.astype(np.uint8 if spec.dtype == torch.uint8 else np.int32))
