"""Halving and doubling the sides of feature maps: by the low-pass filter (1, 3, 3, 1), by boxes, or by convolutions.

In each direction the filter f = (1, 3, 3, 1) takes n pixels to ⌈n/2⌉ or to 2n,

    down  y_i = ⅛ Σ_k f_k x_{2i−1+k},        up  y_{2i} = ¼ (x_{i−1} + 3 x_i),  y_{2i+1} = ¼ (3 x_i + x_{i+1}),

with zeros around the image, one row or column more after an odd side. For even sides up is 4 times the transpose of
down. The taps are multiples of 1/64, exact in every floating-point type. Both are grouped convolutions: every order and
mode of differentiation that PyTorch has for convolutions works.

References: Zhang 2019, arXiv:1904.11486, on why; Karras et al. 2020, arXiv:1912.04958, appendix B.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from sde_diffusion.networks.blocks import Conv, Layer

TAPS = (1.0, 3.0, 3.0, 1.0)


def glorot(layer: Layer, parts: Sequence[int] = (), gain: float = 1.0) -> Layer:
    """The layer with weights uniform in ± gain √(6/(fan in + fan out)) and bias zero, the published start.

    Args:
        layer: Convolution or linear layer.
        parts: Numbers of rows of layers that lie in this one behind each other, each with its own fan; empty for one.
        gain: Factor of the standard deviation.
    """
    for rows in torch.split(layer.weight.data, list(parts) or len(layer.weight)):
        nn.init.xavier_uniform_(rows, gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def even(x: Tensor) -> Tensor:
    """`x` (B, C, H, W) with a row and a column of zeros after it where its sides are odd."""
    height, width = x.shape[-2:]
    return functional.pad(x, (0, width % 2, 0, height % 2)) if height % 2 or width % 2 else x


class LowPass(nn.Module):
    """The filter f ⊗ f / 64, of sum 1, of each channel on its own."""

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        taps = torch.tensor(TAPS, device="cpu")
        self.register_buffer("kernel", torch.outer(taps, taps) / 64, persistent=False)

    def filtered(self, x: Tensor, *, stride: int, padding: int) -> Tensor:
        """(B, C, H, W) -> (B, C, ⌊(H + 2 padding − 4)/stride⌋ + 1, …)."""
        kernel = self.kernel.expand(x.shape[1], 1, 4, 4)
        return functional.conv2d(x, kernel, stride=stride, padding=padding, groups=x.shape[1])

    def spread(self, x: Tensor, *, padding: int) -> Tensor:
        """(B, C, H, W) -> (B, C, 2H + 2 − 2 padding, …)."""
        kernel = 4 * self.kernel.expand(x.shape[1], 1, 4, 4)
        return functional.conv_transpose2d(x, kernel, stride=2, padding=padding, groups=x.shape[1])


class FilterDown(LowPass):
    """Filtered and thinned out: sides n become ⌈n/2⌉."""

    def forward(self, x: Tensor) -> Tensor:
        return self.filtered(even(x), stride=2, padding=1)


class FilterUp(LowPass):
    """Zeros put between the pixels, then filtered: sides n become 2n."""

    def forward(self, x: Tensor) -> Tensor:
        return self.spread(x, padding=1)


class FilterConvDown(LowPass):
    """Filtered, then a 3×3 convolution of stride 2, the image padded once: sides n become ⌈n/2⌉."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = glorot(nn.Conv2d(inputs, outputs, 3, stride=2))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(self.filtered(even(x), stride=1, padding=2))
        return out


class FilterConvUp(LowPass):
    """Zeros put between the pixels and filtered, then a 3×3 convolution without new padding: sides n become 2n."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = glorot(nn.Conv2d(inputs, outputs, 3))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(self.spread(x, padding=0))
        return out


class ConvUp(nn.Module):
    """Each pixel twice in both directions, then a 3×3 convolution: sides n become 2n."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = glorot(Conv(inputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out


def down(*, fir: bool) -> nn.Module:
    """Halves the sides without parameters: by the filter, or by the mean of the pixels of each 2×2 box."""
    return FilterDown() if fir else nn.AvgPool2d(2, ceil_mode=True)


def up(*, fir: bool) -> nn.Module:
    """Doubles the sides without parameters: by the filter, or each pixel twice."""
    return FilterUp() if fir else nn.Upsample(scale_factor=2.0, mode="nearest")


def conv_down(inputs: int, outputs: int, *, fir: bool) -> nn.Module:
    """Halves the sides by a learned convolution."""
    return FilterConvDown(inputs, outputs) if fir else glorot(Conv(inputs, outputs, stride=2, padding="same"))


def conv_up(inputs: int, outputs: int, *, fir: bool) -> nn.Module:
    """Doubles the sides by a learned convolution."""
    return FilterConvUp(inputs, outputs) if fir else ConvUp(inputs, outputs)
