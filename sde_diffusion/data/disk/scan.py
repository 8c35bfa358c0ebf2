"""Looking at every number of a training split once: levels in range, or finite with mean and standard deviation.

Memory is bounded by a chunk. What is found of data that is read from the disk is kept in the user's cache folder, keyed
by names, sizes and dates of the files, so that a run of days does not read everything anew each time it is resumed.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from sde_diffusion.data.disk.shards import Array, Shards
from sde_diffusion.errors import InputError, require
from sde_diffusion.runtime.atomic_write import write_atomically

_CHUNK = 1 << 21  # numbers looked at together: 16 MB in float64
_WORTH = 1 << 28  # bytes; less is looked at again in a moment
_PATIENCE = 3.0  # seconds without a progress bar


@dataclass(frozen=True)
class Found:
    """Mean, standard deviation and least number, each over all numbers or over those of each channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    low: tuple[float, ...]


def scan_levels(file: Path, values: Array | Shards, levels: int, *, start: int, stop: int) -> None:
    """Check that the rows `start` … `stop` − 1 are from 0 to `levels` − 1.

    Raises:
        InputError: One is not; the message names `file`.
    """
    if _kept(values, start, stop, levels) is not None:
        return
    for chunk in _chunks(values, start, stop):
        low, high = int(chunk.min()), int(chunk.max())
        remedy = "shift the values, so that the lowest is 0" if low < 0 else "raise `data.levels` or fix the data"
        require(
            low >= 0 and high < levels,
            f"values in {file} must be from 0 to {levels - 1} (`data.levels` = {levels}), got "
            f"{low if low < 0 else high}; {remedy}",
        )
    _keep(values, start, stop, levels, Found((), (), ()))


def scan_floats(file: Path, values: Array | Shards, *, start: int, stop: int, channels: bool = False) -> Found:
    """Check that the rows `start` … `stop` − 1 are finite, and find their mean, standard deviation and least number.

    Args:
        channels: For each index of the first side of a row; otherwise over all numbers.

    Raises:
        InputError: A number is not finite; the message names `file`.
    """
    kept = _kept(values, start, stop, int(channels))
    if kept is not None:
        return kept
    groups = values.shape[1] if channels else 1
    pivot: Any = None  # the variance is Σ(y − pivot)² less a small correction
    total, squares, low = np.zeros(groups), np.zeros(groups), np.full(groups, np.inf)
    for chunk in _chunks(values, start, stop):
        wrong = chunk.size - int(np.isfinite(chunk).sum())
        require(wrong == 0, f"values in {file} must be finite, got {wrong} NaN or infinite; fix the data")
        numbers = chunk.astype(np.float64).reshape(len(chunk), groups, -1)
        pivot = numbers[:1].mean((0, 2), keepdims=True) if pivot is None else pivot
        low = np.minimum(low, numbers.min((0, 2)))
        numbers -= pivot
        total += numbers.sum((0, 2))
        squares += np.einsum("ncd,ncd->c", numbers, numbers)
    count = (stop - start) * (int(np.prod(values.shape[1:])) // groups)
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0.0))
    found = Found(tuple((pivot[0, :, 0] + mean).tolist()), tuple(std.tolist()), tuple(low.tolist()))
    _keep(values, start, stop, int(channels), found)
    return found


def _chunks(values: Array | Shards, start: int, stop: int) -> Iterator[Array]:
    rows = max(1, _CHUNK // int(np.prod(values.shape[1:])))
    steps = range(start, stop, rows)
    for i in tqdm(steps, desc="checking the data", delay=_PATIENCE, disable=None, leave=False):
        yield values[i : min(i + rows, stop)]


def _place(values: Array | Shards, start: int, stop: int, question: int) -> Path | None:
    """Where what is found is kept; None for data that is small or held in memory."""
    if not isinstance(values, Shards) or values.size * values.dtype.itemsize < _WORTH:
        return None
    digest = hashlib.sha256(json.dumps([start, stop, question, np.__version__]).encode())
    for file, stored in zip(values.files, values.stored, strict=True):
        try:
            status = file.stat()
        except OSError as error:
            raise InputError(f"cannot read {file}: {error.strerror}; restore it") from error
        digest.update(f"{file.resolve()}|{status.st_size}|{status.st_mtime_ns}|{stored!r}\n".encode())
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return folder / "sde_diffusion" / "scans" / f"{digest.hexdigest()}.json"


def _kept(values: Array | Shards, start: int, stop: int, question: int) -> Found | None:
    place = _place(values, start, stop, question)
    if place is None:
        return None
    try:
        return Found(**{key: tuple(map(float, numbers)) for key, numbers in json.loads(place.read_bytes()).items()})
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def _keep(values: Array | Shards, start: int, stop: int, question: int, found: Found) -> None:
    place = _place(values, start, stop, question)
    if place is not None:
        try:
            write_atomically(place, json.dumps(asdict(found)).encode())
        except InputError:
            return  # a home that cannot be written to costs the time of another scan, no more
