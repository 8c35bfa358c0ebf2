"""Training of a noise-aware classifier by the same loop, with the same guarantees."""

from typing import Any, cast

import torch

from sde_diffusion.classifier import NoisyClassifier
from sde_diffusion.data import Dataset
from sde_diffusion.losses import SimpleWeighting, TimeSampler
from sde_diffusion.model import ScoreModel
from sde_diffusion.rng import SampleStream
from sde_diffusion.runtime.ranks import ALONE, Ranks
from sde_diffusion.training.options import LossConfig, TrainingConfig
from sde_diffusion.training.run_folder import RunFolder
from sde_diffusion.training.step import ClassifierLoss
from sde_diffusion.training.trainer import Trainer
from sde_diffusion.training.window import BINS

_ACCURACY = 0x7EA105  # purpose of random numbers


class ClassifierTrainer(Trainer):
    """One run of a classifier: cross-entropy in place of the score's error, accuracy by t, and no pictures.

    The times' density is divided by, so every time sampler estimates the same integral over t.

    Args:
        classifier: On `device`.
        time_sampler: Draws the times of training.
        The others: See `Trainer`.
    """

    loss_kind = ClassifierLoss

    def __init__(
        self,
        classifier: NoisyClassifier,
        train: Dataset,
        validation: Dataset,
        *,
        config: TrainingConfig,
        time_sampler: TimeSampler,
        folder: RunFolder,
        seed: int,
        device: torch.device,
        meta: dict[str, Any],
        ranks: Ranks = ALONE,
    ) -> None:
        super().__init__(
            cast(ScoreModel, classifier),  # the loop asks for its weights and `sde` alone
            train,
            validation,
            config=config,
            loss=LossConfig(weighting=SimpleWeighting(), time_sampler=time_sampler),
            folder=folder,
            seed=seed,
            device=device,
            meta=meta,
            ranks=ranks,
        )

    @torch.no_grad()
    def validate(self) -> dict[str, Any]:
        """Cross-entropy of the averaged weights as in `Trainer`, and their accuracy at the middle of each bin of t."""
        by_t = self.accuracy([(i + 0.5) / BINS * self.model.sde.t_max for i in range(BINS)])
        return super().validate() | {"validation_accuracy": sum(by_t) / BINS, "validation_accuracy_by_t": by_t}

    @torch.no_grad()
    def accuracy(self, times: list[float]) -> list[float]:
        """The share of held-out examples whose likeliest class is their own, at each time; the noise is fixed."""
        right, sde, count = torch.zeros(len(times)), self.model.sde, 0
        for start, batch in self.ranks.together(self.held_out.batches()):
            assert batch.label is not None
            noise = SampleStream(self.seed, _ACCURACY, start=start, count=len(batch.x), device=self.device)
            count += len(batch.x)
            for i, time in enumerate(times):
                t = torch.full((len(batch.x),), time, device=self.device)
                found = self.ema.model(sde.perturb(batch.x, t, noise.normal(batch.x.shape[1:])), t)
                right[i] += (found.argmax(1) == batch.label).sum().cpu()
        return [float(share) for share in right / count]

    def draw_preview(self) -> None:
        """Nothing: a classifier draws no pictures."""
