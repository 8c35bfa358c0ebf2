"""Models of diffusers: the folder of a DDPM or DDIM pipeline, or of a bare `UNet2DModel`.

    model_index.json   unet/config.json   unet/diffusion_pytorch_model.safetensors   scheduler/scheduler_config.json

Older pipelines have all files beside each other, and pickles (.bin) for weights.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from sde_diffusion.config.build import Trained
from sde_diffusion.config.parse import Raw, merge
from sde_diffusion.errors import InputError, require
from sde_diffusion.exchange.base import Format, Imported
from sde_diffusion.exchange.diffusers.export import VERSION, model_config, scheduler_config
from sde_diffusion.exchange.diffusers.names import renamed, slots
from sde_diffusion.exchange.diffusers.scheduler import scheduler_keys, sections
from sde_diffusion.exchange.diffusers.unet import frequencies, image_shape, model_keys, network_options
from sde_diffusion.exchange.files import read_json, read_tensors
from sde_diffusion.exchange.keys import Keys
from sde_diffusion.exchange.slots import to_theirs
from sde_diffusion.runtime.atomic_write import write_atomically

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
        keys = model_keys(read_json(folder / "config.json"), folder / "config.json")
        shape, learned = image_shape(keys, shape), _learned(keys)
        network = network_options(keys, shape)
        scheduler, notes = _scheduler(root)
        weights = read_tensors(path if path.is_file() else _weights_file(folder))
        classes = 0 if keys["num_class_embeds"] is None else keys.whole("num_class_embeds")
        implied = {"condition.embedding.frequencies": frequencies(keys)}
        if classes:  # there is no class "none": its row adds nothing
            implied["condition.table.weight"] = torch.zeros(classes + 1, 4 * network["channels"])
        return Imported(
            merge(sections(scheduler, learned=learned), {"model": {"network": network}}),
            shape,
            renamed(weights),
            lambda net: slots(net, swapped=bool(keys["flip_sin_to_cos"])),
            implied=implied,
            classes=classes,
            notes=notes,
        )

    def write(self, trained: Trained, folder: Path) -> list[Path]:
        """Write a DDPM or DDIM pipeline. Where the model has learnt to go without a class, that is the last one."""
        scheduler, model = scheduler_config(trained), model_config(trained)
        net = trained.model.net
        weights = to_theirs(slots(net), net.state_dict())
        if len(net.state_dict().get("condition.table.weight", ())) == model["num_class_embeds"]:
            table = net.state_dict()["condition.table.weight"].cpu()
            weights["class_embedding.weight"] = torch.cat([table[1:], table[:1]])
        pipeline = scheduler["_class_name"].replace("Scheduler", "Pipeline")
        index = {"_class_name": pipeline, "_diffusers_version": VERSION}
        parts = {"scheduler": ["diffusers", scheduler["_class_name"]], "unet": ["diffusers", "UNet2DModel"]}
        contents = {
            "unet/diffusion_pytorch_model.safetensors": save(weights, metadata={"format": "pt"}),
            "unet/config.json": _as_json(model),
            "scheduler/scheduler_config.json": _as_json(scheduler),
            "model_index.json": _as_json(index | parts),
        }
        for name, content in contents.items():
            write_atomically(folder / name, content)
        return [folder / name for name in contents]


def _as_json(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, indent=2, sort_keys=True) + "\n").encode()


def _learned(keys: Keys) -> bool:
    """Whether the network has a second head, for the variance."""
    inputs, outputs = keys.whole("in_channels"), keys.whole("out_channels")
    keys.check("out_channels", outputs in (inputs, 2 * inputs), f"be {inputs} or {2 * inputs}, as `in_channels` says,")
    return outputs == 2 * inputs


def _scheduler(folder: Path) -> tuple[Keys, tuple[str, ...]]:
    """The scheduler beside the model, or that of DDPM, and what to say of it."""
    name = "scheduler_config.json"
    files = (folder / "scheduler" / name, folder / name, folder.parent / "scheduler" / name)
    for file in files:
        if file.is_file():
            return scheduler_keys(read_json(file), file), ()
    note = (
        f"no {name} beside the model: taken to be DDPM's, β from 1e-4 to 0.02 in 1000 steps; change it by --set sde.…"
    )
    return scheduler_keys({}, folder / name), (note,)


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
