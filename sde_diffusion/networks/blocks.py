"""The parts of the U-Net: convolution, residual block, down- and up-sampling, and how channels are shared out.

Tensors are (B, C, *sides) with one, two or three sides.

Reference: Ho et al. 2020, "Denoising Diffusion Probabilistic Models", arXiv:2006.11239, appendix B.
"""

import math
from dataclasses import dataclass
from typing import Literal, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from sde_diffusion.networks.norm import GroupNorm

Padding = Literal["symmetric", "same"]
TimeInput = Literal["shift", "scale_shift"]
BlockOrder = Literal["norm_first", "conv_first"]

GROUP_CHANNELS = 4  # fewer leave too little to normalise over at low resolution
CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}  # by the number of sides
STANDARDISED_EPS = 1e-5  # added to the variance of a filter's weights


class Conv(nn.Module):
    """A convolution over one, two or three sides, of odd width; sides n become ⌈n/stride⌉.

    Args:
        inputs, outputs: Channels.
        size: Width of the filter, odd.
        dims: Number of sides.
        stride: 1 or 2.
        padding: Where zeros go at stride 2 and width 3: one at both ends (`symmetric`), or as few as fill the last
            window, of two one at each end and a single one at the far end (`same`, as in TensorFlow, where DDPM's
            weights come from).
        standardised: Whether each filter's weights are used with mean 0 and variance 1; a normalisation must follow.

    Reference: for the standardised, Qiao et al. 2019, arXiv:1903.10520, eq. 2.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int = 3,
        *,
        dims: int = 2,
        stride: int = 1,
        padding: Padding = "symmetric",
        standardised: bool = False,
    ) -> None:
        super().__init__()
        self.stride, self.standardised = stride, standardised
        self.margin = size // 2
        self.same = padding == "same" and stride > 1
        self.convolve = CONVOLUTIONS[dims]
        self.weight = nn.Parameter(torch.empty(outputs, inputs, *(size,) * dims))
        self.bias = nn.Parameter(torch.empty(outputs))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))  # as torch's own: U(±1/√fan_in), for the bias too
        bound = 1 / math.sqrt(self.weight[0].numel())
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, *sides) -> (B, outputs, *sides)."""
        weight = standardise(self.weight) if self.standardised else self.weight
        margin: int = self.margin
        if self.same:
            ends = [end for side in reversed(x.shape[2:]) for end in (side % 2, 1)]
            x, margin = functional.pad(x, ends), 0
        if not unwritten(x):
            return by_pixels(self.convolve(x, weight, self.bias, self.stride, margin), weight)
        with torch.autocast("cpu", enabled=False):
            return self.convolve(x.float(), weight.float(), self.bias.float(), self.stride, margin).to(x.dtype)


def unwritten(x: Tensor) -> bool:
    """Whether a convolution of `x` would learn from stale memory.

    In half precision the CPU leaves parts of the weights' gradient unwritten where they see nothing but padding (torch
    2.15, oneDNN): at stride 2 on maps of side 1, and for volumes on sides up to 3.
    """
    tiny = min(x.shape[2:]) <= (3 if x.ndim == 5 else 1)
    half = x.dtype.itemsize < 4 or (x.dtype == torch.float32 and torch.is_autocast_enabled("cpu"))
    return tiny and half and x.device.type == "cpu"


def by_pixels(x: Tensor, weight: Tensor) -> Tensor:
    """`x` in the memory format of the weight that made it: one input channel leaves the kernel without a hint."""
    if x.ndim == 4 and weight.stride(1) == 1 and weight[0, 0].numel() > 1:
        return x.contiguous(memory_format=torch.channels_last)
    return x


def standardise(weight: Tensor) -> Tensor:
    """Each filter (in, *sides) of `weight` with mean 0 and variance 1: (w − mean)/√(variance + 1e-5)."""
    variance, mean = torch.var_mean(weight, list(range(1, weight.ndim)), correction=0, keepdim=True)
    return (weight - mean) * torch.rsqrt(variance + STANDARDISED_EPS)


Layer = TypeVar("Layer", Conv, nn.Conv2d, nn.Linear)


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


def group_norm(channels: int, groups: int, *, least: int = GROUP_CHANNELS, eps: float = 1e-5) -> GroupNorm:
    """GroupNorm with the most groups, up to `groups`, that are equal and have at least `least` channels each."""
    return GroupNorm(parts(channels, groups, least), channels, eps=eps)


@dataclass(frozen=True, kw_only=True)
class Layers:
    """How the layers of one network are made.

    Attributes:
        dims: Number of sides of a feature map: 1 for series, 2 for images, 3 for volumes.
        groups: Most groups of a GroupNorm.
        group_channels: Least channels in one.
        norm_eps: Added to the variance in a GroupNorm.
        standardised: Whether the residual blocks' convolutions are weight-standardised; see `Conv`.
    """

    dims: int = 2
    groups: int = 32
    group_channels: int = GROUP_CHANNELS
    norm_eps: float = 1e-5
    standardised: bool = False

    def norm(self, channels: int) -> GroupNorm:
        """A GroupNorm."""
        return group_norm(channels, self.groups, least=self.group_channels, eps=self.norm_eps)

    def conv(self, inputs: int, outputs: int, size: int = 3) -> Conv:
        """A convolution that keeps the sides."""
        return Conv(inputs, outputs, size, dims=self.dims)

    def inner(self, inputs: int, outputs: int) -> Conv:
        """A convolution of width 3 inside a residual block."""
        return Conv(inputs, outputs, dims=self.dims, standardised=self.standardised)


class ResidualBlock(nn.Module):
    """skip(x) + conv(dropout(SiLU(time(norm(conv(SiLU(norm(x))))))); starts as skip(x).

    `time` is what the block is told of the time embedding: a shift of each channel before the norm, or a scale and a
    shift of each after it, h (1 + scale) + shift (FiLM). The skip is a 1×1 convolution where the number of channels
    changes, else the identity. In the order `conv_first` it is skip(x) + SiLU(norm(conv(dropout(SiLU(time(norm(conv(
    x)))))))), the order that weight-standardised convolutions want.

    Args:
        inputs, outputs: Channels.
        layers: How its layers are made.
        dropout: Probability of dropping a feature, in training.
        time: `shift` or `scale_shift`.
        order: `norm_first` as in DDPM, or `conv_first`.

    Reference: Ho et al. 2020, arXiv:2006.11239, appendix B; Nichol & Dhariwal 2021, arXiv:2102.09672, section 2, for
    scale and shift.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        layers: Layers,
        *,
        dropout: float,
        time: TimeInput = "shift",
        order: BlockOrder = "norm_first",
    ) -> None:
        super().__init__()
        self.scaled, self.conv_first = time == "scale_shift", order == "conv_first"
        self.norm1 = layers.norm(outputs if self.conv_first else inputs)
        self.conv1 = layers.inner(inputs, outputs)
        self.norm2 = layers.norm(outputs)
        self.dropout = nn.Dropout(dropout)
        conv2 = layers.inner(outputs, outputs)
        self.conv2 = conv2 if self.conv_first else zeroed(conv2)
        self.skip = layers.conv(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """(B, inputs, *sides), (B, outputs or 2 outputs) -> (B, outputs, *sides)."""
        told = {"film": time} if self.scaled else {"shift": time}
        if self.conv_first:
            h = self.norm1.silu(self.conv1(x), **told)
            out: Tensor = self.skip(x) + self.norm2.silu(self.conv2(self.dropout(h)))
            return out
        h = self.norm2.silu(self.conv1(self.norm1.silu(x)), **told)
        out = self.skip(x) + self.conv2(self.dropout(h))
        return out


class Downsample(Conv):
    """A convolution of width 3 and stride 2: sides n become ⌈n/2⌉."""

    def __init__(self, channels: int, *, dims: int = 2, padding: Padding = "symmetric") -> None:
        super().__init__(channels, channels, dims=dims, stride=2, padding=padding)


class Upsample(Conv):
    """Each pixel twice in every direction, then a convolution of width 3: sides n become 2n."""

    def __init__(self, channels: int, *, dims: int = 2) -> None:
        super().__init__(channels, channels, dims=dims)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(functional.interpolate(x, scale_factor=2.0, mode="nearest"))


class Head(nn.Sequential):
    """conv(SiLU(norm(x))): what reads the output off a feature map."""

    def __init__(self, norm: GroupNorm, conv: Conv) -> None:
        super().__init__(norm, nn.SiLU(), conv)

    def forward(self, x: Tensor) -> Tensor:
        norm, _, conv = self
        out: Tensor = conv(cast(GroupNorm, norm).silu(x))
        return out


def join(x: Tensor, skip: Tensor) -> Tensor:
    """`x`, cropped to the sides of `skip`, and `skip` behind each other, (B, C + C', *sides)."""
    crop = tuple(slice(side) for side in skip.shape[2:])
    return torch.cat([x[(slice(None), slice(None), *crop)], skip], 1)
