"""The levels of NCSN++ on the way down and up, with the pyramids of image and output beside them.

Reference: Song et al. 2021, arXiv:2011.13456, appendix H.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from sde_diffusion.networks.blocks import Head, join
from sde_diffusion.networks.score_sde.biggan import LAYERS, Attend, Block, conv, head
from sde_diffusion.networks.score_sde.resample import conv_down, conv_up, down, up


@dataclass(frozen=True)
class Design:
    """The options of NCSN++ that every level shares; see there."""

    dropout: float
    biggan: bool
    fir: bool
    rescale: bool
    progressive_input: str
    progressive: str
    combine: str

    @property
    def scale(self) -> float:
        """What sums of two branches are multiplied by."""
        return math.sqrt(0.5) if self.rescale else 1.0

    def block(self, inputs: int, outputs: int, resample: nn.Module | None = None) -> Block:
        """A residual block."""
        return Block(inputs, outputs, dropout=self.dropout, scale=self.scale, resample=resample)

    def leave_down(self, width: int) -> nn.Module:
        """From a level to the next lower one."""
        return self.block(width, width, down(fir=self.fir)) if self.biggan else conv_down(width, width, fir=self.fir)

    def leave_up(self, width: int) -> nn.Module:
        """From a level to the next higher one."""
        return self.block(width, width, up(fir=self.fir)) if self.biggan else conv_up(width, width, fir=self.fir)


class DownLevel(nn.Module):
    """Stages, then the way to the next level, if there is one, and the image's pyramid.

    Args:
        design: See there.
        inputs, outputs: Channels in, and of every stage.
        blocks: Number of stages.
        attend: Whether they have attention.
        image: Channels of the pyramid; 0 for the last level, which leads nowhere.
    """

    def __init__(self, design: Design, inputs: int, outputs: int, *, blocks: int, attend: bool, image: int) -> None:
        super().__init__()
        self.scale, self.stack = design.scale, design.combine == "cat"
        self.blocks, self.attentions = nn.ModuleList(), nn.ModuleList()
        for _ in range(blocks):
            self.blocks.append(design.block(inputs, outputs))
            self.attentions.append(Attend(outputs, design.scale) if attend else nn.Identity())
            inputs = outputs
        self.leave = design.leave_down(outputs) if image else None
        self.shrink: nn.Module | None = None
        self.combine: nn.Module | None = None
        if image and design.progressive_input == "input_skip":
            self.shrink, self.combine = down(fir=design.fir), conv(image, outputs, 1)
        elif image and design.progressive_input == "residual":
            self.shrink = conv_down(image, outputs, fir=design.fir)
        self.outputs = 2 * outputs if self.combine is not None and self.stack else outputs

    def forward(
        self, x: Tensor, shifts: Iterator[Tensor], skips: list[Tensor], pyramid: Tensor
    ) -> tuple[Tensor, Tensor]:
        """x and the pyramid of the next level; appends what the way up needs to `skips`."""
        for block, attention in zip(self.blocks, self.attentions, strict=True):
            x = attention(block(x, next(shifts)))
            skips.append(x)
        if self.leave is None:
            return x, pyramid
        x = _leave(self.leave, x, shifts)
        if self.shrink is not None:
            pyramid = self.shrink(pyramid)
            if self.combine is None:
                x = pyramid = (pyramid + x) * self.scale
            else:
                x = join(self.combine(pyramid), x) if self.stack else self.combine(pyramid) + x
        skips.append(x)
        return x, pyramid


class UpLevel(nn.Module):
    """Blocks joined by what the way down kept, attention, the output's pyramid, then the way to the level above.

    Args:
        design: See there.
        inputs, outputs: Channels in, and of every block.
        skips: Channels kept on the way down, those of this level last; takes what it uses.
        blocks: Number of blocks.
        attend: Whether attention follows them.
        pyramid: Channels of the pyramid so far; 0 for the lowest level, where it begins.
        image: Channels of the network's output.
        top: Whether this is level 0.
    """

    def __init__(
        self,
        design: Design,
        inputs: int,
        outputs: int,
        *,
        skips: list[int],
        blocks: int,
        attend: bool,
        pyramid: int,
        image: int,
        top: bool,
    ) -> None:
        super().__init__()
        self.scale = design.scale
        self.blocks = nn.ModuleList()
        for _ in range(blocks):
            self.blocks.append(design.block(inputs + skips.pop(), outputs))
            inputs = outputs
        self.attention = Attend(outputs, design.scale) if attend else nn.Identity()
        self.grow: nn.Module | None = None
        self.head: nn.Module | None = None
        self.pyramid = 0
        if design.progressive == "output_skip":
            self.grow, self.head, self.pyramid = up(fir=design.fir) if pyramid else None, head(outputs, image), image
        elif design.progressive == "residual" and pyramid:
            self.grow, self.pyramid = conv_up(pyramid, outputs, fir=design.fir), outputs
        elif design.progressive == "residual":
            self.head, self.pyramid = Head(LAYERS.norm(outputs), conv(outputs, outputs)), outputs
        self.leave = None if top else design.leave_up(outputs)

    def forward(
        self, x: Tensor, shifts: Iterator[Tensor], skips: list[Tensor], pyramid: Tensor
    ) -> tuple[Tensor, Tensor]:
        """x and the pyramid, of the level above; takes what it uses from `skips`. Where it begins none is looked at."""
        for block in self.blocks:
            x = block(join(x, skips.pop()), next(shifts))
        x = self.attention(x)
        if self.grow is not None:
            pyramid = self.grow(pyramid)[..., : x.shape[-2], : x.shape[-1]]
            if self.head is None:
                x = pyramid = (pyramid + x) * self.scale
            else:
                pyramid = pyramid + self.head(x)
        elif self.head is not None:
            pyramid = self.head(x)
        return x if self.leave is None else _leave(self.leave, x, shifts), pyramid


def _leave(way: nn.Module, x: Tensor, shifts: Iterator[Tensor]) -> Tensor:
    out: Tensor = way(x, next(shifts)) if isinstance(way, Block) else way(x)
    return out
