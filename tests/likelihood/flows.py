"""Dequantisation flows that are not at their start."""

import torch
from torch import nn

from sde_diffusion.data import DataSpec
from sde_diffusion.likelihood import BinFlow


def rough_flow(spec: DataSpec, *, spread: float = 0.2) -> BinFlow:
    """A small flow whose every weight is random, always the same."""
    flow = BinFlow(spec, width=4, layers=2)
    draws = torch.Generator().manual_seed(0)
    for parameter in flow.parameters():
        nn.init.normal_(parameter, std=spread, generator=draws)
    return flow.requires_grad_(False)
