"""The loss of some rows of a batch as one module: all that has weights, so that processes can share the work on it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from sde_diffusion.classifier import NoisyClassifier, cross_entropy
from sde_diffusion.likelihood import BinFlow
from sde_diffusion.likelihood.audit.learned_noise import PART
from sde_diffusion.losses import DSMLoss, TimeSampler, learned_loss
from sde_diffusion.model import ScoreModel
from sde_diffusion.rng import Draws
from sde_diffusion.training.dequantise import flow_dequantised
from sde_diffusion.training.options import LossConfig

WEIGHTING = "weighting"  # the part of a weighting that is learned


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


class StepLoss(nn.Module):
    """Dequantisation, the model's forward pass, the objective and a learned weighting, in this order.

    Args:
        model: What is trained.
        parts: Modules by name that are trained with it.
        loss: The section of the config.
        levels: L of discrete data; None for continuous data.
        rough: Whether the forward pass is in bfloat16.
    """

    def __init__(
        self,
        model: ScoreModel,
        parts: Mapping[str, nn.Module] | None,
        loss: LossConfig,
        *,
        levels: int | None,
        rough: bool,
    ) -> None:
        super().__init__()
        self.model, self.parts = model, nn.ModuleDict(parts)
        self.loss, self.levels, self.rough = loss, levels, rough

    @property
    def conditional(self) -> bool:
        """Whether the model is told labels."""
        return bool(getattr(self.model.net, "classes", 0))

    def trained(self) -> dict[str, nn.Parameter]:
        """What the optimizer moves, by name: the model's weights and those of the parts."""
        return dict(self.model.named_parameters()) | {f"parts.{n}": p for n, p in self.parts.named_parameters()}

    def forward(self, x: Tensor, label: Tensor | None, draws: Draws, time_sampler: TimeSampler) -> DSMLoss:
        """The terms of the loss with what a learned weighting makes of them, each (B,).

        Args:
            x: Rows of a batch, (B, *D).
            label: (B,), or None.
            draws: Their random numbers.
            time_sampler: Of the times.
        """
        terms = self.terms(self.model, x, label, draws, time_sampler)
        if WEIGHTING not in self.parts:
            return terms
        learned = learned_loss(self.model.sde, self.loss.weighting, self.parts[WEIGHTING], terms)
        return terms._replace(trained=learned)

    def terms(
        self, model: ScoreModel, x: Tensor, label: Tensor | None, draws: Draws, time_sampler: TimeSampler
    ) -> DSMLoss:
        """The terms of the loss for any weights of the model."""
        x, cost = self._dequantised(x, draws)
        terms = self.loss.objective(
            Forward(model, label if self.conditional else None, self.rough),
            model.sde,
            x,
            weighting=self.loss.weighting,
            time_sampler=time_sampler,
            distance=self.loss.distance,
            generator=draws,
            levels=self.levels,
        )
        loss = terms.loss + cost
        return terms._replace(loss=loss, trained=loss)

    def _dequantised(self, x: Tensor, draws: Draws) -> tuple[Tensor, Tensor | float]:
        """The points of a batch and what they add to the loss: nothing, if no flow draws them."""
        if PART not in self.parts:
            return x, 0.0
        flow = self.parts[PART]
        assert isinstance(flow, BinFlow)
        return flow_dequantised(flow, self.model.sde, x, generator=draws)

    @torch.no_grad()
    def log_variance(self, t: Tensor) -> Tensor | None:
        """u(t) of a weighting that is learned, shape of `t`; None for another."""
        return self.parts[WEIGHTING](self.model.sde, t) if WEIGHTING in self.parts else None


class ClassifierLoss(StepLoss):
    """Cross-entropy in place of the score's error; the times' density is divided by."""

    @property
    def conditional(self) -> bool:
        return False  # labels are what it tells

    def terms(
        self, model: nn.Module, x: Tensor, label: Tensor | None, draws: Draws, time_sampler: TimeSampler
    ) -> DSMLoss:
        assert label is not None
        sde = self.model.sde
        t, density = time_sampler(sde, self.loss.weighting, len(x), generator=draws)
        eps = draws.normal(x.shape[1:], x.dtype)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.rough):
            error = cross_entropy(cast(NoisyClassifier, model), sde, x, label, t, eps)
        loss = error / density
        return DSMLoss(loss, error, t, density, trained=loss)


def pieces(x: Tensor, count: int) -> Iterator[tuple[Tensor, int]]:
    """About equal pieces of `x` (B, *D), `count` at most, each with the number of its first row."""
    first = 0
    for piece in x.chunk(count):
        yield piece, first
        first += len(piece)
