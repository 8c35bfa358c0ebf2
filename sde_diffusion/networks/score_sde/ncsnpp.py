"""NCSN++ and DDPM++: DDPM's U-Net with better blocks, and pyramids of the image beside it.

    level 0   x ── input ─► stages ─────────────────────► blocks ─► attention ─► head ─► out
    level 1   x₁ ─► combine ◄─ leave ─► stages ─► blocks ─► attention ─► head ─► out₁ ─► leave
    level 2   x₂ ─► combine ◄─ leave ─► stages ─► middle ─► blocks ─► …

A stage is a residual block and, at chosen resolutions, attention; on the way up attention comes once a level. Blocks
that change the resolution do so inside (BigGAN), sums of two branches are divided by √2, and images are resampled by a
low-pass filter. The pyramids bring the image into every level (`progressive_input`) and out of it (`progressive`).

Reference: Song et al. 2021, arXiv:2011.13456, appendix H, and its published code for what it leaves open.
"""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from sde_diffusion.errors import require, require_one_of, require_positive
from sde_diffusion.networks.base import Network
from sde_diffusion.networks.embedding import Condition
from sde_diffusion.networks.fourier import FourierFeatures
from sde_diffusion.networks.score_sde.biggan import Attend, Block, conv, head
from sde_diffusion.networks.score_sde.ncsnpp_levels import Design, DownLevel, UpLevel
from sde_diffusion.networks.score_sde.resample import glorot


class NCSNpp(Network):
    """NCSN++, F(x, c_noise, label) for images of any size: DDPM's U-Net with BigGAN blocks, filtered resampling, sums
    divided by √2 and pyramids of the image beside it.

    The defaults are the published network for CIFAR-10, but for `embedding_scale`, which is this package's: 16 · 2π
    radians per unit of log σ, as published, are 402.1 on c_noise = −λ/4.

    Args:
        shape: Of one image, (channels, height, width).
        classes: Number of classes; 0 for a network without labels.
        heads: Number of images in the output, one after another along the channels.
        channels: Width of level 0, even and at least 4.
        multipliers: Width of each level as a multiple of `channels`; their number is the number of levels.
        blocks: Residual blocks per level on the way down; the way up has one more.
        attention: Resolutions with self-attention, each the smaller side of a level; what is no level's is without
            effect. The middle always has attention.
        dropout: Probability of dropping a feature inside the residual blocks, in training.
        block: What changes the resolution: a residual block (`biggan`), or a convolution (`ddpm`).
        fir: Whether images and features are resampled by the filter (1, 3, 3, 1); else by boxes.
        rescale: Whether the sum of two branches is divided by √2.
        progressive_input: How the image enters the lower levels: not at all (`none`); resampled and through a 1×1
            convolution (`input_skip`); or resampled by learned convolutions and added to the features (`residual`).
        progressive: How the levels enter the output: the top one alone (`none`); each by an image, resampled and added
            up (`output_skip`); or each resampled by a learned convolution and added to the next (`residual`).
        combine: Whether what `input_skip` brings is added to the features (`sum`) or put beside them (`cat`).
        fourier: Exponents of waves of the input beside it, not in the pyramids; see `FourierFeatures`.
        embedding: How c_noise is embedded, a name in `EMBEDDINGS`.
        embedding_scale: Its highest (sinusoidal) or typical (fourier) frequency [radians per unit of c_noise].

    Raises:
        InputError: An argument outside its range; in `forward`, labels although `classes` is 0.

    Reference: Song et al. 2021, arXiv:2011.13456, appendix H.
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        classes: int = 0,
        heads: int = 1,
        channels: int = 128,
        multipliers: tuple[int, ...] = (1, 2, 2, 2),
        blocks: int = 4,
        attention: tuple[int, ...] = (16,),
        dropout: float = 0.1,
        block: Literal["biggan", "ddpm"] = "biggan",
        fir: bool = True,
        rescale: bool = True,
        progressive_input: Literal["none", "input_skip", "residual"] = "residual",
        progressive: Literal["none", "output_skip", "residual"] = "none",
        combine: Literal["sum", "cat"] = "sum",
        fourier: tuple[int, ...] = (),
        embedding: Literal["sinusoidal", "fourier"] = "fourier",
        embedding_scale: float = 16.0,
    ) -> None:
        super().__init__()
        self.shape, self.classes = tuple(shape), classes
        _check_shape(self.shape, channels, multipliers)
        require_positive(heads=heads, blocks=blocks)
        require(0 <= dropout < 1, f"`dropout` must be in [0, 1), got {dropout}")
        require_one_of("block", block, ("biggan", "ddpm"))
        require_one_of("progressive_input", progressive_input, ("none", "input_skip", "residual"))
        require_one_of("progressive", progressive, ("none", "output_skip", "residual"))
        require_one_of("combine", combine, ("sum", "cat"))
        design = Design(dropout, block == "biggan", fir, rescale, progressive_input, progressive, combine)
        image, out = shape[0], heads * shape[0]
        widths = [channels * multiplier for multiplier in multipliers]
        attends = [-(-min(shape[1:]) // 2**level) in attention for level in range(len(widths))]
        self.condition = Condition(
            2 * channels if embedding == "fourier" else channels,
            4 * channels,
            classes=classes,
            embedding=embedding,
            scale=embedding_scale,
        )
        self.features = FourierFeatures(fourier)
        self.input = conv(self.features.factor * image, channels)
        self.down = nn.ModuleList()
        width, skips = channels, [channels]
        for level, outputs in enumerate(widths):
            last = level == len(widths) - 1
            down_level = DownLevel(
                design, width, outputs, blocks=blocks, attend=attends[level], image=0 if last else image
            )
            self.down.append(down_level)
            width = down_level.outputs
            skips += [outputs] * blocks + ([] if last else [width])
            image = outputs if progressive_input == "residual" else image
        middle = (design.block(width, width), Attend(width, design.scale), design.block(width, width))
        self.middle, self.up = nn.ModuleList(middle), nn.ModuleList()
        pyramid = 0
        for level, outputs in reversed(list(enumerate(widths))):
            up_level = UpLevel(
                design,
                width,
                outputs,
                skips=skips,
                blocks=blocks + 1,
                attend=attends[level],
                pyramid=pyramid,
                image=out,
                top=level == 0,
            )
            self.up.append(up_level)
            width, pyramid = outputs, up_level.pyramid
        self.output = None if progressive == "output_skip" else head(width, out)

        for layer in self.condition.lift:
            if isinstance(layer, nn.Linear):
                glorot(layer)
        self._widths = [module.outputs for module in self.modules() if isinstance(module, Block)]
        self.shifts = glorot(nn.Linear(4 * channels, sum(self._widths)), self._widths)  # of all blocks in one product

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        """(B, *shape), (B,), (B,) int64 or None -> (B, heads · channels, height, width)."""
        shifts = iter(self.shifts(self.condition(c_noise, label)).split(self._widths, 1))
        image = out = x
        x = self.input(self.features(x))
        skips = [x]
        for level in self.down:
            x, image = level(x, shifts, skips, image)
        first, attention, second = self.middle
        x = second(attention(first(x, next(shifts))), next(shifts))
        for level in self.up:
            x, out = level(x, shifts, skips, out)
        result: Tensor = out if self.output is None else self.output(x)
        return result


class DDPMpp(NCSNpp):
    """DDPM++, F(x, c_noise, label) for images of any size: NCSN++ without the filter and without pyramids.

    The defaults are the published network for CIFAR-10, but for `embedding_scale`, which is this package's: as
    published it is 1, on c_noise = 999 t.

    The options are those of `NCSNpp` that remain.

    Raises:
        InputError: As `NCSNpp`.

    Reference: Song et al. 2021, arXiv:2011.13456, appendix H.
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        classes: int = 0,
        heads: int = 1,
        channels: int = 128,
        multipliers: tuple[int, ...] = (1, 2, 2, 2),
        blocks: int = 4,
        attention: tuple[int, ...] = (16,),
        dropout: float = 0.1,
        fourier: tuple[int, ...] = (),
        embedding: Literal["sinusoidal", "fourier"] = "sinusoidal",
        embedding_scale: float = 16.0,
    ) -> None:
        super().__init__(
            shape,
            classes=classes,
            heads=heads,
            channels=channels,
            multipliers=multipliers,
            blocks=blocks,
            attention=attention,
            dropout=dropout,
            fir=False,
            progressive_input="none",
            fourier=fourier,
            embedding=embedding,
            embedding_scale=embedding_scale,
        )


def _check_shape(shape: tuple[int, ...], channels: int, multipliers: tuple[int, ...]) -> None:
    require(
        len(shape) == 3 and min(shape) > 0,
        f"`shape` must be (channels, height, width) for the networks 'ncsnpp' and 'ddpmpp', got {shape}; 'unet' takes "
        "series and volumes too, 'mlp' any shape",
    )
    require(channels >= 4 and channels % 2 == 0, f"`channels` must be even and ≥ 4, got {channels}")
    require(min(multipliers, default=0) > 0, f"`multipliers` must be one or more numbers > 0, got {tuple(multipliers)}")
