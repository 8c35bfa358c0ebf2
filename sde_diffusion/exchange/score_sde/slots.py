"""Where the tensors of score_sde_pytorch's DDPM, DDPM++ and NCSN++ lie in our `ncsnpp`."""

from collections.abc import Iterable, Mapping
from typing import cast

from torch import nn

from sde_diffusion.errors import InputError
from sde_diffusion.exchange.slots import Layout, Slot
from sde_diffusion.networks import NCSNpp
from sde_diffusion.networks.embedding import GaussianFourier
from sde_diffusion.networks.score_sde.biggan import Attend, Block
from sde_diffusion.networks.score_sde.ncsnpp_levels import DownLevel, UpLevel
from sde_diffusion.networks.score_sde.resample import LowPass


def slots(net: nn.Module, *, biggan: bool) -> list[Slot]:
    """Where the tensors of the closed-up list lie in our network.

    Args:
        net: Our network.
        biggan: Whether their residual blocks are BigGAN's, whose shortcuts have other names.

    Raises:
        InputError: Another network than `ncsnpp`.
    """
    if not isinstance(net, NCSNpp):
        raise InputError("`model.network.name` must be ncsnpp for a model of score_sde_pytorch; leave it out")
    walk = _Walk(net, biggan=biggan)
    if isinstance(net.condition.embedding, GaussianFourier):
        walk.add({"W": (net.condition.embedding, "frequencies")})
    for layer in (net.condition.lift[0], net.condition.lift[2], net.input):
        walk.layer(layer)
    for down in cast("Iterable[DownLevel]", net.down):
        for block, attention in zip(down.blocks, down.attentions, strict=True):
            walk.block(block)
            walk.attention(attention)
        walk.way(down.leave)
        if down.combine is not None:
            walk.layer(down.combine, "Conv.")
        else:
            walk.way(down.shrink)
    for part in net.middle:
        walk.way(part)
        walk.attention(part)
    for up in cast("Iterable[UpLevel]", net.up):
        for block in up.blocks:
            walk.block(block)
        walk.attention(up.attention)
        walk.way(up.grow)
        walk.head(up.head)
        walk.way(up.leave)
    walk.head(net.output)
    return walk.found


class _Walk:
    """Goes through our network in their order, an entry at a time."""

    def __init__(self, net: NCSNpp, *, biggan: bool) -> None:
        self.names = {module: name for name, module in net.named_modules()}
        self.shifts = net.shifts
        self.shortcut, self.weight, self.bias = ("Conv_2", "weight", "bias") if biggan else ("NIN_0", "W", "b")
        self.layout: Layout = "same" if biggan else "transposed"
        self.found: list[Slot] = []
        self.index = self.row = 0

    def add(self, parts: Mapping[str, tuple[nn.Module, str]]) -> None:
        """An entry whose tensors are those of modules of ours, by name."""
        for theirs, (module, name) in parts.items():
            self._slot(theirs, module, name)
        self.index += 1

    def layer(self, layer: nn.Module, prefix: str = "") -> None:
        """An entry that is one layer."""
        self.add({f"{prefix}{name}": (layer, name) for name in ("weight", "bias")})

    def block(self, module: nn.Module) -> None:
        """A residual block; its share of the time embedding lies in the matrix of all blocks."""
        block = cast(Block, module)
        rows = (self.row, self.row + block.outputs)
        self.row += block.outputs
        for name in ("weight", "bias"):
            self._slot(f"Dense_0.{name}", self.shifts, name, rows)
        if not isinstance(block.skip, nn.Identity):
            self._slot(f"{self.shortcut}.{self.weight}", block.skip, "weight", None, self.layout)
            self._slot(f"{self.shortcut}.{self.bias}", block.skip, "bias")
        parts = {"GroupNorm_0": block.norm1, "Conv_0": block.conv1, "GroupNorm_1": block.norm2, "Conv_1": block.conv2}
        self.add({f"{theirs}.{name}": (ours, name) for theirs, ours in parts.items() for name in ("weight", "bias")})

    def attention(self, module: nn.Module) -> None:
        """An attention, if it is one: query, key and value are thirds of one layer of ours."""
        if not isinstance(module, Attend):
            return
        inner = module.attention
        channels = inner.out.weight.shape[0]
        for k in range(4):
            layer = inner.out if k == 3 else inner.qkv
            rows = None if k == 3 else (k * channels, (k + 1) * channels)
            self._slot(f"NIN_{k}.W", layer, "weight", rows, "transposed")
            self._slot(f"NIN_{k}.b", layer, "bias", rows)
        self.add({f"GroupNorm_0.{name}": (inner.norm, name) for name in ("weight", "bias")})

    def way(self, module: nn.Module | None) -> None:
        """What leads to another level, or belongs to a pyramid: a block, a convolution, or nothing with parameters."""
        if isinstance(module, Block):
            self.block(module)
        elif module is not None and not isinstance(module, Attend) and any(True for _ in module.parameters()):
            conv = module.get_submodule("conv") if hasattr(module, "conv") else module
            self.layer(conv, "Conv2d_0." if isinstance(module, LowPass) else "Conv_0.")

    def head(self, module: nn.Module | None) -> None:
        """A normalisation and a convolution."""
        if isinstance(module, nn.Sequential):
            self.layer(module[0])
            self.layer(module[2])

    def _slot(
        self,
        theirs: str,
        module: nn.Module,
        name: str,
        rows: tuple[int, int] | None = None,
        layout: Layout = "same",
    ) -> None:
        whole = f"all_modules.{self.index}.{theirs}"
        self.found.append(Slot(whole, f"{self.names[module]}.{name}", rows, layout))
