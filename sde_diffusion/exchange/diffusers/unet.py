"""A `UNet2DModel` of diffusers as our U-Net: the config.json of one, the options of the other.

Reference: https://huggingface.co/docs/diffusers/api/models/unet2d.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.config.parse import Raw
from sde_diffusion.errors import require
from sde_diffusion.exchange.keys import Keys

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
    "downsample_padding": (0, 1),
    "downsample_type": ("conv",),
    "mid_block_scale_factor": (1,),
    "mid_block_type": ("UNetMidBlock2D",),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "add_attention": (False, True),
    "time_embedding_type": ("positional",),
    "upsample_type": ("conv",),
}
"""Keys of which our U-Net has these values alone."""


def model_keys(found: Mapping[str, Any], source: object) -> Keys:
    """A config.json.

    Raises:
        InputError: It is of another class, has a key that a `UNet2DModel` has not, or a value that our U-Net has not.
    """
    keys = Keys(found, source, DEFAULTS)
    keys.check("_class_name", keys["_class_name"] == "UNet2DModel", "be UNet2DModel")
    for key, value in found.items():
        known = key in DEFAULTS or key.startswith("_") or value is None
        require(known, f"`{key}` of {source} is no option of a UNet2DModel that is known here, got {value!r}")
    for key, allowed in ONLY.items():
        keys.check(key, keys[key] in allowed, f"be {' or '.join(map(str, allowed))}")
    return keys


def image_shape(keys: Keys, given: tuple[int, ...] | None) -> tuple[int, ...]:
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
    widths, groups = block_widths(keys), keys.whole("norm_num_groups")
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
    epsilon = keys["norm_eps"]
    keys.check("norm_eps", isinstance(epsilon, float) and epsilon > 0, "be a number > 0")
    return {
        "name": "unet",
        "channels": channels,
        "multipliers": [w // channels for w in widths],
        "blocks": keys.whole("layers_per_block"),
        "attention": _resolutions(keys, attends, shape),
        "head_channels": heads or max(widths),
        "dropout": keys["dropout"],
        "groups": groups,
        "group_channels": 1,
        "norm_eps": epsilon,
        "middle": _middle(keys),
        "time": "shift" if keys["resnet_time_scale_shift"] == "default" else "scale_shift",
        "padding": "symmetric" if keys["downsample_padding"] else "same",
        "embedding": "sinusoidal",
        "embedding_scale": 1.0,
    }


def block_widths(keys: Keys) -> list[int]:
    """`block_out_channels`."""
    widths = keys["block_out_channels"]
    sound = isinstance(widths, list) and widths and all(isinstance(w, int) and w > 0 for w in widths)
    keys.check("block_out_channels", bool(sound), "be a list of whole numbers > 0")
    return list(widths)


def _middle(keys: Keys) -> str:
    """What is between the blocks in the middle; with scale and shift, diffusers leaves its norm out unless told."""
    if not keys["add_attention"]:
        return "none"
    groups = keys["attn_norm_num_groups"]
    if groups is None and keys["resnet_time_scale_shift"] == "scale_shift":
        return "bare_attention"
    keys.check("attn_norm_num_groups", groups in (None, keys["norm_num_groups"]), "be null or `norm_num_groups`")
    return "attention"


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
    """Those of the time embedding."""
    keys.check("freq_shift", keys["freq_shift"] in (0, 1), "be 0 or 1")
    return waves(block_widths(keys)[0], keys["freq_shift"])


def waves(width: int, shift: int) -> Tensor:
    """ω_i = 10000^{−i/(h − `shift`)}, i = 0 … h − 1, h = width/2, rounded as there: it shows in phases up to 999."""
    half = width // 2
    return torch.exp(-math.log(10_000) * torch.arange(half, dtype=torch.float32) / (half - shift))
