"""How score_sde_pytorch lays out DDPM, DDPM++ and NCSN++: one list `all_modules`, in the order of the forward pass.

The files hold no config. What the network is follows from the names and shapes: which entries there are and in what
order. Entries without parameters leave nothing but a gap in the numbers of some versions: the numbers are closed up.

Reference: https://github.com/yang-song/score_sde_pytorch, models/ddpm.py and models/ncsnpp.py.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_diffusion.errors import InputError, require

Entry = dict[str, Tensor]
"""The tensors of one entry by their names within it."""

KINDS = {
    "W": "fourier",
    "Conv.bias": "combine",
    "NIN_3.b": "attention",
    "Conv_1.bias": "block",
    "Conv2d_0.bias": "filtered",
    "Conv_0.bias": "convolved",
}
"""What an entry is by a tensor that it has; the first that fits."""

BLOCK = ("GroupNorm_0.weight", "GroupNorm_1.weight", "Conv_0.weight")  # what every residual block has

PLAIN = {1: "norm", 2: "linear", 4: "conv"}  # entries of `weight` and `bias`, by the number of axes


def closed_up(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of `all_modules` in their order, entries numbered without gaps."""
    numbers = sorted({int(name.split(".")[1]) for name in weights})
    place = {number: index for index, number in enumerate(numbers)}
    found = {}
    for name, value in weights.items():
        _, number, rest = name.split(".", 2)
        found[f"all_modules.{place[int(number)]}.{rest}"] = value
    return found


@dataclass(frozen=True)
class Architecture:
    """What names and shapes tell.

    Attributes:
        image: Channels of the images.
        attends: Whether each level has attention, from the top.
        options: Options of our network `ncsnpp` but for `attention`.
        heads: Numbers of the entries that are convolutions to images.
    """

    image: int
    attends: tuple[bool, ...]
    options: dict[str, object]
    heads: tuple[int, ...]

    @property
    def fourier(self) -> bool:
        """Whether the noise level is embedded as Fourier features of log σ; else as a position in time."""
        return self.options["embedding"] == "fourier"


def infer(weights: Mapping[str, Tensor], source: object) -> Architecture:
    """The network of closed-up weights.

    Raises:
        InputError: No network of this package, or one without a time embedding; what else does not fit shows when the
            tensors are put in place.
    """
    entries = _entries(weights)
    kinds = [_kind(entry, source) for entry in entries]
    fourier = kinds[:1] == ["fourier"]
    start = int(fourier) + 2
    require(
        kinds[start - 2 : start + 1] == ["linear", "linear", "conv"],
        f"{source} must begin with a time embedding and a convolution of the image to be imported, got the entries "
        f"{', '.join(kinds[: start + 1])}",
    )
    features = entries[start - 2]["weight"].shape[1]
    require(
        not fourier or entries[0]["W"].shape == (features / 2,),
        f"{source} must have half as many Fourier frequencies as its first layer has columns, {features}, got "
        f"{tuple(entries[0].get('W', torch.empty(0)).shape)}",
    )
    _check_groups(entries, source)
    channels, image = entries[start]["weight"].shape[:2]
    biggan = any("Conv_2.weight" in entry for entry in entries)
    staying = [index for index, kind in enumerate(kinds) if kind == "block" and not _changes_sides(entries[index])]
    levels = (kinds.count("block") - len(staying) if biggan else kinds.count("convolved")) // 2 + 1
    per_level, rest = divmod(len(staying) - 2 - levels, 2 * levels)
    require(
        rest == 0 and per_level > 0,
        f"{source} must have n residual blocks a level down and n + 1 up to be imported, got {len(staying)} in "
        f"{levels} levels",
    )
    *firsts, middle = staying[: (levels + 1) * per_level : per_level]  # of each level, and the block after them
    widths = [len(entries[index]["Conv_0.weight"]) for index in firsts]
    require(
        all(width % channels == 0 for width in widths),
        f"{source} must have levels as wide as multiples of {channels} channels to be imported, got {widths}",
    )
    pyramids = _pyramids(entries, kinds, [*firsts, middle], image) if biggan else {}
    filtered = "filtered" in kinds or ("convolved" not in kinds and len(pyramids) > 0)
    options: dict[str, object] = {
        "name": "ncsnpp",
        "channels": channels,
        "multipliers": [width // channels for width in widths],
        "blocks": per_level,
        "block": "biggan" if biggan else "ddpm",
        "fir": filtered,
        "rescale": biggan,
        "progressive_input": "none",
        "progressive": "none",
        "embedding": "fourier" if fourier else "sinusoidal",
    }
    attends = tuple(kinds[index + 1] == "attention" for index in firsts)
    heads = (i for i, kind in enumerate(kinds) if i > start and kind == "conv" and len(entries[i]["weight"]) == image)
    return Architecture(image, attends, options | pyramids, tuple(heads))


def _entries(weights: Mapping[str, Tensor]) -> list[Entry]:
    found: list[Entry] = []
    for name, value in weights.items():
        _, number, rest = name.split(".", 2)
        found.extend({} for _ in range(int(number) + 1 - len(found)))
        found[int(number)][rest] = value
    return found


def _kind(entry: Entry, source: object) -> str:
    kind = next((kind for name, kind in KINDS.items() if name in entry), None)
    if kind == "block":
        lacking = next((name for name in BLOCK if name not in entry), None)
        require(
            lacking is None and entry["Conv_0.weight"].ndim == 4,
            f"{source} has a residual block without a sound {lacking or 'Conv_0.weight'}; fetch it again",
        )
    if kind is not None:
        return kind
    if entry.keys() == {"weight", "bias"} and entry["weight"].ndim in PLAIN:
        return PLAIN[entry["weight"].ndim]
    raise InputError(
        f"{source} has an entry of {', '.join(entry)}, which is no part of DDPM, DDPM++ or NCSN++; other networks "
        f"cannot be imported"
    )


def _changes_sides(block: Entry) -> bool:
    """A BigGAN block has a shortcut of its own where channels or sides change."""
    shortcut = block.get("Conv_2.weight")
    return shortcut is not None and shortcut.shape[0] == shortcut.shape[1]


def _check_groups(entries: Sequence[Entry], source: object) -> None:
    """DDPM itself, known by the order of its tensors, has 32 groups at any width; the others at most width/4."""
    for entry in entries:
        names = list(entry)
        if "Conv_1.weight" in entry and names.index("GroupNorm_1.weight") < names.index("Conv_0.weight"):
            narrow = min(len(entry["GroupNorm_0.weight"]), len(entry["GroupNorm_1.weight"]))
            require(
                narrow >= 128,
                f"{source} must have at least 128 channels everywhere to be imported, for DDPM normalises in 32 groups "
                f"and ours have 4 channels or more, got {narrow}",
            )


def _pyramids(entries: Sequence[Entry], kinds: Sequence[str], firsts: Sequence[int], image: int) -> dict[str, object]:
    """How image and output go beside a network of BigGAN blocks, if they do.

    Args:
        entries, kinds: All.
        firsts: The first block of each level and of the middle.
        image: Channels of the images.
    """
    *levels, middle = firsts
    learned = [index for index, kind in enumerate(kinds) if kind in ("filtered", "convolved")]
    outputs = [len(entries[i]["weight"]) for i, kind in enumerate(kinds) if i > middle and kind == "conv"]
    found: dict[str, object] = {}
    if "combine" in kinds and len(levels) > 1:
        above, below = (entries[index]["Conv_0.weight"].shape for index in levels[:2])
        found |= {"progressive_input": "input_skip", "combine": "cat" if below[1] > above[0] else "sum"}
    elif any(index < middle for index in learned):
        found["progressive_input"] = "residual"
    if any(index > middle for index in learned):
        found["progressive"] = "residual"
    elif len(levels) > 1 and outputs == [image] * len(levels):
        found["progressive"] = "output_skip"
    return found


def trained(names: Sequence[str]) -> list[str]:
    """The names of trained tensors: all but the Fourier frequencies."""
    return [name for name in names if not re.fullmatch(r"all_modules\.\d+\.W", name)]
