"""The blocks of NCSN++: BigGAN's residual block, attention of one head, and what reads an image off a feature map.

Both add a branch to their input; `scale`, 1 or √½, is what such sums are multiplied by.

References: Song et al. 2021, arXiv:2011.13456, appendix H; Brock et al. 2019, arXiv:1809.11096, for the block.
"""

import math

from torch import Tensor, nn
from torch.nn import functional

from sde_diffusion.networks.attention import Attention
from sde_diffusion.networks.blocks import group_norm, zeroed
from sde_diffusion.networks.resample import glorot

GROUPS, EPS = 32, 1e-6  # of every normalisation, as published
ATTENTION_GAIN = math.sqrt(0.1)  # first projections of attention: a tenth of the variance of other layers


def norm(channels: int) -> nn.GroupNorm:
    """GroupNorm of up to 32 groups of at least 4 channels, with the published ε."""
    layer = group_norm(channels, GROUPS)
    layer.eps = EPS
    return layer


def conv(inputs: int, outputs: int) -> nn.Conv2d:
    """A 3×3 convolution that keeps the sides."""
    return glorot(nn.Conv2d(inputs, outputs, 3, padding=1))


def head(channels: int, outputs: int) -> nn.Sequential:
    """What reads an image off a feature map; zero at the start."""
    return nn.Sequential(norm(channels), nn.SiLU(), zeroed(conv(channels, outputs)))


class Block(nn.Module):
    """scale · (skip(x) + conv(dropout(SiLU(norm(conv(r(SiLU(norm(x)))) + shift))))); starts as scale · skip(x).

    r halves or doubles the sides, on both branches, or does nothing. The skip is a 1×1 convolution where the number of
    channels or the sides change, else the identity.
    """

    def __init__(
        self, inputs: int, outputs: int, *, dropout: float, scale: float, resample: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.outputs, self.scale = outputs, scale
        self.norm1 = norm(inputs)
        self.resample = nn.Identity() if resample is None else resample
        self.conv1 = conv(inputs, outputs)
        self.norm2 = norm(outputs)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zeroed(conv(outputs, outputs))
        changes = inputs != outputs or resample is not None
        self.skip = glorot(nn.Conv2d(inputs, outputs, 1)) if changes else nn.Identity()

    def forward(self, x: Tensor, shift: Tensor) -> Tensor:
        """(B, inputs, H, W), (B, outputs) -> (B, outputs, H', W')."""
        h = self.resample(functional.silu(self.norm1(x)))
        h = self.conv1(h) + shift[:, :, None, None]
        h = self.conv2(self.dropout(functional.silu(self.norm2(h))))
        out: Tensor = (self.skip(self.resample(x)) + h) * self.scale
        return out


class Attend(nn.Module):
    """One head of attention over all pixels, the sum scaled like a block's."""

    def __init__(self, channels: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.attention = Attention(channels, head_channels=channels, groups=GROUPS)
        self.attention.norm.eps = EPS
        glorot(self.attention.qkv, [channels] * 3, ATTENTION_GAIN)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        out: Tensor = self.attention(x) * self.scale
        return out
