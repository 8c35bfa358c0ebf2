"""What a program gives: values, states and classes, checked against the units of the data."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sde_diffusion.data.spec import DataSpec
from sde_diffusion.errors import InputError, is_whole, require, require_whole, shown_type

Label = int | str | Sequence[int | str] | Tensor | None
"""A class by index or name, or one for each example; None for no class."""


def labels_in_turn(spec: DataSpec, label: Label) -> Tensor:
    """The classes that samples take in turn, (n,); −1 for no class."""
    if isinstance(label, str) and label == "all" and "all" not in spec.classes:
        require(len(spec.classes) > 0, f"`label` = 'all' needs classes, but {spec.name} has none")
        return torch.arange(len(spec.classes))
    found = torch.tensor(-1) if label is None else class_indices(spec, label)
    return found[None] if found.ndim == 0 else found


def labels_of(spec: DataSpec, label: Label, count: int) -> Tensor:
    """One class for each of `count` examples, (count,); −1 for none."""
    found = torch.tensor(-1) if label is None else class_indices(spec, label)
    require(
        found.ndim == 0 or len(found) == count,
        f"`label` must be one class, or one for each of {count} examples, got {found.numel()}",
    )
    return found.expand(count) if found.ndim == 0 else found


def spans(count: int, batch: int, start: int = 0) -> Iterator[tuple[int, int]]:
    """First index and size of the batches that cover `count` examples from `start` on."""
    require_whole(batch=batch)
    return ((first, min(batch, start + count - first)) for first in range(start, start + count, batch))


def class_indices(spec: DataSpec, label: Label) -> Tensor:
    """Classes by index or name as indices, () or (n,) int64."""
    if isinstance(label, Tensor | np.ndarray):
        found = torch.as_tensor(label).cpu()
        whole = not (found.is_floating_point() or found.is_complex() or found.dtype == torch.bool)
        require(
            whole and found.ndim < 2 and found.numel() > 0,
            f"`label` must be one class or a list of them, (n,) whole numbers, got {found.dtype} of shape "
            f"{tuple(found.shape)}",
        )
        return found.long()
    if isinstance(label, str):
        require(
            label in spec.classes,
            f"`label` {label!r} is no class of {spec.name}; "
            + (f"its classes are {', '.join(spec.classes)}" if spec.classes else "it has no classes"),
        )
        return torch.tensor(spec.classes.index(label))
    if isinstance(label, Sequence):
        require(len(label) > 0, "`label` must name one class or more, got an empty list; leave it out for none")
        return torch.stack([class_indices(spec, one) for one in label])
    require(is_whole(label), f"`label` must be a class by index or name, got {label!r}")
    return torch.tensor(label)


def value_tensor(spec: DataSpec, values: Any, device: torch.device) -> Tensor:
    """Examples in the units of the data, checked, on `device`."""
    data = _tensor("values", values)
    require(
        data.ndim == len(spec.shape) + 1 and tuple(data.shape[1:]) == spec.shape and len(data) > 0,
        f"`values` must have the shape (B, {', '.join(map(str, spec.shape))}), got {tuple(data.shape)}"
        + ("; it holds no example" if data.ndim > 0 and len(data) == 0 else "")
        + ("; add the side of the batch: values[None]" if tuple(data.shape) == spec.shape else ""),
    )
    spec.check_values(data)
    if spec.levels is not None:
        data = data.to(spec.dtype)
    return data.to(device)


def state_tensor(spec: DataSpec, name: str, z: Any, device: torch.device) -> Tensor:
    """States in model coordinates, checked, on `device` in float32."""
    states = _tensor(name, z)
    require(
        tuple(states.shape[1:]) == spec.shape and len(states) > 0 and bool(states.isfinite().all()),
        f"`{name}` must be finite numbers of the shape (B, {', '.join(map(str, spec.shape))}), "
        f"got {tuple(states.shape)}",
    )
    return states.to(device, torch.float32)


def _tensor(name: str, values: Any) -> Tensor:
    """A tensor of what is one, or an array of numbers."""
    if isinstance(values, np.ndarray) and values.dtype.kind in "fiub" and values.dtype.itemsize <= 8:
        own = np.array(values, dtype=values.dtype.newbyteorder("="), order="C")  # of any strides, byte order and owner
        values = torch.from_numpy(own)
    if not isinstance(values, Tensor) or values.is_complex():
        found = f"{values.dtype}" if isinstance(values, Tensor | np.ndarray) else shown_type(values)
        raise InputError(f"`{name}` must be a tensor or an array of numbers, got {found}")
    return values.to(torch.uint8) if values.dtype == torch.bool else values
