"""Densities in the plane, to look at and to test with: 2-D vectors, drawn from a seed.

Each is a class with the formula in its docstring and a row in `DATASETS`. Model coordinates are standardised by the
mean and the standard deviation of the training split over both coordinates, to three decimals.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Generator, Tensor

from sde_diffusion.data.dataset import DataSource, TensorDataset
from sde_diffusion.data.spec import DataSpec
from sde_diffusion.errors import require, require_positive
from sde_diffusion.rng import generator

_TRAIN, _TEST = 0x70E501, 0x70E502  # purposes of random numbers


@dataclass(frozen=True)
class Toy(DataSource):
    """Points of the plane from a formula.

    Args:
        train, test: Number of points in each split.
        seed: The same seed gives the same points.

    Raises:
        InputError: `train` < 2 or `test` < 1.
    """

    train: int = 50_000
    test: int = 10_000
    seed: int = 0

    name: ClassVar[str]
    classes: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def draw(self, count: int, rng: Generator) -> tuple[Tensor, Tensor | None]:
        """Points, (count, 2) float32, and the labels of their classes, (count,) int64, or None."""

    def read(self, split: Literal["train", "test"]) -> TensorDataset:
        require(self.train >= 2, f"`data.train` must be ≥ 2, got {self.train}")
        require_positive(**{"data.test": self.test})
        points, labels = self.draw(self.train, generator(self.seed, _TRAIN))
        shift, scale = round(float(points.mean()), 3), round(float(points.std()), 3)
        if split == "test":
            points, labels = self.draw(self.test, generator(self.seed, _TEST))
        spec = DataSpec(self.name, (2,), levels=None, classes=self.classes, shift=shift, scale=scale)
        return TensorDataset(spec, points, labels)


def _normal(count: int, rng: Generator, std: float) -> Tensor:
    return std * torch.randn(count, 2, generator=rng)


def _circle(angle: Tensor) -> Tensor:
    return torch.stack([angle.cos(), angle.sin()], dim=1)


@dataclass(frozen=True)
class TwoMoons(Toy):
    """Two interleaved half circles, θ ~ U[0, π]: (cos θ, sin θ) and (1 − cos θ, ½ − sin θ), each + N(0, 0.1² I)."""

    name: ClassVar[str] = "two_moons"
    classes: ClassVar[tuple[str, ...]] = ("upper", "lower")

    def draw(self, count: int, rng: Generator) -> tuple[Tensor, Tensor | None]:
        label = torch.randint(2, (count,), generator=rng)
        upper = _circle(math.pi * torch.rand(count, generator=rng))
        lower = torch.tensor([1.0, 0.5]) - upper
        return torch.where(label[:, None] == 0, upper, lower) + _normal(count, rng, 0.1), label


@dataclass(frozen=True)
class SwissRoll(Toy):
    """A spiral of 1½ turns: r (cos r, sin r)/5 + N(0, 0.1² I) with r = (3π/2)(1 + 2v), v ~ U[0, 1]."""

    name: ClassVar[str] = "swiss_roll"

    def draw(self, count: int, rng: Generator) -> tuple[Tensor, Tensor | None]:
        radius = 1.5 * math.pi * (1 + 2 * torch.rand(count, generator=rng))
        return radius[:, None] * _circle(radius) / 5 + _normal(count, rng, 0.1), None


@dataclass(frozen=True)
class Checkerboard(Toy):
    """Uniform on the 8 dark squares of a 4×4 board that covers [−2, 2]²; its density there is 1/8."""

    name: ClassVar[str] = "checkerboard"

    def draw(self, count: int, rng: Generator) -> tuple[Tensor, Tensor | None]:
        column = torch.randint(4, (count,), generator=rng)
        row = 2 * torch.randint(2, (count,), generator=rng) + column % 2
        corner = torch.stack([column, row], dim=1) - 2
        return corner + torch.rand(count, 2, generator=rng), None


@dataclass(frozen=True)
class EightGaussians(Toy):
    """Eight Gaussians N(μ_k, 0.2² I) of equal weight, μ_k = 2 (cos kπ/4, sin kπ/4)."""

    name: ClassVar[str] = "eight_gaussians"
    classes: ClassVar[tuple[str, ...]] = tuple(map(str, range(8)))

    def draw(self, count: int, rng: Generator) -> tuple[Tensor, Tensor | None]:
        label = torch.randint(8, (count,), generator=rng)
        return 2 * _circle(label * (math.pi / 4)) + _normal(count, rng, 0.2), label


@dataclass(frozen=True)
class Rings(Toy):
    """Three concentric circles of equal weight, k (cos θ, sin θ) + N(0, 0.1² I) with k = 1, 2, 3 and θ ~ U[0, 2π]."""

    name: ClassVar[str] = "rings"
    classes: ClassVar[tuple[str, ...]] = ("inner", "middle", "outer")

    def draw(self, count: int, rng: Generator) -> tuple[Tensor, Tensor | None]:
        label = torch.randint(3, (count,), generator=rng)
        circle = _circle(2 * math.pi * torch.rand(count, generator=rng))
        return (label + 1)[:, None] * circle + _normal(count, rng, 0.1), label
