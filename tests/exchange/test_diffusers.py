"""Imported models against diffusers itself: the same numbers from the same weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from torch import nn

from sde_diffusion.build import load_trained, read_config
from sde_diffusion.training import RunFolder, load_checkpoint
from tests.commands.running import succeed
from tests.exchange.models import random_model


def imported(model: UNet2DModel, folder: Path) -> nn.Module:
    """The network of ours that the saved model becomes."""
    model.save_pretrained(folder / "model")
    succeed("import", folder / "model", "--out", folder / "run")
    checkpoint = load_checkpoint(RunFolder(folder / "run").checkpoints()[0])
    config = read_config(None, (), checkpoint.meta["config"])
    return load_trained(checkpoint, config, torch.device("cpu")).model.net


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"attention_head_dim": None, "freq_shift": 1, "flip_sin_to_cos": False},
        {"num_class_embeds": 3, "attention_head_dim": 16, "layers_per_block": 2},
    ],
)
def test_outputs_are_those_of_diffusers(options: dict[str, Any], tmp_path: Path) -> None:
    """In float32, where the order of the sums differs: some hundred roundings of 6e-8."""
    model = random_model(**options)
    net = imported(model, tmp_path)
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([0, 7, 400, 999])
    label = torch.tensor([0, 2, 1, 2]) if "num_class_embeds" in options else None
    expected = model(x, t, class_labels=label).sample
    torch.testing.assert_close(net(x, t.float(), label), expected, rtol=1e-5, atol=1e-5)
