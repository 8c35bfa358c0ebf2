"""Exponential moving average of a model's weights, with warm-up."""

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from sde_diffusion.errors import require

Model = TypeVar("Model", bound=nn.Module)


class EMA(Generic[Model]):
    """θ̄ ← d θ̄ + (1 − d) θ with d = min(decay, (1 + k)/(10 + k)) after step k.

    The warm-up lets the first, random weights fade: an average of rate `decay` alone would remember them for about
    1/(1 − decay) steps. `model` is a copy of the trained model, in evaluation mode and without gradients, whose
    weights are θ̄; its buffers are those of the model.

    Args:
        source: The model that is trained.
        decay: In [0, 1).
    """

    def __init__(self, source: Model, decay: float) -> None:
        require(0 <= decay < 1, f"`ema_decay` must be in [0, 1), got {decay}")
        self.decay = decay
        self.model = copy.deepcopy(source).eval().requires_grad_(False)

    def decay_at(self, step: int) -> float:
        """d after training step `step`, counted from 0."""
        return min(self.decay, (1 + step) / (10 + step))

    @torch.no_grad()
    def update(self, source: Model, step: int) -> None:
        """Take in the weights after training step `step`, counted from 0."""
        average: list[Tensor] = list(self.model.parameters())
        torch._foreach_lerp_(average, [p.detach() for p in source.parameters()], 1 - self.decay_at(step))
        for kept, new in zip(self.model.buffers(), source.buffers(), strict=True):
            kept.copy_(new)
