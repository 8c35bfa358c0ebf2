"""Models of the package diffusers with random weights, and the folders they are saved in."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")  # whoever imports this is skipped without it
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
    from diffusers.schedulers import scheduling_ddpm

__all__ = [
    "DDIMScheduler",
    "DDPMPipeline",
    "DDPMScheduler",
    "UNet2DModel",
    "random_model",
    "save_pipeline",
    "scheduling_ddpm",
]

SMALL: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (16, 32),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
}


def random_model(**options: Any) -> UNet2DModel:
    """A `UNet2DModel` whose every parameter is random, in the global generator's present state or not."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = UNet2DModel(**SMALL | options).eval().requires_grad_(False)
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):  # ones and zeros would hide what is swapped
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def save_pipeline(folder: Path, model: UNet2DModel, **scheduler: Any) -> Path:
    """Save a DDPM pipeline."""
    DDPMPipeline(model, DDPMScheduler(**scheduler)).save_pretrained(folder)
    return folder
