"""What a data set is: a `DataSource` of options that loads splits, each a `Dataset` that is read by index.

A small set is one tensor, on the training device; one of more than `MEMORY_LIMIT` bytes stays on the disk and is read
as it is needed. Values are in data units; `loader.py` makes batches in model coordinates of them.
"""

import math
from abc import ABC, abstractmethod
from copy import copy
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from sde_diffusion.data.spec import DataSpec
from sde_diffusion.errors import InputError, require, require_kind, require_one_of

MEMORY_LIMIT = 1 << 30  # bytes; a set above it streams from the disk

Split = Literal["train", "test", "validation"]


class Batch(NamedTuple):
    """Examples as the model sees them.

    x: Model coordinates, (B, *shape) float32. label: Class indices, (B,) int64, or None.
    """

    x: Tensor
    label: Tensor | None


class Raw(NamedTuple):
    """Examples as they are stored.

    values: Data units, (B, *shape). label: (B,) int64, or None. std: Where each example is a Gaussian of mean
    `values`, its standard deviation, (B, *shape); otherwise None.
    """

    values: Tensor
    label: Tensor | None
    std: Tensor | None = None


class Dataset(ABC):
    """One split, in a fixed order."""

    spec: DataSpec
    in_memory: bool = False

    @abstractmethod
    def __len__(self) -> int:
        """Number of examples."""

    @abstractmethod
    def fetch(self, indices: Tensor) -> tuple[Tensor, Tensor | None]:
        """The examples at `indices`, (B,) int64 on the CPU.

        Returns:
            Values in data units, (B, *shape), and labels, (B,) int64, or None.

        Raises:
            InputError: A file cannot be read; the message names it.
        """

    def raw(self, indices: Tensor) -> Raw:
        """The examples at `indices` with all that is stored of them: what training draws from."""
        return Raw(*self.fetch(indices))

    def to(self, device: torch.device | str) -> "Dataset":
        """This set with its tensors on `device`; itself where it is read from the disk."""
        return self


class TensorDataset(Dataset):
    """A split held in memory.

    Args:
        spec: What the values mean.
        values: (N, *spec.shape), uint8 or int32 for discrete data, floating point for continuous data.
        labels: (N,) class indices, or None for data without classes.

    Raises:
        InputError: Values of another shape, kind or range, labels without classes, classes without labels, or a label
            that is not one of `spec.classes`.
    """

    in_memory = True

    def __init__(self, spec: DataSpec, values: Tensor, labels: Tensor | None = None) -> None:
        require_kind("spec", spec, DataSpec, "Continuous((2,)) or Discrete((1, 28, 28))")
        require_kind("values", values, Tensor, "torch.as_tensor(array)")
        require(
            values.ndim > 0 and tuple(values.shape[1:]) == spec.shape,
            f"`values` must have the shape (N, {', '.join(map(str, spec.shape))}) of their spec, "
            f"got {tuple(values.shape)}",
        )
        spec.check_values(values)
        require(
            spec.levels is None or not values.is_floating_point(),
            f"`values` must be whole numbers, as those of discrete data are, got {values.dtype}; convert them, or give "
            f"units without levels",
        )
        require(
            (labels is None) == (not spec.classes),
            f"`labels` must be given exactly where the spec names `classes`; it names {len(spec.classes)}",
        )
        if labels is not None:
            labels = torch.as_tensor(labels)
            require(
                len(labels) == len(values), f"`labels` must be one for each of {len(values)} values, got {len(labels)}"
            )
            spec.check_labels(labels)
        self.spec = spec
        self.values = values
        self.labels = None if labels is None else labels.long()

    def __len__(self) -> int:
        return len(self.values)

    def fetch(self, indices: Tensor) -> tuple[Tensor, Tensor | None]:
        indices = on_device(indices, self.values.device)
        return self.values[indices], None if self.labels is None else self.labels[indices]

    def to(self, device: torch.device | str) -> "TensorDataset":
        moved = copy(self)
        moved.values = self.values.to(device)
        moved.labels = None if self.labels is None else self.labels.to(device)
        return moved


def on_device(indices: Tensor, device: torch.device) -> Tensor:
    """Indices where the data are; on the way to CUDA the host waits for nothing."""
    return indices.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else indices.to(device)


class Subset(Dataset):
    """The examples `start … start + count − 1` of another set."""

    def __init__(self, base: Dataset, start: int, count: int) -> None:
        self.spec = base.spec
        self.in_memory = base.in_memory
        self._base, self._start, self._count = base, start, count

    def __len__(self) -> int:
        return self._count

    def fetch(self, indices: Tensor) -> tuple[Tensor, Tensor | None]:
        return self._base.fetch(indices + self._start)

    def raw(self, indices: Tensor) -> Raw:
        return self._base.raw(indices + self._start)

    def to(self, device: torch.device | str) -> "Subset":
        return Subset(self._base.to(device), self._start, self._count)


@dataclass(frozen=True)
class DataSource(ABC):
    """The options of a data set: its section of the config. A subclass adds fields and `read`.

    Args:
        validation: Number of examples cut off the end of the training split to be the validation split. At 0 the
            validation split is the test split: it is for monitoring only, nothing is selected by it.
    """

    validation: int = 0

    @abstractmethod
    def read(self, split: Literal["train", "test"]) -> Dataset:
        """The whole of one split, before a validation split is cut off.

        Raises:
            InputError: The data is absent, broken or does not fit the options.
        """

    def load(self, split: Split) -> Dataset:
        """One split.

        Raises:
            InputError: As `read`; an unknown split; `validation` below 0 or as large as the training split.
        """
        require_one_of("split", split, get_args(Split))
        require(self.validation >= 0, f"`data.validation` must be ≥ 0, got {self.validation}")
        if split == "test" or (split == "validation" and self.validation == 0):
            return self.read("test")
        train = self.read("train")
        cut = len(train) - self.validation
        if cut <= 0:
            raise InputError(
                f"`data.validation` must be < {len(train)}, the size of the training split, got {self.validation}"
            )
        if self.validation == 0:
            return train
        return Subset(train, 0, cut) if split == "train" else Subset(train, cut, self.validation)


def fits_in_memory(spec: DataSpec, count: int) -> bool:
    """Whether `count` examples are few enough to be held as one tensor."""
    return count * math.prod(spec.shape) * spec.dtype.itemsize <= MEMORY_LIMIT
