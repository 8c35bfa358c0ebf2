"""The blocks of NCSN++: BigGAN's residual block, attention of one head, and what reads an image off a feature map.

Both add a branch to their input; `scale`, 1 or √½, is what such sums are multiplied by.

References: Song et al. 2021, arXiv:2011.13456, appendix H; Brock et al. 2019, arXiv:1809.11096, for the block.
"""

import math

from torch import Tensor, nn

from sde_diffusion.networks.attention import Attention
from sde_diffusion.networks.blocks import Conv, Head, Layers, zeroed
from sde_diffusion.networks.score_sde.resample import glorot

LAYERS = Layers(norm_eps=1e-6)  # as published
ATTENTION_GAIN = math.sqrt(0.1)  # first projections of attention: a tenth of the variance of other layers


def conv(inputs: int, outputs: int, size: int = 3) -> Conv:
    """A convolution that keeps the sides."""
    return glorot(LAYERS.conv(inputs, outputs, size))


def head(channels: int, outputs: int) -> Head:
    """What reads an image off a feature map; zero at the start."""
    return Head(LAYERS.norm(channels), zeroed(conv(channels, outputs)))


class Block(nn.Module):
    """scale · (skip(x) + conv(dropout(SiLU(norm(conv(r(SiLU(norm(x)))) + shift))))); starts as scale · skip(x).

    r halves or doubles the sides, on both branches, or does nothing. The skip is a 1×1 convolution where the number of
    channels or the sides change, else the identity.
    """

    recomputable = True  # for activation checkpointing

    def __init__(
        self, inputs: int, outputs: int, *, dropout: float, scale: float, resample: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.outputs, self.scale = outputs, scale
        self.norm1 = LAYERS.norm(inputs)
        self.resample = nn.Identity() if resample is None else resample
        self.conv1 = conv(inputs, outputs)
        self.norm2 = LAYERS.norm(outputs)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zeroed(conv(outputs, outputs))
        changes = inputs != outputs or resample is not None
        self.skip = conv(inputs, outputs, 1) if changes else nn.Identity()

    def forward(self, x: Tensor, shift: Tensor) -> Tensor:
        """(B, inputs, H, W), (B, outputs) -> (B, outputs, H', W')."""
        h = self.resample(self.norm1.silu(x))
        h = self.conv2(self.dropout(self.norm2.silu(self.conv1(h), shift)))
        out: Tensor = (self.skip(self.resample(x)) + h) * self.scale
        return out


class Attend(nn.Module):
    """One head of attention over all pixels, the sum scaled like a block's."""

    recomputable = True  # for activation checkpointing

    def __init__(self, channels: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.attention = Attention(channels, LAYERS, head_channels=channels)
        glorot(self.attention.qkv, [channels] * 3, ATTENTION_GAIN)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        out: Tensor = self.attention(x) * self.scale
        return out
