"""The names of a `UNet2DModel`'s tensors, and where they lie in our U-Net."""

import re
from collections.abc import Mapping

from torch import Tensor, nn

from sde_diffusion.errors import InputError
from sde_diffusion.exchange.slots import Layout, Slot
from sde_diffusion.networks import UNet

OLD_NAMES = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
"""Of attention in files from before diffusers 0.15."""

STAGE = re.compile(r"(down|up)\.\d+\.stages\.\d+|middle\.\d+")


def renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with today's names."""

    def today(name: str) -> str:
        for old, new in OLD_NAMES.items():
            name = name.replace(old, new)
        return name

    return {today(name): value for name, value in weights.items()}


def slots(net: nn.Module, *, swapped: bool = False) -> list[Slot]:
    """Where the tensors of a `UNet2DModel` lie in our U-Net.

    Args:
        net: Ours.
        swapped: Whether theirs has cosines before sines (`flip_sin_to_cos`).

    Raises:
        InputError: `net` is another network.
    """
    if not isinstance(net, UNet):
        raise InputError("`model.network` must be unet to be a UNet2DModel of diffusers")
    found = [
        *_layer("conv_in", "down.0.entry"),
        Slot("time_embedding.linear_1.weight", "condition.lift.0.weight", layout="swapped" if swapped else "same"),
        Slot("time_embedding.linear_1.bias", "condition.lift.0.bias"),
        *_layer("time_embedding.linear_2", "condition.lift.2"),
        *_layer("conv_norm_out", "output.0"),
        *_layer("conv_out", "output.2"),
    ]
    if net.classes:
        found.append(Slot("class_embedding.weight", "condition.table.weight", (1, net.classes + 1)))
    sizes = {name: tensor.shape for name, tensor in net.state_dict().items()}
    levels = len(net.down)
    for i in range(levels - 1):
        found += _layer(f"down_blocks.{i}.downsamplers.0.conv", f"down.{i + 1}.entry")
        found += _layer(f"up_blocks.{i}.upsamplers.0.conv", f"up.{i}.leave")
    row, share = 0, 2 if net.time == "scale_shift" else 1
    for ours in dict.fromkeys(
        match[0] for name in sizes if (match := STAGE.match(name))
    ):  # as our time projections are
        theirs, place = _their_stage(ours)
        width = sizes[f"{ours}.block.conv2.weight"][0]
        found += _block(f"{theirs}.resnets.{place}", f"{ours}.block", f"{ours}.block.skip.weight" not in sizes)
        found += _layer(f"{theirs}.resnets.{place}.time_emb_proj", "shifts", (row, row + share * width))
        row += share * width
        if f"{ours}.attention.out.weight" in sizes:
            found += _attention(
                f"{theirs}.attentions.{place}", f"{ours}.attention", width, f"{ours}.attention.norm.weight" in sizes
            )
    return found


def _their_stage(ours: str) -> tuple[str, str]:
    """Their block, and the place in it, of our stage."""
    side, *level, place = ours.replace(".stages", "").split(".")
    return (f"{side}_blocks.{level[0]}" if level else "mid_block"), place


def _layer(theirs: str, ours: str, rows: tuple[int, int] | None = None, layout: Layout = "same") -> list[Slot]:
    """Weight and bias."""
    return [
        Slot(f"{theirs}.weight", f"{ours}.weight", rows, layout),
        Slot(f"{theirs}.bias", f"{ours}.bias", rows),
    ]


def _block(theirs: str, ours: str, plain: bool) -> list[Slot]:
    """A residual block; `plain` where its skip is the identity."""
    found = [
        slot for part in ("norm1", "conv1", "norm2", "conv2") for slot in _layer(f"{theirs}.{part}", f"{ours}.{part}")
    ]
    return found if plain else found + _layer(f"{theirs}.conv_shortcut", f"{ours}.skip")


def _attention(theirs: str, ours: str, channels: int, normed: bool) -> list[Slot]:
    """Self-attention, `normed` or not: queries, keys and values are one convolution here and three matrices there."""
    found = _layer(f"{theirs}.group_norm", f"{ours}.norm") if normed else []
    for i, part in enumerate(("to_q", "to_k", "to_v")):
        found += _layer(f"{theirs}.{part}", f"{ours}.qkv", (i * channels, (i + 1) * channels), "linear")
    return found + _layer(f"{theirs}.to_out.0", f"{ours}.out", None, "linear")
