"""Pre-computed latents of another model, such as a VAE's: the data of latent diffusion."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from sde_diffusion.data.dataset import Dataset, DataSource, Raw, TensorDataset, fits_in_memory, on_device
from sde_diffusion.data.disk.scan import scan_floats
from sde_diffusion.data.disk.shards import Array, Shards
from sde_diffusion.data.sources.arrays import open_rows, read_labels
from sde_diffusion.data.spec import DataSpec
from sde_diffusion.errors import InputError, require, require_positive
from sde_diffusion.fields import option

MEAN, STD = "mean", "std"  # arrays that stand for a Gaussian each
Rows = Array | Shards


@dataclass(frozen=True)
class Latents(DataSource):
    """Latents (N, *shape) from a folder of .npy, .npz or .safetensors files; float16, bfloat16, float32.

    The files are one data set in the order of their names. Where they hold the arrays `mean` and `std`, each example is
    a Gaussian N(mean, std²) and training sees a draw of it, a new one each time. Model coordinates have mean 0 and the
    standard deviation `spread`. Densities are of the latents, and tell nothing of the images that these came from.

    Args:
        root: The folder, one file, or a pattern. Sub-folders `train` and `test` are the splits, if there are both;
            otherwise the end is the test split.
        key: The array's name, where there are several beside `labels`.
        labels: A file of class indices (N,); empty for the arrays `labels` of the files, if they have them.
        classes: Names of the classes; empty for "0", "1", … up to the greatest label.
        per_channel: Shift and scale each channel, the first side, by its own numbers.
        spread: Standard deviation in model coordinates; 1 suits VP, and `model.sigma_data` is to be the same.
        test_fraction: Part that is the test split, in [0, 1).

    Raises:
        InputError: A file is missing, broken or unlike the others, holds no floating-point numbers, a number is not
            finite or a standard deviation is negative. The message names the file.

    Reference: Rombach et al. 2022, arXiv:2112.10752, section 3.
    """

    root: str = option("", "nothing")
    key: str = ""
    labels: str = option("", "nothing")
    classes: tuple[str, ...] = ()
    per_channel: bool = False
    spread: float = 1.0
    test_fraction: float = 0.1

    def read(self, split: Literal["train", "test"]) -> Dataset:
        require(self.root != "", "`data.root` must name a folder of latents, got nothing; set it")
        require(0 <= self.test_fraction < 1, f"`data.test_fraction` must be in [0, 1), got {self.test_fraction}")
        require_positive(**{"data.spread": self.spread})
        root = Path(self.root).expanduser()
        sorted_out = (root / "train").is_dir() and (root / "test").is_dir()
        require(not sorted_out or not self.labels, "`data.labels` must be empty where there are train and test folders")
        table = self._table(root / "train" if sorted_out else root)
        count = len(table.mean)
        cut = count if sorted_out else count - (max(1, round(count * self.test_fraction)) if self.test_fraction else 0)
        require(cut > 0, f"the train split of {root} is empty; lower `data.test_fraction`")
        spec = self._spec(table, cut)
        start, stop = (0, cut) if split == "train" else (cut, count)
        if sorted_out and split == "test":
            table = self._table(root / "test")
            start, stop = 0, len(table.mean)
            require(
                table.mean.shape[1:] == spec.shape and (table.label is None) == (not spec.classes),
                f"{table.place} must hold latents like {root / 'train'}, {spec.shape} {_with(spec.classes)} labels, "
                f"got {table.mean.shape[1:]} {_with(table.label is not None)}",
            )
        require(start < stop, f"the {split} split of {root} is empty; raise `data.test_fraction`")
        if table.label is not None:
            spec.check_labels(table.label, source=f"labels of {table.place}")
        if split == "test":
            table.look_through(start, stop)
        return table.part(spec, start, stop)

    def _table(self, place: Path) -> "_Table":
        arrays = open_rows(str(place))
        own = arrays.pop("labels", None)
        gaussian = not self.key and arrays.keys() == {MEAN, STD}
        require(
            gaussian or len(arrays) == 1 or self.key in arrays,
            f"{place} must hold one array beside `labels`, or `mean` and `std`, got {', '.join(arrays) or 'none'}; "
            f"name one by `data.key`",
        )
        mean = arrays[MEAN if gaussian else self.key or next(iter(arrays))]
        std = arrays[STD] if gaussian else None
        for values in (mean,) if std is None else (mean, std):
            require(
                values.dtype.kind == "f" and values.ndim >= 2 and values.size > 0 and values.shape == mean.shape,
                f"{place} must hold latents (N, …) of floating-point numbers, got {values.dtype} of shape "
                f"{values.shape}; discrete values are read by `data.name=arrays`",
            )
        return _Table(place, mean, std, read_labels(place, own, self.labels, count=len(mean)))

    def _spec(self, table: "_Table", cut: int) -> DataSpec:
        shift, scale = table.look_through(0, cut, channels=self.per_channel)
        require(min(scale) > 0, f"{table.place} must hold more than one value, got {shift[int(np.argmin(scale))]:g}")
        scale = tuple(value / self.spread for value in scale)
        classes = self.classes
        if table.label is not None:
            classes = classes or tuple(map(str, range(int(table.label.max()) + 1)))
        elif classes:
            raise InputError(f"`data.classes` needs labels, and {table.place} has none; set `data.labels`")
        shape = tuple(table.mean.shape[1:])
        if self.per_channel:
            return DataSpec("latents", shape, levels=None, classes=classes, shift=shift, scale=scale)
        return DataSpec("latents", shape, levels=None, classes=classes, shift=shift[0], scale=scale[0])


@dataclass(frozen=True, eq=False)
class _Table:
    """The arrays of a folder, all of N rows."""

    place: Path
    mean: Rows
    std: Rows | None
    label: Tensor | None

    def look_through(
        self, start: int, stop: int, *, channels: bool = False
    ) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of draws of the rows `start` … `stop` − 1, once all numbers are found sound."""
        found = scan_floats(self.place, self.mean, start=start, stop=stop, channels=channels)
        if self.std is None:
            return found.mean, found.std
        own = scan_floats(self.place, self.std, start=start, stop=stop, channels=channels)
        require(
            min(own.low) >= 0,
            f"`std` in {self.place} must be ≥ 0, got {min(own.low):g}; if these are logarithms of variances, store "
            f"exp(logvar / 2)",
        )
        squares = zip(found.std, own.mean, own.std, strict=True)
        return found.mean, tuple((a * a + b * b + c * c) ** 0.5 for a, b, c in squares)

    def part(self, spec: DataSpec, start: int, stop: int) -> Dataset:
        """The rows `start` … `stop` − 1, held in memory where they fit."""
        label = None if self.label is None else self.label[start:stop]
        if fits_in_memory(spec, (stop - start) * (1 if self.std is None else 2)):
            mean = _floats(self.mean[start:stop])
            if self.std is None:
                return TensorDataset(spec, mean, label)
            return GaussianLatents(spec, mean, _floats(self.std[start:stop]), label)
        return StoredLatents(spec, self, range(start, stop), label)


class GaussianLatents(TensorDataset):
    """Gaussians (mean, std), each (N, *shape), held in memory; `fetch` gives their means."""

    def __init__(self, spec: DataSpec, mean: Tensor, std: Tensor, label: Tensor | None) -> None:
        super().__init__(spec, mean, label)
        self.std = std

    def raw(self, indices: Tensor) -> Raw:
        return Raw(*self.fetch(indices), self.std[on_device(indices, self.std.device)])

    def to(self, device: torch.device | str) -> "GaussianLatents":
        label = None if self.labels is None else self.labels.to(device)
        return GaussianLatents(self.spec, self.values.to(device), self.std.to(device), label)


class StoredLatents(Dataset):
    """Consecutive rows of a folder, read when they are fetched."""

    def __init__(self, spec: DataSpec, table: _Table, rows: range, label: Tensor | None) -> None:
        self.spec, self._table, self._rows, self._label = spec, table, rows, label

    def __len__(self) -> int:
        return len(self._rows)

    def fetch(self, indices: Tensor) -> tuple[Tensor, Tensor | None]:
        label = None if self._label is None else self._label[indices].long()
        return _floats(self._table.mean[indices.numpy() + self._rows.start]), label

    def raw(self, indices: Tensor) -> Raw:
        std = self._table.std
        return Raw(*self.fetch(indices), None if std is None else _floats(std[indices.numpy() + self._rows.start]))


def _with(labels: object) -> str:
    return "with" if labels else "without"


def _floats(values: Array) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))
