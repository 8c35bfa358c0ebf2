"""A `UNet2DModel` of diffusers as our U-Net: its options, and the names of its tensors.

Reference: https://huggingface.co/docs/diffusers/api/models/unet2d.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sde_diffusion.config import Raw
from sde_diffusion.errors import InputError, require
from sde_diffusion.exchange.slots import Layout, Slot
from sde_diffusion.networks import UNet

DEFAULTS: dict[str, Any] = {
    "act_fn": "silu",
    "add_attention": True,
    "attention_head_dim": 8,
    "attn_norm_num_groups": None,
    "block_out_channels": [224, 448, 672, 896],
    "center_input_sample": False,
    "class_embed_type": None,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
    "downsample_padding": 1,
    "downsample_type": "conv",
    "dropout": 0.0,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 3,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2D",
    "norm_eps": 1e-5,
    "norm_num_groups": 32,
    "num_class_embeds": None,
    "num_train_timesteps": None,
    "out_channels": 3,
    "resnet_time_scale_shift": "default",
    "sample_size": None,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "upsample_type": "conv",
}
"""What a key that a config.json leaves out means."""

ONLY: dict[str, tuple[Any, ...]] = {
    "act_fn": ("silu", "swish"),
    "center_input_sample": (False,),
    "class_embed_type": (None,),
    "downsample_padding": (1,),
    "downsample_type": ("conv",),
    "mid_block_scale_factor": (1,),
    "mid_block_type": ("UNetMidBlock2D",),
    "norm_eps": (1e-5,),
    "resnet_time_scale_shift": ("default",),
    "add_attention": (True,),
    "time_embedding_type": ("positional",),
    "upsample_type": ("conv",),
}
"""Keys of which our U-Net has these values alone."""

OLD_NAMES = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
"""Of attention in files from before diffusers 0.15."""

STAGE = re.compile(r"(down|up)\.\d+\.stages\.\d+|middle\.\d+")


class Keys:
    """The config.json of a model, with its defaults.

    Args:
        found: What the file holds.
        source: The file, for messages.

    Raises:
        InputError: A key that a `UNet2DModel` does not have, or a value that our U-Net has not.
    """

    def __init__(self, found: Mapping[str, Any], source: object) -> None:
        self.source = source
        name = found.get("_class_name")
        require(name == "UNet2DModel", f"`_class_name` of {source} must be UNet2DModel, got {name!r}")
        own = {key: value for key, value in found.items() if not key.startswith("_")}
        for key in own:
            require(key in DEFAULTS, f"`{key}` of {source} is no option of a UNet2DModel that is known here")
        self.values = DEFAULTS | own
        for key, allowed in ONLY.items():
            self.check(key, self[key] in allowed, f"be {' or '.join(map(str, allowed))}")

    def __getitem__(self, key: str) -> Any:
        return self.values[key]

    def check(self, key: str, condition: bool, rule: str) -> None:
        """Raise `InputError` for `key` unless `condition`."""
        require(condition, f"`{key}` of {self.source} must {rule} to be imported, got {self[key]!r}")

    def whole(self, key: str) -> int:
        """A whole number > 0."""
        value = self[key]
        self.check(key, isinstance(value, int) and not isinstance(value, bool) and value > 0, "be a whole number > 0")
        return int(value)

    def widths(self) -> list[int]:
        """`block_out_channels`."""
        widths = self["block_out_channels"]
        sound = isinstance(widths, list) and widths and all(isinstance(w, int) and w > 0 for w in widths)
        self.check("block_out_channels", bool(sound), "be a list of whole numbers > 0")
        return list(widths)


def event_shape(keys: Keys, given: tuple[int, ...] | None) -> tuple[int, ...]:
    """The shape of one image: the user's, or that of `in_channels` and `sample_size`."""
    channels, size = keys.whole("in_channels"), keys["sample_size"]
    if given is not None:
        require(
            len(given) == 3 and given[0] == channels,
            f"`--shape` must be {channels}xHEIGHTxWIDTH as {keys.source} says, got {'x'.join(map(str, given))}",
        )
        return given
    sizes = [size, size] if isinstance(size, int) else size
    sound = isinstance(sizes, list) and len(sizes) == 2 and all(isinstance(side, int) and side > 0 for side in sizes)
    keys.check("sample_size", sound, "be one or two whole numbers > 0, or be given by --shape,")
    return (channels, *sizes)


def network_options(keys: Keys, shape: tuple[int, ...]) -> Raw:
    """The section `model.network` of a model for events of `shape`."""
    widths, groups = keys.widths(), keys.whole("norm_num_groups")
    channels = widths[0]
    keys.check("block_out_channels", all(w % channels == 0 for w in widths), "hold multiples of its first number")
    keys.check("block_out_channels", all(w % groups == 0 for w in widths), f"divide by `norm_num_groups` = {groups}")
    embedding = keys["time_embedding_dim"]
    keys.check("time_embedding_dim", embedding in (None, 4 * channels), f"be null or {4 * channels}")
    heads = keys["attention_head_dim"]
    attends = _attention_levels(keys, len(widths))
    if heads is not None:
        heads = keys.whole("attention_head_dim")
        attended = {w for w, attend in zip(widths, attends, strict=True) if attend} | {widths[-1]}
        keys.check("attention_head_dim", all(w % heads == 0 for w in attended), "divide `block_out_channels`")
    return {
        "name": "unet",
        "channels": channels,
        "multipliers": [w // channels for w in widths],
        "blocks": keys.whole("layers_per_block"),
        "attention": _resolutions(keys, attends, shape),
        "head_channels": heads or max(widths),
        "dropout": keys["dropout"],
        "groups": groups,
        "embedding": "sinusoidal",
        "embedding_scale": 1.0,
    }


def _attention_levels(keys: Keys, levels: int) -> list[bool]:
    """Whether each level has attention."""
    found: dict[str, list[bool]] = {}
    for key, plain in (("down_block_types", "DownBlock2D"), ("up_block_types", "UpBlock2D")):
        names = keys[key]
        keys.check(key, isinstance(names, list) and len(names) == levels, f"name {levels} blocks")
        keys.check(key, set(names) <= {plain, f"Attn{plain}"}, f"hold {plain} and Attn{plain} alone")
        found[key] = [name != plain for name in names]
    down, up = found.values()
    keys.check("up_block_types", up[::-1] == down, "have attention at the levels at which `down_block_types` has it")
    return down


def _resolutions(keys: Keys, attends: Sequence[bool], shape: tuple[int, ...]) -> list[int]:
    """The smaller sides of the levels with attention, by which our U-Net knows them."""
    sides = [-(-min(shape[1:]) // 2**level) for level in range(len(attends))]
    chosen = {side for side, attend in zip(sides, attends, strict=True) if attend}
    distinct = [side in chosen for side in sides] == list(attends)
    keys.check("down_block_types", distinct, f"have attention at all levels of side {min(sides)} or at none")
    return sorted(chosen, reverse=True)


def frequencies(keys: Keys) -> Tensor:
    """Those of the time embedding, 10000^{−i/(h − `freq_shift`)}, rounded as there: it shows in phases up to 999."""
    shift, half = keys["freq_shift"], keys.widths()[0] // 2
    keys.check("freq_shift", shift in (0, 1), "be 0 or 1")
    return torch.exp(-math.log(10_000) * torch.arange(half, dtype=torch.float32) / (half - shift))


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
    row = 0
    for ours in dict.fromkeys(
        match[0] for name in sizes if (match := STAGE.match(name))
    ):  # as our time projections are
        theirs, place = _their_stage(ours)
        width = sizes[f"{ours}.block.conv2.weight"][0]
        found += _block(f"{theirs}.resnets.{place}", f"{ours}.block", f"{ours}.block.skip.weight" not in sizes)
        found += _layer(f"{theirs}.resnets.{place}.time_emb_proj", "shifts", (row, row + width))
        row += width
        if f"{ours}.attention.out.weight" in sizes:
            found += _attention(f"{theirs}.attentions.{place}", f"{ours}.attention", width)
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


def _attention(theirs: str, ours: str, channels: int) -> list[Slot]:
    """Self-attention: queries, keys and values are one convolution here and three matrices there."""
    found = _layer(f"{theirs}.group_norm", f"{ours}.norm")
    for i, part in enumerate(("to_q", "to_k", "to_v")):
        found += _layer(f"{theirs}.{part}", f"{ours}.qkv", (i * channels, (i + 1) * channels), "linear")
    return found + _layer(f"{theirs}.to_out.0", f"{ours}.out", None, "linear")
