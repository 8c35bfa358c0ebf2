"""The U-Net of DDPM, for series, images and volumes of any size and any number of channels.

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
from typing import Literal, get_args

from torch import Tensor, nn

from sde_diffusion.errors import require, require_one_of, require_positive
from sde_diffusion.networks.attention import Attention, LinearAttention
from sde_diffusion.networks.base import Network
from sde_diffusion.networks.blocks import (
    GROUP_CHANNELS,
    BlockOrder,
    Downsample,
    Head,
    Layers,
    Padding,
    ResidualBlock,
    TimeInput,
    Upsample,
    join,
    zeroed,
)
from sde_diffusion.networks.embedding import Condition
from sde_diffusion.networks.fourier import FourierFeatures
from sde_diffusion.networks.patches import Patches

logger = logging.getLogger(__name__)

SMALLEST_SIDE = 7  # of a level that `levels_for` makes by halving

Middle = Literal["attention", "bare_attention", "none"]
Kind = Literal["full", "linear", "bare", "none"]


class Stage(nn.Module):
    """A residual block, then self-attention or nothing."""

    recomputable = True  # for activation checkpointing

    def __init__(self, block: ResidualBlock, attention: Attention | None) -> None:
        super().__init__()
        self.block = block
        self.attention = attention

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """(B, C, *sides), and the block's share of the time embedding -> (B, C', *sides)."""
        x = self.block(x, time)
        return x if self.attention is None else self.attention(x)


class Down(nn.Module):
    """One level of the way down: into it, then its stages. Appends every result to `skips`."""

    def __init__(self, entry: nn.Module, stages: list[Stage]) -> None:
        super().__init__()
        self.entry = entry
        self.stages = nn.ModuleList(stages)

    def forward(self, x: Tensor, times: Iterator[Tensor], skips: list[Tensor]) -> Tensor:
        x = self.entry(x)
        skips.append(x)
        for stage in self.stages:
            x = stage(x, next(times))
            skips.append(x)
        return x


class Up(nn.Module):
    """One level of the way up: its stages, each joined by the last of `skips`, then out of it."""

    def __init__(self, stages: list[Stage], leave: nn.Module) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.leave = leave

    def forward(self, x: Tensor, times: Iterator[Tensor], skips: list[Tensor]) -> Tensor:
        for stage in self.stages:
            x = stage(join(x, skips.pop()), next(times))
        out: Tensor = self.leave(x)
        return out


class StageMaker:
    """Makes stages, and keeps account of how many numbers of the time embedding each wants (`shares`)."""

    def __init__(
        self, layers: Layers, *, dropout: float, time: TimeInput, order: BlockOrder, head_channels: int
    ) -> None:
        self.layers, self.dropout, self.time, self.order = layers, dropout, time, order
        self.head_channels = head_channels
        self.shares: list[int] = []

    def __call__(self, inputs: int, outputs: int, kind: Kind) -> Stage:
        self.shares.append(outputs * (2 if self.time == "scale_shift" else 1))
        block = ResidualBlock(inputs, outputs, self.layers, dropout=self.dropout, time=self.time, order=self.order)
        return Stage(block, self._attention(outputs, kind))

    def _attention(self, channels: int, kind: Kind) -> Attention | None:
        if kind == "none":
            return None
        if kind == "linear":
            return LinearAttention(channels, self.layers, head_channels=self.head_channels)
        return Attention(channels, self.layers, head_channels=self.head_channels, normed=kind == "full")


class UNet(Network):
    """F(x, c_noise, label) for x of shape (B, channels, *sides) with one to three sides; zero at the start.

    Args:
        shape: Of one event, (channels, length), (channels, height, width) or (channels, depth, height, width).
        classes: Number of classes; 0 for a network without labels.
        heads: Number of events in the output, one after another along the channels.
        channels: Width of level 0, even and at least 4; the time embedding has as many features.
        multipliers: Width of each level as a multiple of `channels`; their number is the number of levels. None takes
            1, 2, 2, … for as many levels as the size of the data asks for: see `levels_for`.
        blocks: Residual blocks per level on the way down; the way up has one more.
        attention: Resolutions with self-attention, each the smallest side of a level: 40 × 27 has 27, 14, 7. A number
            that is no level's is without effect, for one list may serve several sizes; that none is one is logged.
        linear_attention: Resolutions with attention in linear time, likewise; not those of `attention`.
        middle: What is between the two blocks in the middle: `attention`, the same without its normalisation
            (`bare_attention`), or `none`.
        head_channels: Least width of an attention head; see `Attention`.
        dropout: Probability of dropping a feature inside the residual blocks, in training.
        groups: Most groups of a GroupNorm.
        group_channels: Least channels in one; published networks have 1.
        norm_eps: Added to the variance in a GroupNorm; published networks of DDPM have 1e-6.
        time: What a block is told of the time: a `shift` of each channel, or a scale and a shift (`scale_shift`).
        order: Of a residual block: `norm_first` as in DDPM, or `conv_first`; see `ResidualBlock`.
        standardised: Whether the blocks' convolutions are weight-standardised; wants `order` conv_first.
        padding: Of the strided convolutions: `symmetric`, or `same` as published networks of DDPM have; see `Conv`.
        patch: Side of the squares of pixels that are one place of level 0, as channels; it must divide every side. With
            2 an image costs a quarter at equal widths. `attention` then counts places, not pixels.
        fourier: Exponents of waves of the input beside it; see `FourierFeatures`.
        fourier_gate: Whether each wave is multiplied by a number that the network makes of the time, 0 at the start.
        embedding: How c_noise is embedded, a name in `EMBEDDINGS`.
        embedding_scale: Its highest (sinusoidal) or typical (fourier) frequency [radians per unit of c_noise].

    Raises:
        InputError: An argument outside its range, or two that exclude each other; in `forward`, labels although
            `classes` is 0.

    References: Ho et al. 2020, arXiv:2006.11239, appendix B; Qiao et al. 2019, arXiv:1903.10520 (standardised); Shen
    et al. 2018, arXiv:1812.01243 (linear attention).
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        classes: int = 0,
        heads: int = 1,
        channels: int = 64,
        multipliers: tuple[int, ...] | None = (1, 2, 2),
        blocks: int = 2,
        attention: tuple[int, ...] = (16, 8),
        linear_attention: tuple[int, ...] = (),
        middle: Middle = "attention",
        head_channels: int = 64,
        dropout: float = 0.0,
        groups: int = 32,
        group_channels: int = GROUP_CHANNELS,
        norm_eps: float = 1e-5,
        time: TimeInput = "shift",
        order: BlockOrder = "norm_first",
        standardised: bool = False,
        padding: Padding = "symmetric",
        patch: int = 1,
        fourier: tuple[int, ...] = (),
        fourier_gate: bool = False,
        embedding: Literal["sinusoidal", "fourier"] = "sinusoidal",
        embedding_scale: float = 16.0,
    ) -> None:
        super().__init__()
        shape = tuple(shape)
        _check_shape(shape)
        self.patches = Patches(shape[1:], patch)
        if multipliers is None:
            multipliers = (1, *(2,) * (levels_for(self.patches.sides) - 1))
        _check_widths(channels, multipliers)
        require_positive(heads=heads, blocks=blocks, head_channels=head_channels, groups=groups)
        require_positive(group_channels=group_channels, norm_eps=norm_eps)
        require(0 <= dropout < 1, f"`dropout` must be in [0, 1), got {dropout}")
        _check_choices(middle, time, order, padding, standardised)
        require(bool(fourier) or not fourier_gate, "`fourier_gate` must be false where `fourier` names no waves")
        self.shape, self.classes, self.time = shape, classes, time
        dims = len(shape) - 1
        layers = Layers(
            dims=dims, groups=groups, group_channels=group_channels, norm_eps=norm_eps, standardised=standardised
        )
        stage = StageMaker(layers, dropout=dropout, time=time, order=order, head_channels=head_channels)
        kinds = _attention_kinds(self.patches.sides, len(multipliers), attention, linear_attention)
        widths = [channels * multiplier for multiplier in multipliers]

        self.down, self.middle, self.up = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        self.features = FourierFeatures(fourier, embedding=4 * channels if fourier_gate else None)
        inputs = self.features.factor * shape[0] * self.patches.pixels
        skips: list[int] = []
        width = channels
        for level, outputs in enumerate(widths):
            entry = Downsample(width, dims=dims, padding=padding) if level else layers.conv(inputs, width)
            skips.append(width)
            stages = []
            for _ in range(blocks):
                stages.append(stage(width, outputs, kinds[level]))
                skips.append(width := outputs)
            self.down.append(Down(entry, stages))
        between: dict[Middle, Kind] = {"attention": "full", "bare_attention": "bare", "none": "none"}
        self.middle.extend([stage(width, width, between[middle]), stage(width, width, "none")])
        for level, outputs in reversed(list(enumerate(widths))):
            stages = []
            for _ in range(blocks + 1):
                stages.append(stage(width + skips.pop(), outputs, kinds[level]))
                width = outputs
            self.up.append(Up(stages, Upsample(width, dims=dims) if level else nn.Identity()))
        self.output = Head(layers.norm(width), zeroed(layers.conv(width, heads * shape[0] * self.patches.pixels)))
        self.condition = Condition(channels, 4 * channels, classes=classes, embedding=embedding, scale=embedding_scale)
        self._shares = stage.shares
        self.shifts = nn.Linear(4 * channels, sum(self._shares))  # of all residual blocks in one product

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        """(B, *shape), (B,), (B,) int64 or None -> (B, heads · channels, *sides)."""
        embedding = self.condition(c_noise, label)
        times = iter(self.shifts(embedding).split(self._shares, 1))
        skips: list[Tensor] = []
        x = self.patches.cut(self.features(x, embedding))
        for level in self.down:
            x = level(x, times, skips)
        for stage in self.middle:
            x = stage(x, next(times))
        for level in self.up:
            x = level(x, times, skips)
        return self.patches.joined(self.output(x))


def levels_for(sides: Sequence[int]) -> int:
    """Levels until the smallest side is below 14: 1 for 8 pixels, 2 for 14, 3 for 28 and 32, 4 for 64, 6 for 256."""
    levels, side = 1, min(sides)
    while side >= 2 * SMALLEST_SIDE:
        levels, side = levels + 1, -(-side // 2)
    return levels


def _attention_kinds(sides: Sequence[int], levels: int, full: tuple[int, ...], linear: tuple[int, ...]) -> list[Kind]:
    """The attention of each level, by its smallest side."""
    both = set(full) & set(linear)
    require(
        not both, f"`linear_attention` must not name a resolution of `attention`, got {min(both, default=0)} in both"
    )
    smallest = [-(-min(sides) // 2**level) for level in range(levels)]
    for name, wanted in (("attention", full), ("linear_attention", linear)):
        if wanted and not set(wanted) & set(smallest):
            logger.warning(
                "`%s` at %s meets no level of the U-Net, whose smallest sides are %s",
                name,
                ", ".join(map(str, wanted)),
                ", ".join(map(str, smallest)),
            )
    return ["full" if side in full else "linear" if side in linear else "none" for side in smallest]


def _check_shape(shape: tuple[int, ...]) -> None:
    require(
        len(shape) in (2, 3, 4) and min(shape) > 0,
        f"`shape` must be channels and one to three sides, such as (channels, height, width), for the network 'unet', "
        f"got {shape}; 'mlp' takes any shape",
    )


def _check_widths(channels: int, multipliers: tuple[int, ...]) -> None:
    require(channels >= 4 and channels % 2 == 0, f"`channels` must be even and ≥ 4, got {channels}")
    require(min(multipliers, default=0) > 0, f"`multipliers` must be one or more numbers > 0, got {tuple(multipliers)}")


def _check_choices(middle: str, time: str, order: str, padding: str, standardised: bool) -> None:
    require_one_of("middle", middle, get_args(Middle))
    require_one_of("time", time, get_args(TimeInput))
    require_one_of("order", order, get_args(BlockOrder))
    require_one_of("padding", padding, get_args(Padding))
    require(
        not standardised or order == "conv_first",
        f"`standardised` convolutions must be followed by a normalisation, got `order` = {order}; set it to conv_first",
    )
