"""The forward pass of training: a model as the score function that the loss asks."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sde_diffusion.model import ScoreModel


@dataclass(frozen=True, eq=False)
class Forward:
    """The score function of a model in training, in bfloat16 or not."""

    model: ScoreModel
    label: Tensor | None
    rough: bool

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.rough):
            score: Tensor = self.model(x, t, self.label)
        return score

    def score_and_fraction(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.rough):
            return self.model.score_and_fraction(x, t, self.label)
