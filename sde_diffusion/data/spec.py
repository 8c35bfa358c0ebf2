"""What the numbers of a data set mean, and the one place that converts them.

Notation: n a discrete value in 0 … L − 1, y a continuous one, u ∈ [0, 1) the dequantisation noise, x the model
coordinate (float32) that networks and SDEs see, D the number of dimensions of one example.

    discrete:    x = 2 (n + u)/L − 1 ∈ [−1, 1]        continuous:    x = (y − shift)/scale

Reference for densities of dequantised data: Theis et al. 2016, arXiv:1511.01844, section 3.1.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.errors import InputError, is_whole, require, require_positive

OWN_DATA = "arrays"  # the data set whose options fit data that a program holds in its own tensors
MAX_LEVELS = 1 << 16  # 16-bit data; beyond it float32 has too few digits left for n + u


@dataclass(frozen=True)
class DataSpec:
    """The shape, units and classes of a data set; a checkpoint carries it and needs the data no more.

    Args:
        name: The data set's row in `DATASETS`.
        shape: Event shape: (C, H, W) for images, (D,) for vectors, anything for arrays.
        levels: Discrete values are 0 … levels − 1; None for continuous data.
        classes: Names of the classes, label i being `classes[i]`; empty for unlabelled data.
        shift, scale: Of continuous data, in its units: a number, or one for each of its channels, the first side.

    Raises:
        InputError: An empty or non-positive shape, levels outside 2 … 65536, a scale ≤ 0.
    """

    name: str
    shape: tuple[int, ...]
    levels: int | None
    classes: tuple[str, ...] = ()
    shift: float | tuple[float, ...] = 0.0
    scale: float | tuple[float, ...] = 1.0

    def __post_init__(self) -> None:
        require(
            len(self.shape) > 0 and all(is_whole(side) and side > 0 for side in self.shape),
            f"`shape` of the data must have one or more sizes, all > 0, got {self.shape}",
        )
        if self.levels is not None:
            require(is_whole(self.levels), f"`levels` must be a whole number, got {self.levels!r}")
            require(2 <= self.levels <= MAX_LEVELS, f"`levels` must be from 2 to {MAX_LEVELS}, got {self.levels}")
        for name, values in (("shift", _listed(self.shift)), ("scale", _listed(self.scale))):
            require(
                not isinstance(getattr(self, name), tuple) or len(values) == self.shape[0],
                f"`{name}` must be a number or one for each of {self.shape[0]} channels, got {len(values)}",
            )
        require_positive(scale=min(_listed(self.scale)))
        require(all(map(math.isfinite, _listed(self.shift))), f"`shift` must be finite, got {self.shift}")

    @property
    def dims(self) -> int:
        """D, the number of dimensions of one example."""
        return math.prod(self.shape)

    @property
    def is_image(self) -> bool:
        """Whether one example can be drawn: (1 or 3, H, W)."""
        return len(self.shape) == 3 and self.shape[0] in (1, 3)

    def to_model(self, values: Tensor, u: Tensor | None = None) -> Tensor:
        """Data units to model coordinates.

        Args:
            values: n or y, (B, *shape).
            u: Dequantisation noise in [0, 1), shape of `values`; None for the centre of the bin. Unused by
                continuous data.

        Returns:
            x, (B, *shape) float32.
        """
        if self.levels is None:
            return ((values - self._along(self.shift, values)) / self._along(self.scale, values)).float()
        return (values.float() + (0.5 if u is None else u)) * (2 / self.levels) - 1

    def from_model(self, x: Tensor) -> Tensor:
        """Model coordinates to data units, the inverse of `to_model`.

        Returns:
            n = ⌊L (x + 1)/2⌋ clipped to 0 … L − 1, as uint8 (int32 where L > 256); or y = shift + scale x.
        """
        if self.levels is None:
            return self._along(self.shift, x) + self._along(self.scale, x) * x
        n = ((x.float() + 1) * (self.levels / 2)).floor().clamp(0, self.levels - 1)
        return n.to(self.dtype)

    def _along(self, value: float | tuple[float, ...], values: Tensor) -> float | Tensor:
        """A number as it is, one for each channel as a tensor that goes with (…, *shape)."""
        if not isinstance(value, tuple):
            return value
        kind = torch.float64 if values.dtype == torch.float64 else torch.float32
        return _column(value, kind, values.device).reshape(-1, *[1] * (len(self.shape) - 1))

    @property
    def dtype(self) -> torch.dtype:
        """Of values in data units, as `from_model` returns them."""
        if self.levels is None:
            return torch.float32
        return torch.uint8 if self.levels <= 256 else torch.int32

    def to_uint8(self, values: Tensor) -> Tensor:
        """Grey values 0 … 255 for pictures, from data units.

        Discrete data goes from 0 … L − 1 to 0 … 255; continuous data from shift ± 3 scale, clipped, so that a picture
        does not depend on its neighbours. NaN is black.
        """
        if self.levels is None:
            shift, scale = self._along(self.shift, values), self._along(self.scale, values)
            grey = ((values - shift) / (6 * scale) + 0.5).nan_to_num(nan=0.0)
        else:
            grey = values.float() / (self.levels - 1)
        return (grey.clamp(0, 1) * 255).round().to(torch.uint8)

    @property
    def bits_offset(self) -> float:
        """−log₂ dx/dn = log₂(L/2), or −log₂ dx/dy = log₂ scale (its mean): bits per dimension from x to data units."""
        return math.log2(self.unit if self.levels is None else self.levels / 2)

    @property
    def unit(self) -> float:
        """`scale`, or the geometric mean of those of the channels."""
        if not isinstance(self.scale, tuple):
            return self.scale
        return math.exp(math.fsum(map(math.log, self.scale)) / len(self.scale))

    def bits_per_dim(self, log_prob: Tensor) -> Tensor:
        """Negative log-density of the data in its own units, −log₂ p(x)/D + `bits_offset`.

        Of discrete data this is the density of n + u, whose mean over u bounds the code length of n from above; the
        uniform density has log₂ L. Of continuous data it is the density of y, which may be negative.

        Args:
            log_prob: log p(x) in nats, in model coordinates, (B,).

        Returns:
            (B,) bits per dimension.
        """
        return -log_prob / (self.dims * math.log(2)) + self.bits_offset

    def describe_units(self, noise: str = "uniform in [0, 1)") -> str:
        """One line that spells out what a number of bits per dimension of this data means.

        Args:
            noise: How u is drawn.
        """
        product = f"{'×'.join(map(str, self.shape))} = " if len(self.shape) > 1 else ""
        size = f"{product}{self.dims} dimensions"
        formula = f"−log₂ p(x)/{self.dims} {'−' if self.bits_offset < 0 else '+'} {abs(self.bits_offset):.4f}"
        if self.levels is None:
            return (
                f"bits/dim over {size} of continuous values: density of y, "
                f"{formula} with x = (y − {_shown(self.shift)})/{_shown(self.scale)}"
            )
        return (
            f"bits/dim over {size} of {self.levels} levels (0 … {self.levels - 1}): density of n + u, u {noise}, "
            f"{formula} with x = 2(n + u)/{self.levels} − 1"
        )

    def check_labels(self, labels: Tensor | Sequence[int], source: str = "label") -> None:
        """Check that every label names a class.

        Args:
            labels: Class indices, any shape.
            source: What the message calls them, e.g. the file they come from.

        Raises:
            InputError: A label below 0 or ≥ the number of classes, or data without classes.
        """
        labels = torch.as_tensor(labels)
        require(len(self.classes) > 0, f"`{source}` cannot be used: {self.name} has no classes; leave it out")
        wrong = labels[(labels < 0) | (labels >= len(self.classes))]
        if wrong.numel():
            raise InputError(
                f"`{source}` must be from 0 to {len(self.classes) - 1}, the classes of {self.name} "
                f"({', '.join(self.classes[:10])}{', …' if len(self.classes) > 10 else ''}), got {int(wrong[0])}"
            )

    def check_values(self, values: Tensor, source: str = "values") -> None:
        """Check that numbers may be values of this data, in its units.

        Args:
            values: Any shape.
            source: What the message calls them.

        Raises:
            InputError: NaN or infinity; for discrete data also a fraction, or a value outside 0 … levels − 1.
        """
        if values.is_floating_point() and not bool(values.isfinite().all()):
            wrong = int((~values.isfinite()).sum())
            raise InputError(f"`{source}` must be finite, got {wrong} numbers that are NaN or infinite")
        if self.levels is None or values.numel() == 0:
            return
        low, high = values.min().item(), values.max().item()
        whole = not values.is_floating_point() or bool((values == values.round()).all())
        require(
            whole and low >= 0 and high < self.levels,
            f"`{source}` must be whole numbers from 0 to {self.levels - 1}, the grey values of {self.name}, "
            f"got {'numbers' if whole else 'fractions'} from {low:g} to {high:g}",
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, which `from_dict` reads back."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "DataSpec":
        """The spec that `to_dict` wrote.

        Raises:
            InputError: A key is missing, unknown or of the wrong type.
        """
        try:
            fields = dict(values)
            sides = {key: tuple(value) for key, value in fields.items() if isinstance(value, list | tuple)}
            return cls(**fields | sides | {"shape": tuple(fields["shape"]), "classes": tuple(fields["classes"])})
        except (KeyError, TypeError) as error:
            raise InputError(f"not the description of a data set: {error}; was the file edited?") from error


def Continuous(
    shape: Sequence[int],
    *,
    shift: float | Sequence[float] | Tensor = 0.0,
    scale: float | Sequence[float] | Tensor = 1.0,
    classes: Sequence[str] = (),
) -> DataSpec:
    """The units of your own continuous data: events of `shape`, seen by the model as x = (y − shift)/scale.

    Args:
        shape: Of one example, such as (2,) for points in the plane or (1, 64) for a series of one channel.
        shift, scale: A number each, or one for each channel (the first side), such as the mean and the standard
            deviation of the data. The defaults leave the data as they are.
        classes: Names of the classes, if there are any.
    """
    units = {"shift": _numbers(shift), "scale": _numbers(scale)}
    return DataSpec(OWN_DATA, _sides(shape), levels=None, classes=tuple(classes), **units)


def Discrete(shape: Sequence[int], levels: int = 256, *, classes: Sequence[str] = ()) -> DataSpec:
    """The units of your own discrete data: events of `shape` with values 0 … `levels` − 1, such as 8-bit images."""
    return DataSpec(OWN_DATA, _sides(shape), levels=levels, classes=tuple(classes))


def _sides(shape: Sequence[int]) -> tuple[int, ...]:
    if not isinstance(shape, list | tuple):
        raise InputError(f"`shape` must be the sides of one example, such as (2,) or (1, 28, 28), got {shape!r}")
    return tuple(shape)


def _numbers(value: float | Sequence[float] | Tensor) -> float | tuple[float, ...]:
    """One number as it is; several, one for each channel, as a tuple."""
    found: Any = value.tolist() if isinstance(value, Tensor) else value
    if not isinstance(found, Sequence):
        return float(found)
    return float(found[0]) if len(found) == 1 else tuple(map(float, found))


@lru_cache(maxsize=64)
def _column(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor made once, since making one on CUDA waits for the device."""
    return torch.tensor(values, dtype=dtype, device=device)


def _listed(value: float | tuple[float, ...]) -> tuple[float, ...]:
    return value if isinstance(value, tuple) else (value,)


def _shown(value: float | tuple[float, ...]) -> str:
    shown = ", ".join(f"{number:g}" for number in _listed(value))
    return f"({shown})" if isinstance(value, tuple) else shown
