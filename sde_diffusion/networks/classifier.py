"""Networks that tell the class of a noisy example, F(x, c_noise) -> logits (B, classes). They know no SDE.

A new one is a class here and a row in `CLASSIFIERS`. Each starts with all logits zero: every class alike.

Reference: Dhariwal & Nichol 2021, arXiv:2105.05233, section 4: the way down of the U-Net.
"""

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from sde_diffusion.errors import require, require_positive
from sde_diffusion.networks.blocks import Downsample, Layers, ResidualBlock, zeroed
from sde_diffusion.networks.embedding import Condition


class Encoder(nn.Module):
    """The way down of the U-Net, without attention, then the mean over all places and a linear layer.

    Args:
        shape: Of one event, (channels, *sides) with one to three sides.
        classes: Number of classes, 2 or more.
        channels: Width of level 0, even and at least 4; the time embedding has as many features.
        multipliers: Width of each level as a multiple of `channels`; their number is the number of levels.
        blocks: Residual blocks per level.
        dropout: Probability of dropping a feature inside the residual blocks, in training.
        groups: Most groups of a GroupNorm.

    Raises:
        InputError: An argument outside its range.
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        classes: int = 2,
        channels: int = 32,
        multipliers: tuple[int, ...] = (1, 2, 2),
        blocks: int = 1,
        dropout: float = 0.1,
        groups: int = 32,
    ) -> None:
        super().__init__()
        shape = tuple(shape)
        require(
            2 <= len(shape) <= 4 and min(shape) > 0,
            f"`shape` must be (channels, *sides) for the classifier 'encoder', got {shape}; 'mlp' takes any",
        )
        _check(classes, channels, "channels")
        require(min(multipliers, default=0) > 0, f"`multipliers` must be numbers > 0, got {tuple(multipliers)}")
        require_positive(blocks=blocks, groups=groups)
        require(0 <= dropout < 1, f"`dropout` must be in [0, 1), got {dropout}")
        self.shape, self.classes, width = shape, classes, channels
        layers = Layers(dims=len(shape) - 1, groups=groups)
        self.entry = layers.conv(shape[0], width)
        self.stages = nn.ModuleList()
        self._widths: list[int] = []
        for level, multiplier in enumerate(multipliers):
            if level:
                self.stages.append(Downsample(width, dims=layers.dims))
            for _ in range(blocks):
                self.stages.append(ResidualBlock(width, multiplier * channels, layers, dropout=dropout))
                width = multiplier * channels
                self._widths.append(width)
        self.norm = layers.norm(width)
        self.output = zeroed(nn.Linear(width, classes))
        self.condition = Condition(channels, 4 * channels, classes=0, embedding="sinusoidal", scale=16.0)
        self.shifts = nn.Linear(4 * channels, sum(self._widths))  # of all residual blocks in one product

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        """(B, *shape), (B,) -> logits (B, classes)."""
        shifts = iter(self.shifts(self.condition(c_noise, None)).split(self._widths, 1))
        h: Tensor = self.entry(x)
        for stage in self.stages:
            h = stage(h, next(shifts)) if isinstance(stage, ResidualBlock) else stage(h)
        logits: Tensor = self.output(functional.silu(self.norm(h)).flatten(2).mean(2))
        return logits


class VectorClassifier(nn.Module):
    """Residual layers h + W₂ SiLU(W₁ SiLU(h) + shift) on the flattened x, then a linear layer; for any shape.

    Args:
        shape: Of one event; any.
        classes: Number of classes, 2 or more.
        width: Features of a hidden layer, even and at least 4; the time embedding has as many.
        depth: Number of residual layers.

    Raises:
        InputError: An argument outside its range.
    """

    def __init__(self, shape: Sequence[int], *, classes: int = 2, width: int = 128, depth: int = 2) -> None:
        super().__init__()
        shape = tuple(shape)
        require(min(shape, default=0) > 0, f"`shape` must be one or more sizes > 0, got {shape}")
        _check(classes, width, "width")
        require_positive(depth=depth)
        self.shape, self.classes = shape, classes
        self.input = nn.Linear(math.prod(shape), width)
        self.first = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.second = nn.ModuleList(zeroed(nn.Linear(width, width)) for _ in range(depth))
        self.output = zeroed(nn.Linear(width, classes))
        self.condition = Condition(width, width, classes=0, embedding="sinusoidal", scale=16.0)
        self.shifts = nn.Linear(width, depth * width)  # of all layers in one product

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        """(B, *shape), (B,) -> logits (B, classes)."""
        shifts = self.shifts(self.condition(c_noise, None)).chunk(len(self.first), 1)
        h = self.input(x.flatten(1))
        for first, second, shift in zip(self.first, self.second, shifts, strict=True):
            h = h + second(functional.silu(first(functional.silu(h)) + shift))
        logits: Tensor = self.output(functional.silu(h))
        return logits


def _check(classes: int, width: int, name: str) -> None:
    require(classes >= 2, f"`classes` must be ≥ 2 to tell apart, got {classes}")
    require(width >= 4 and width % 2 == 0, f"`{name}` must be even and ≥ 4, got {width}")


CLASSIFIERS: dict[str, type[nn.Module]] = {"encoder": Encoder, "mlp": VectorClassifier}
