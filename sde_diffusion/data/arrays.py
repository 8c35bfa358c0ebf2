"""Numbers of any shape from .npy and .npz files: vectors, series, volumes, images of any depth."""

import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sde_diffusion.data.base import Dataset, DataSource, TensorDataset, fits_in_memory
from sde_diffusion.data.spec import DataSpec
from sde_diffusion.errors import InputError, require

MAX_CLASSES = 10_000  # more are most likely not class indices
_CHUNK = 1 << 24  # numbers looked at together
_UNREADABLE = (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error)

Array = npt.NDArray[Any]


class Table(NamedTuple):
    """One file's examples, (N, *shape), and their labels, (N,) int64, or None."""

    file: Path
    values: Array
    labels: Tensor | None


@dataclass(frozen=True)
class Arrays(DataSource):
    """Examples (N, *shape) from a file.

    Integers are discrete values 0 … levels − 1. Floating-point numbers are continuous, standardised by the mean and the
    standard deviation of all numbers of the training split. A .npy file above `MEMORY_LIMIT` stays on the disk.

    Args:
        file: The .npy or .npz file to train on.
        test: A file for the test split; empty to take the end of `file`.
        key: The array's name in a .npz file; empty where there is only one beside `labels`.
        labels, test_labels: Files of class indices (N,); empty for the array `labels` of the .npz file, if it has one.
        classes: Names of the classes; empty for "0", "1", … up to the greatest label.
        levels: Number of discrete values; None for 256 (uint8), 2 (bool) and continuous data.
        test_fraction: Part of `file` that is the test split where `test` is empty, in [0, 1).

    Raises:
        InputError: A file is missing, broken, of objects, or does not fit the options or the other files; a number is
            not finite or not below `levels`. The message names the file. Nothing is ever unpickled.
    """

    file: str = ""
    test: str = ""
    key: str = ""
    labels: str = ""
    test_labels: str = ""
    classes: tuple[str, ...] = ()
    levels: int | None = None
    test_fraction: float = 0.1

    def read(self, split: Literal["train", "test"]) -> Dataset:
        require(self.file != "", "`data.file` must name a .npy or .npz file, got nothing; set it")
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
            _scan(table.file, table.values[start:stop], spec.levels)
        labels = None if table.labels is None else table.labels[start:stop]
        if isinstance(table.values, np.memmap) and not fits_in_memory(spec, stop - start):
            return ArrayFile(spec, table.file, start, labels, count=stop - start)
        return TensorDataset(spec, _tensor(table.values[start:stop], spec), labels)

    def _table(self, file: str, label_file: str) -> Table:
        path = Path(file).expanduser()
        arrays = open_arrays(path)
        labels = arrays.pop("labels", None)
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
        if not label_file:
            return Table(path, values, None if labels is None else _labels(path, labels, len(values)))
        found = list(open_arrays(Path(label_file).expanduser()).values())
        require(len(found) == 1, f"{label_file} must hold one array of labels, got {len(found)}")
        return Table(path, values, _labels(Path(label_file), found[0], len(values)))

    def _spec(self, table: Table, cut: int) -> DataSpec:
        """What the first `cut` rows of the training file, which are looked at in full, and its labels say."""
        require(cut > 0, f"the train split of {table.file} is empty; lower `data.test_fraction`")
        shape, classes = tuple(table.values.shape[1:]), self.classes
        if table.labels is None:
            require(not classes, f"`data.classes` needs labels, and {table.file} has none; set `data.labels`")
        else:
            classes = classes or tuple(map(str, range(int(table.labels.max()) + 1)))
        levels = self._levels(table)
        mean, std = _scan(table.file, table.values[:cut], levels)
        require(std > 0, f"{table.file} must hold more than one value, got {mean:g} everywhere")
        spec = DataSpec("arrays", shape, levels=levels, classes=classes, shift=mean, scale=std)
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
            raise InputError(f"`data.levels` must be set: {file} holds {dtype}, values up to {table.values.max()}")
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


class ArrayFile(Dataset):
    """Consecutive rows of a .npy file, mapped into memory when they are fetched."""

    def __init__(self, spec: DataSpec, file: Path, start: int, labels: Tensor | None, *, count: int) -> None:
        self.spec, self.labels = spec, labels
        self._file, self._start, self._count = file, start, count

    def __len__(self) -> int:
        return self._count

    def fetch(self, indices: Tensor) -> tuple[Tensor, Tensor | None]:
        (values,) = open_arrays(self._file).values()  # opened anew: workers get a path, not a copy of the data
        labels = None if self.labels is None else self.labels[indices]
        return _tensor(values[(indices + self._start).numpy()], self.spec), labels


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
        return {path.stem: np.lib.format.open_memmap(path, mode="r")}  # refuses objects
    except _UNREADABLE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path} is not a whole .npy or .npz file of numbers: {reason}") from error


def _labels(path: Path, labels: Array, count: int) -> Tensor:
    require(
        labels.dtype.kind in "ui" and labels.shape == (count,),
        f"labels in {path} must be {count} integers, one per example, got {labels.dtype} of shape {labels.shape}",
    )
    low, high = int(labels.min()), int(labels.max())
    require(
        low >= 0 and high < MAX_CLASSES,
        f"labels in {path} must be class indices from 0 to {MAX_CLASSES - 1}, got {low if low < 0 else high}",
    )
    return torch.from_numpy(labels.astype(np.int64))


def _tail(count: int, fraction: float) -> int:
    return max(1, round(count * fraction)) if fraction > 0 else 0


def _chunks(values: Array) -> Iterator[Array]:
    rows = max(1, _CHUNK // values[0].size)
    return (values[i : i + rows] for i in range(0, len(values), rows))


def _scan(path: Path, values: Array, levels: int | None) -> tuple[float, float]:
    """Check every number, and return the mean and the standard deviation of continuous ones, (0, 1) of others."""
    if levels is not None:
        for chunk in _chunks(values):
            low, high = int(chunk.min()), int(chunk.max())
            require(
                low >= 0 and high < levels,
                f"values in {path} must be from 0 to {levels - 1} (`data.levels` = {levels}), got "
                f"{low if low < 0 else high}; raise `data.levels` or mend the data",
            )
        return 0.0, 1.0
    pivot = float(values[0].astype(np.float64).mean())  # the variance is Σ(y − pivot)² less a small correction
    total = squares = 0.0
    for chunk in _chunks(values):
        wrong = chunk.size - int(np.isfinite(chunk).sum())
        require(wrong == 0, f"values in {path} must be finite, got {wrong} NaN or infinite; mend the data")
        deviation = chunk.astype(np.float64) - pivot
        total += float(deviation.sum())
        squares += float(np.square(deviation).sum())
    mean = total / values.size
    return pivot + mean, max(squares / values.size - mean**2, 0.0) ** 0.5


def _tensor(values: Array, spec: DataSpec) -> Tensor:
    """A copy in the type of the spec; but 64-bit floats, whose digits a large shift may need, stay."""
    if spec.levels is None:
        return torch.from_numpy(values.astype(np.float64 if values.dtype.itemsize > 4 else np.float32))
    return torch.from_numpy(values.astype(np.uint8 if spec.dtype == torch.uint8 else np.int32))
