"""The networks of score_sde_pytorch, from its description: the names, shapes and order of its tensors, and its forward.

One list `all_modules` in the order of the forward pass, in which modules without parameters have a place of their own
only in some versions (the filtered pyramids; `silent`). DDPM itself (`old`) has its tensors in another order, and 32
groups at any width. Written from the published architecture alone, and slow: an independent reference for parameter
counts, for the names in a checkpoint and for outputs.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Published:
    """What a config of score_sde_pytorch says about the network; `attention` counts levels from the top."""

    nf: int = 128
    mult: tuple[int, ...] = (1, 2, 2, 2)
    blocks: int = 4
    attention: tuple[int, ...] = (1,)
    biggan: bool = True
    fir: bool = True
    rescale: bool = True
    progressive_input: str = "none"
    progressive: str = "none"
    combine: str = "sum"
    fourier: bool = False
    sigma_max: float = 50.0
    silent: bool = False
    old: bool = False
    image: int = 3

    @property
    def scale(self) -> float:
        return 1 / math.sqrt(2) if self.rescale else 1.0


DDPM = Published(old=True, blocks=2, biggan=False, fir=False, rescale=False)
DDPMPP = Published(fir=False)
NCSNPP = Published(progressive_input="residual", fourier=True)
CELEBA = replace(NCSNPP, attention=(2,), fourier=False, sigma_max=90.0)
LARGE = replace(
    NCSNPP, blocks=2, mult=(1, 1, 2, 2, 2, 2, 2), attention=(4,), progressive_input="input_skip",
    progressive="output_skip", sigma_max=348.0,
)  # fmt: skip
LARGEST = replace(LARGE, nf=16, blocks=1, mult=(1, 2, 4, 8, 16, 32, 32, 32), attention=(6,), sigma_max=1348.0)

PRESETS: dict[str, tuple[Published, tuple[int, int, int], int]] = {
    "ddpm cifar10": (DDPM, (3, 32, 32), 35_218_947),
    "ddpmpp cifar10": (DDPMPP, (3, 32, 32), 61_804_419),
    "ddpmpp cifar10 deep": (replace(DDPMPP, blocks=8), (3, 32, 32), 106_632_579),
    "ncsnpp cifar10": (NCSNPP, (3, 32, 32), 62_758_787),
    "ncsnpp cifar10 deep": (replace(NCSNPP, blocks=8), (3, 32, 32), 107_586_947),
    "ncsnpp cifar10 vp deep": (replace(NCSNPP, blocks=8, fourier=False), (3, 32, 32), 107_521_411),
    "ncsnpp celeba": (CELEBA, (3, 64, 64), 62_693_251),
    "ncsnpp celebahq 256": (LARGE, (3, 256, 256), 65_574_421),
    "ncsnpp celebahq 1024": (LARGEST, (3, 1024, 1024), 105_785_880),
}
"""Name -> the published network, its images, and its number of trained parameters."""


def upfirdn(x: Tensor, up: int, down: int, before: int, after: int) -> Tensor:
    """Zeros put between the pixels, zeros around, the normalised filter (1, 3, 3, 1) at gain up², every `down`-th."""
    batch, channels, height, width = x.shape
    stuffed = x.new_zeros(batch, channels, up * height, up * width)
    stuffed[..., ::up, ::up] = x
    taps = x.new_tensor([1.0, 3.0, 3.0, 1.0]) * up / 8
    stuffed = functional.pad(stuffed, (before, after, before, after)).flatten(0, 1)[:, None]
    out = functional.conv2d(stuffed, torch.outer(taps, taps)[None, None])[..., ::down, ::down]
    return out.reshape(batch, channels, *out.shape[-2:])


def resampled(x: Tensor, way: str, fir: bool) -> Tensor:
    if way == "up":
        return upfirdn(x, 2, 1, 2, 1) if fir else x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    return upfirdn(x, 1, 2, 1, 1) if fir else functional.avg_pool2d(x, 2)


def norm(config: Published, channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32 if config.old else min(channels // 4, 32), channels, eps=1e-6)


class NIN(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.W, self.b = nn.Parameter(torch.randn(inputs, outputs) / inputs), nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bihw,io->bohw", x, self.W) + self.b[:, None, None]


class Residual(nn.Module):
    """`way` is what it does to the sides: up, down or nothing; the plain one has its shortcut as NIN_0."""

    def __init__(self, config: Published, inputs: int, outputs: int, way: str = "") -> None:
        super().__init__()
        self.config, self.way = config, way
        parts = {
            "GroupNorm_0": norm(config, inputs),
            "Conv_0": nn.Conv2d(inputs, outputs, 3, padding=1),
            "Dense_0": nn.Linear(4 * config.nf, outputs),
            "GroupNorm_1": norm(config, outputs),
            "Conv_1": nn.Conv2d(outputs, outputs, 3, padding=1),
        }
        for name in ("GroupNorm_0", "GroupNorm_1", "Conv_0", "Conv_1", "Dense_0") if config.old else parts:
            self.add_module(name, parts[name])
        if config.biggan and (way or inputs != outputs):
            self.Conv_2 = nn.Conv2d(inputs, outputs, 1)
        elif inputs != outputs:
            self.NIN_0 = NIN(inputs, outputs)

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        part = self.get_submodule
        h = functional.silu(part("GroupNorm_0")(x))
        if self.way:
            h, x = resampled(h, self.way, self.config.fir), resampled(x, self.way, self.config.fir)
        h = part("Conv_0")(h) + part("Dense_0")(functional.silu(temb))[:, :, None, None]
        h = part("Conv_1")(functional.silu(part("GroupNorm_1")(h)))
        shortcut = getattr(self, "Conv_2", getattr(self, "NIN_0", nn.Identity()))
        out: Tensor = (shortcut(x) + h) * self.config.scale
        return out


class Attention(nn.Module):
    def __init__(self, config: Published, channels: int) -> None:
        super().__init__()
        self.config = config
        self.GroupNorm_0 = norm(config, channels)
        for k in range(4):
            setattr(self, f"NIN_{k}", NIN(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        h = self.GroupNorm_0(x)
        q, k, v = (getattr(self, f"NIN_{i}")(h).flatten(2) for i in range(3))
        weights = torch.einsum("bcq,bck->bqk", q, k).mul(x.shape[1] ** -0.5).softmax(-1)
        h = torch.einsum("bqk,bck->bcq", weights, v).reshape(x.shape)
        out: Tensor = (x + self.get_submodule("NIN_3")(h)) * self.config.scale
        return out


class Resample(nn.Module):
    """By a convolution `Conv_0` (plain) or `Conv2d_0` (filtered), or without parameters."""

    def __init__(self, config: Published, inputs: int, outputs: int, way: str, conv: bool) -> None:
        super().__init__()
        self.config, self.way, self.conv = config, way, conv
        if conv:
            setattr(self, "Conv2d_0" if config.fir else "Conv_0", nn.Conv2d(inputs, outputs, 3))

    def forward(self, x: Tensor) -> Tensor:
        if not self.conv:
            return resampled(x, self.way, self.config.fir)
        layer = self.get_submodule("Conv2d_0" if self.config.fir else "Conv_0")
        weight, bias = layer.get_parameter("weight"), layer.get_parameter("bias")
        if self.way == "up":
            wide = (
                upfirdn(x, 2, 1, 3, 2) if self.config.fir else functional.pad(resampled(x, "up", False), (1, 1, 1, 1))
            )
            return functional.conv2d(wide, weight, bias)
        x = upfirdn(x, 1, 1, 2, 2) if self.config.fir else functional.pad(x, (0, 1, 0, 1))
        return functional.conv2d(x, weight, bias, stride=2)


class Fourier(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.W = nn.Parameter(16 * torch.randn(features), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        phase = 2 * math.pi * x[:, None] * self.W
        return torch.cat([phase.sin(), phase.cos()], 1)


class Combine(nn.Module):
    def __init__(self, image: int, channels: int) -> None:
        super().__init__()
        self.Conv = nn.Conv2d(image, channels, 1)


class ScoreSDENet(nn.Module):
    """The network; called with images in [−1, 1] and σ (Fourier) or the index of the time."""

    def __init__(self, config: Published) -> None:
        super().__init__()
        self.config = config
        levels = torch.linspace(math.log(config.sigma_max), math.log(0.01), 1000, dtype=torch.float64, device="cpu")
        self.register_buffer("sigmas", levels.exp())
        self.all_modules = nn.ModuleList(self._modules_in_order())

    def _modules_in_order(self) -> Iterator[nn.Module]:
        c = self.config
        if c.fourier:
            yield Fourier(c.nf)
        yield nn.Linear(2 * c.nf if c.fourier else c.nf, 4 * c.nf)
        yield nn.Linear(4 * c.nf, 4 * c.nf)
        yield nn.Conv2d(c.image, c.nf, 3, padding=1)
        width, pyramid, kept, last = c.nf, c.image, [c.nf], len(c.mult) - 1
        for level, factor in enumerate(c.mult):
            for _ in range(c.blocks):
                yield Residual(c, width, width := factor * c.nf)
                if level in c.attention:
                    yield Attention(c, width)
                kept.append(width)
            if level < last:
                yield Residual(c, width, width, "down") if c.biggan else Resample(c, width, width, "down", True)
                if c.progressive_input == "input_skip":
                    if c.silent:
                        yield Resample(c, pyramid, pyramid, "down", False)
                    yield Combine(pyramid, width)
                    width *= 2 if c.combine == "cat" else 1
                elif c.progressive_input == "residual":
                    yield Resample(c, pyramid, width, "down", True)
                    pyramid = width
                kept.append(width)
        yield Residual(c, width, width)
        yield Attention(c, width)
        yield Residual(c, width, width)
        for level, factor in reversed(list(enumerate(c.mult))):
            for _ in range(c.blocks + 1):
                yield Residual(c, width + kept.pop(), width := factor * c.nf)
            if level in c.attention:
                yield Attention(c, width)
            if c.progressive == "output_skip":
                if level < last and c.silent:
                    yield Resample(c, c.image, c.image, "up", False)
                yield from (norm(c, width), nn.Conv2d(width, c.image, 3, padding=1))
            elif c.progressive == "residual":
                if level == last:
                    yield from (norm(c, width), nn.Conv2d(width, width, 3, padding=1))
                else:
                    yield Resample(c, pyramid, width, "up", True)
                pyramid = width
            if level:
                yield Residual(c, width, width, "up") if c.biggan else Resample(c, width, width, "up", True)
        if c.progressive != "output_skip":
            yield from (norm(c, width), nn.Conv2d(width, c.image, 3, padding=1))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        c, modules = self.config, iter(self.all_modules)
        step = modules.__next__
        if c.fourier:
            temb = step()(condition.log())
        else:
            rate = math.log(10_000) / (c.nf // 2 - 1)
            phase = condition[:, None] * torch.exp(torch.arange(c.nf // 2, dtype=torch.float32) * -rate).to(x.dtype)
            temb = torch.cat([phase.sin(), phase.cos()], 1)
        temb = step()(temb)
        temb = step()(functional.silu(temb))

        def ahead(h: Tensor) -> Tensor:
            module = step()
            out: Tensor = module(h, temb) if isinstance(module, Residual) else module(h)
            return out

        pyramid, last = x, len(c.mult) - 1
        kept = [step()(x)]
        for level in range(len(c.mult)):
            for _ in range(c.blocks):
                h = ahead(kept[-1])
                kept.append(ahead(h) if level in c.attention else h)
            if level < last:
                h = ahead(kept[-1])
                if c.progressive_input == "input_skip":
                    pyramid = step()(pyramid) if c.silent else resampled(pyramid, "down", c.fir)
                    entering = step().get_submodule("Conv")(pyramid)
                    h = torch.cat([entering, h], 1) if c.combine == "cat" else entering + h
                elif c.progressive_input == "residual":
                    h = pyramid = (step()(pyramid) + h) * c.scale
                kept.append(h)
        h = ahead(ahead(ahead(kept[-1])))
        for level in reversed(range(len(c.mult))):
            for _ in range(c.blocks + 1):
                h = ahead(torch.cat([h, kept.pop()], 1))
            if level in c.attention:
                h = ahead(h)
            if c.progressive == "output_skip":
                if level < last:
                    pyramid = step()(pyramid) if c.silent else resampled(pyramid, "up", c.fir)
                image = functional.silu(step()(h))
                pyramid = step()(image) + (pyramid if level < last else 0)
            elif c.progressive == "residual" and level == last:
                pyramid = functional.silu(step()(h))
                pyramid = step()(pyramid)
            elif c.progressive == "residual":
                h = pyramid = (step()(pyramid) + h) * c.scale
            if level:
                h = ahead(h)
        if c.progressive != "output_skip":
            pyramid = functional.silu(step()(h))
            pyramid = step()(pyramid)
        assert next(modules, None) is None
        return pyramid
