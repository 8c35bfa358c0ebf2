"""The U-Net of DDPM, for images of any size and any number of channels.

    level 0   H × W        input ─► stages ─────────────► stages ─► output
    level 1   ⌈H/2⌉ × …        down ─► stages ───► stages ─► up
    level 2   ⌈H/4⌉ × …            down ─► stages ─► middle ─► stages ─► up

A stage is a residual block and, at chosen resolutions, self-attention. Everything on the way down is kept and joined
to the way up. Any size works: a side that does not divide by two is halved upwards, for the strided convolution pads
with zeros like every other, and on the way up the row or column too many is cropped.

Reference: Ho et al. 2020, arXiv:2006.11239, appendix B.
"""

import logging
from collections.abc import Iterator, Sequence
from typing import Literal

from torch import Tensor, nn

from sde_diffusion.errors import require, require_positive
from sde_diffusion.networks.attention import Attention
from sde_diffusion.networks.blocks import Downsample, ResidualBlock, Upsample, group_norm, join, zeroed
from sde_diffusion.networks.embedding import Condition

logger = logging.getLogger(__name__)


class Stage(nn.Module):
    """A residual block, then self-attention or nothing."""

    def __init__(self, block: ResidualBlock, attention: Attention | None) -> None:
        super().__init__()
        self.block = block
        self.attention = attention

    def forward(self, x: Tensor, shift: Tensor) -> Tensor:
        """(B, C, H, W), (B, C') -> (B, C', H, W)."""
        x = self.block(x, shift)
        return x if self.attention is None else self.attention(x)


class Down(nn.Module):
    """One level of the way down: into it, then its stages. Appends every result to `skips`."""

    def __init__(self, entry: nn.Module, stages: list[Stage]) -> None:
        super().__init__()
        self.entry = entry
        self.stages = nn.ModuleList(stages)

    def forward(self, x: Tensor, shifts: Iterator[Tensor], skips: list[Tensor]) -> Tensor:
        x = self.entry(x)
        skips.append(x)
        for stage in self.stages:
            x = stage(x, next(shifts))
            skips.append(x)
        return x


class Up(nn.Module):
    """One level of the way up: its stages, each joined by the last of `skips`, then out of it."""

    def __init__(self, stages: list[Stage], leave: nn.Module) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.leave = leave

    def forward(self, x: Tensor, shifts: Iterator[Tensor], skips: list[Tensor]) -> Tensor:
        for stage in self.stages:
            x = stage(join(x, skips.pop()), next(shifts))
        out: Tensor = self.leave(x)
        return out


class UNet(nn.Module):
    """F(x, c_noise, label) for x of shape (B, channels, height, width); zero at the start.

    Args:
        shape: Of one image, (channels, height, width).
        classes: Number of classes; 0 for a network without labels.
        heads: Number of images in the output, one after another along the channels.
        channels: Width of level 0, even and at least 4; the time embedding has as many features.
        multipliers: Width of each level as a multiple of `channels`; their number is the number of levels.
        blocks: Residual blocks per level on the way down; the way up has one more.
        attention: Resolutions with self-attention, each the smaller side of a level: 40 × 27 has 27, 14, 7. A number
            that is no level's is without effect, for one list may serve several sizes; that none is one is logged. The
            middle always has attention.
        head_channels: Least width of an attention head; see `Attention`.
        dropout: Probability of dropping a feature inside the residual blocks, in training.
        groups: Most groups of a GroupNorm; each has at least 4 channels.
        embedding: How c_noise is embedded, a name in `EMBEDDINGS`.
        embedding_scale: Its highest (sinusoidal) or typical (fourier) frequency [radians per unit of c_noise].

    Raises:
        InputError: An argument outside its range; in `forward`, labels although `classes` is 0.
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        classes: int = 0,
        heads: int = 1,
        channels: int = 64,
        multipliers: tuple[int, ...] = (1, 2, 2),
        blocks: int = 2,
        attention: tuple[int, ...] = (16, 8),
        head_channels: int = 64,
        dropout: float = 0.0,
        groups: int = 32,
        embedding: Literal["sinusoidal", "fourier"] = "sinusoidal",
        embedding_scale: float = 16.0,
    ) -> None:
        super().__init__()
        shape = tuple(shape)
        require(
            len(shape) == 3 and min(shape) > 0,
            f"`shape` must be (channels, height, width) for the network 'unet', got {shape}; 'mlp' takes any shape",
        )
        _check_widths(channels, multipliers)
        require_positive(heads=heads, blocks=blocks, head_channels=head_channels, groups=groups)
        require(0 <= dropout < 1, f"`dropout` must be in [0, 1), got {dropout}")
        self.shape, self.classes = shape, classes
        self._stage_widths: list[int] = []

        def stage(inputs: int, outputs: int, attend: bool) -> Stage:
            self._stage_widths.append(outputs)
            return Stage(
                ResidualBlock(inputs, outputs, dropout=dropout, groups=groups),
                Attention(outputs, head_channels=head_channels, groups=groups) if attend else None,
            )

        widths = [channels * multiplier for multiplier in multipliers]
        sides = [-(-min(shape[1:]) // 2**level) for level in range(len(widths))]
        attends = [side in attention for side in sides]
        if attention and not any(attends):
            logger.warning(
                "`attention` at %s meets no level of the U-Net, whose smaller sides are %s: only the middle has it",
                ", ".join(map(str, attention)),
                ", ".join(map(str, sides)),
            )

        self.down, self.middle, self.up = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        skips: list[int] = []
        width = channels
        for level, outputs in enumerate(widths):
            entry = Downsample(width) if level else nn.Conv2d(shape[0], width, 3, padding=1)
            skips.append(width)
            stages = []
            for _ in range(blocks):
                stages.append(stage(width, outputs, attends[level]))
                skips.append(width := outputs)
            self.down.append(Down(entry, stages))
        self.middle.extend([stage(width, width, True), stage(width, width, False)])
        for level, outputs in reversed(list(enumerate(widths))):
            stages = []
            for _ in range(blocks + 1):
                stages.append(stage(width + skips.pop(), outputs, attends[level]))
                width = outputs
            self.up.append(Up(stages, Upsample(width) if level else nn.Identity()))
        self.output = nn.Sequential(
            group_norm(width, groups), nn.SiLU(), zeroed(nn.Conv2d(width, heads * shape[0], 3, padding=1))
        )
        self.condition = Condition(channels, 4 * channels, classes=classes, embedding=embedding, scale=embedding_scale)
        self.shifts = nn.Linear(4 * channels, sum(self._stage_widths))  # of all residual blocks in one product

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        """(B, *shape), (B,), (B,) int64 or None -> (B, heads · channels, height, width)."""
        shifts = iter(self.shifts(self.condition(c_noise, label)).split(self._stage_widths, 1))
        skips: list[Tensor] = []
        for level in self.down:
            x = level(x, shifts, skips)
        for stage in self.middle:
            x = stage(x, next(shifts))
        for level in self.up:
            x = level(x, shifts, skips)
        out: Tensor = self.output(x)
        return out


def _check_widths(channels: int, multipliers: tuple[int, ...]) -> None:
    require(channels >= 4 and channels % 2 == 0, f"`channels` must be even and ≥ 4, got {channels}")
    require(min(multipliers, default=0) > 0, f"`multipliers` must be one or more numbers > 0, got {tuple(multipliers)}")
