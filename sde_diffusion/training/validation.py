"""The held-out examples of a run, which its ranks share."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_diffusion.data import Batch, Dataset, sweep
from sde_diffusion.losses import DSMLoss
from sde_diffusion.model import ScoreModel
from sde_diffusion.rng import SampleStream
from sde_diffusion.runtime.ranks import Ranks
from sde_diffusion.training.options import TrainingConfig
from sde_diffusion.training.shares import released
from sde_diffusion.training.step import StepLoss

_VALIDATION = 0x7EA104  # purpose of random numbers


@dataclass(frozen=True, eq=False)
class HeldOut:
    """The examples, each with noise and a time of its own, whatever the batch and the number of ranks."""

    dataset: Dataset
    config: TrainingConfig
    seed: int
    device: torch.device
    ranks: Ranks

    @property
    def total(self) -> int:
        """Number of examples."""
        return min(len(self.dataset), self.config.validation_examples)

    def batches(self, start: int = 0, count: int | None = None) -> Iterator[tuple[int, Batch]]:
        """The examples `start … start + count − 1`, or all, in batches of as many as a rank trains with."""
        return sweep(
            self.dataset,
            batch=len(self.ranks.rows(self.config.batch)),
            seed=self.seed,
            device=self.device,
            dequantise=self.config.dequantise.uniform,
            limit=self.total if count is None else count,
            start=start,
        )

    @torch.no_grad()
    def terms(self, step_loss: StepLoss, model: ScoreModel) -> DSMLoss:
        """The terms of the loss of `model`, of all examples in order, each (total,).

        Every rank takes as many and calls the model as often, as one that is shared must be: so the last examples may
        be taken twice, and count once.
        """
        share = -(-self.total // self.ranks.size)
        firsts = [min(rank * share, self.total - share) for rank in range(self.ranks.size)]
        first = firsts[self.ranks.rank]
        found: list[Tensor] = []
        with released(model):
            for start, batch in self.ranks.together(self.batches(first, share)):
                draws = SampleStream(
                    *(self.seed, _VALIDATION), start=start, count=len(batch.x), total=self.total, device=self.device
                )
                terms = step_loss.terms(model, batch.x, batch.label, draws, step_loss.loss.time_sampler)
                found.append(torch.stack(terms, 1))
        rows = torch.split(self.ranks.gather(torch.cat(found)), share)
        once = [part[rank * share - start :] for rank, (start, part) in enumerate(zip(firsts, rows, strict=True))]
        return DSMLoss(*torch.cat(once).unbind(1))
