"""Trained models for the scripts that take a checkpoint, without a command around them."""

from pathlib import Path

import torch

from sde_diffusion.checkpoints import find_checkpoint, stored_config
from sde_diffusion.config.build import Trained, load_trained, read_config
from sde_diffusion.training import load_checkpoint


def trained_model(path: Path, device: torch.device, *assignments: str) -> Trained:
    """The averaged model of a run's folder or a checkpoint file, its config changed by `assignments`."""
    file = find_checkpoint(path)
    checkpoint = load_checkpoint(file)
    return load_trained(checkpoint, read_config(None, list(assignments), stored_config(checkpoint, file)), device)
