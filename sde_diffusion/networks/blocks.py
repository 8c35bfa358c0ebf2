"""The parts of the U-Net: residual block, down- and up-sampling, and how channels are shared out.

Tensors are (B, C, H, W) in the contiguous layout: the CPU's GroupNorm is many times slower in channels_last.

Reference: Ho et al. 2020, "Denoising Diffusion Probabilistic Models", arXiv:2006.11239, appendix B.
"""

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)

GROUP_CHANNELS = 4  # fewer leave too little to normalise over at low resolution


def zeroed(layer: Layer) -> Layer:
    """The layer with weight and bias zero, so that what it ends starts as zero."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def parts(channels: int, most: int, width: int) -> int:
    """The largest number of equal parts of `channels`, at most `most`, each at least `width` wide; 1 if none fits."""
    fits = (n for n in range(min(most, channels // width), 0, -1) if channels % n == 0)
    return next(fits, 1)


def group_norm(channels: int, groups: int) -> nn.GroupNorm:
    """GroupNorm with the most groups, up to `groups`, that are equal and have at least 4 channels each."""
    return nn.GroupNorm(parts(channels, groups, GROUP_CHANNELS), channels)


class ResidualBlock(nn.Module):
    """skip(x) + conv(dropout(SiLU(norm(conv(SiLU(norm(x))) + shift)))); starts as skip(x).

    `shift` is the block's share of the time embedding, one number a channel. The skip is a 1×1 convolution where the
    number of channels changes, else the identity.
    """

    def __init__(self, inputs: int, outputs: int, *, dropout: float, groups: int) -> None:
        super().__init__()
        self.norm1 = group_norm(inputs, groups)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = group_norm(outputs, groups)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zeroed(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, shift: Tensor) -> Tensor:
        """(B, inputs, H, W), (B, outputs) -> (B, outputs, H, W)."""
        h = self.conv1(functional.silu(self.norm1(x))) + shift[:, :, None, None]
        h = self.conv2(self.dropout(functional.silu(self.norm2(h))))
        out: Tensor = self.skip(x) + h
        return out


class Downsample(nn.Conv2d):
    """A 3×3 convolution of stride 2: sides n become ⌈n/2⌉."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, stride=2, padding=1)


class Upsample(nn.Conv2d):
    """Each pixel twice in both directions, then a 3×3 convolution: sides n become 2n."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(functional.interpolate(x, scale_factor=2.0, mode="nearest"))


def join(x: Tensor, skip: Tensor) -> Tensor:
    """`x`, cropped to the sides of `skip`, and `skip` behind each other, (B, C + C', H, W)."""
    return torch.cat([x[..., : skip.shape[-2], : skip.shape[-1]], skip], 1)
