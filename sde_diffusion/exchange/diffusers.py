"""Models of diffusers: the folder of a DDPM or DDIM pipeline, or of a bare `UNet2DModel`.

    model_index.json   unet/config.json   unet/diffusion_pytorch_model.safetensors   scheduler/scheduler_config.json

Older pipelines have all files beside each other, and pickles (.bin) for weights.
"""

from pathlib import Path
from typing import Any

import torch

from sde_diffusion.config import Raw
from sde_diffusion.errors import InputError, require
from sde_diffusion.exchange.base import Format, Imported
from sde_diffusion.exchange.diffusers_unet import Keys, event_shape, frequencies, network_options, renamed, slots
from sde_diffusion.exchange.files import read_json, read_tensors

WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")


class Diffusers(Format):
    """A `UNet2DModel` of diffusers, bare or in the folder of a DDPM or DDIM pipeline.

    Reference: https://huggingface.co/docs/diffusers/api/models/unet2d.
    """

    def detects(self, path: Path) -> bool:
        folder = path if path.is_dir() else path.parent
        files = (folder / "model_index.json", folder / "config.json", folder / "unet" / "config.json")
        return any(file.is_file() and "_class_name" in read_json(file) for file in files)

    def read(self, path: Path, *, shape: tuple[int, ...] | None, config: Raw) -> Imported:
        root = path if path.is_dir() else path.parent
        _check_pipeline(root)
        folder = root / "unet" if (root / "unet").is_dir() else root
        keys = Keys(read_json(folder / "config.json"), folder / "config.json")
        shape = event_shape(keys, shape)
        network = network_options(keys, shape)
        weights = read_tensors(path if path.is_file() else _weights_file(folder))
        classes = keys.whole("num_class_embeds") if keys["num_class_embeds"] is not None else 0
        swapped = bool(keys["flip_sin_to_cos"])
        implied = {"condition.embedding.frequencies": frequencies(keys)}
        if classes:
            implied["condition.table.weight"] = torch.zeros(classes + 1, 4 * network["channels"])
        return Imported(
            {"sde": "vp", "model": {"network": network, "prediction": "eps", "conditioning": "time"}},
            shape,
            renamed(weights),
            lambda net: slots(net, swapped=swapped),
            implied=implied,
            classes=classes,
        )


def _check_pipeline(folder: Path) -> None:
    file = folder / "model_index.json"
    parts: dict[str, Any] = read_json(file) if file.is_file() else {}
    for part in parts:
        known = part.startswith("_") or part in ("unet", "scheduler")
        require(known, f"{file} must name a pipeline of `unet` and `scheduler` alone, got `{part}` too")


def _weights_file(folder: Path) -> Path:
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise InputError(
        f"there are no weights in {folder}: {' or '.join(WEIGHTS)}; name another file instead of its folder"
    )
