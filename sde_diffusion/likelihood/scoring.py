"""Scores of a data set in bits/dim, as random as dequantisation and probes are, each draw with a key of its own."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_diffusion.data import Dataset, DataSpec
from sde_diffusion.errors import InputError, SolveError
from sde_diffusion.guidance import Bind
from sde_diffusion.likelihood.dequantisation import Dequantisation, Dequantised
from sde_diffusion.likelihood.divergence import Divergence
from sde_diffusion.likelihood.log_likelihood import log_likelihood
from sde_diffusion.rng import derive_seed
from sde_diffusion.score import ScoreFn
from sde_diffusion.sde import SDE
from sde_diffusion.solvers.adaptive import AdaptiveODE

_REPLICATE, _DRAW = 0x4E91, 0xD4A3  # purposes of random numbers


def code_length(spec: DataSpec, log_prob: Tensor, log_q: Tensor) -> Tensor:
    """Bits/dim of the data in their own units: (log q − log p)/(D log 2) of discrete data, any shape.

    Its mean over the noise bounds −log₂ P(n)/D from above. Of continuous data it is `DataSpec.bits_per_dim`.
    """
    if spec.levels is None:
        return spec.bits_per_dim(log_prob.double())
    return (log_q - log_prob.double()) / (spec.dims * math.log(2))


@dataclass(frozen=True, eq=False)
class Scores:
    """Of B examples, float64 on the CPU; d draws of the noise in one replicate, k probes.

    Attributes:
        bits_per_dim: (B, d, k).
        prior, delta: The two parts of log p in nats, (B, d) and (B, d, k).
        nfe: Score evaluations of the batch that an example was in, summed over the draws.
    """

    bits_per_dim: Tensor
    prior: Tensor
    delta: Tensor
    nfe: int


@dataclass(frozen=True, eq=False)
class Examples:
    """A data set in an order, and how it is dequantised.

    What a score depends on besides the model is (seed, place in the order, replicate, draw, probe) and the ODE.

    Attributes:
        dataset: The values.
        order: Indices into it, (N,) int64.
        dequantisation, draws: The noise, and how many coupled draws of it make one replicate.
        seed: Of noise and probes. Replicate 0 has the noise of `data.sweep` if the order is that of the data.
        device: Where scores are computed.
        label: Class that a score function is told: −1 for none, None for each example's own.
    """

    dataset: Dataset
    order: Tensor
    dequantisation: Dequantisation
    draws: int
    seed: int
    device: torch.device
    label: int | None = -1

    def score_fn(self, bind: Bind, first: int, count: int) -> ScoreFn:
        """The score function for `count` examples from place `first` on, by `bind` of labels () or (count,).

        Raises:
            InputError: A label that `bind` does not know, or examples without labels where they are to be their own.
        """
        if self.label is not None:
            return bind(torch.tensor(self.label))
        labels = self.dataset.fetch(self.order[first : first + count])[1]
        if labels is None:
            raise InputError("own labels are asked for, but these examples have none; name a class, or leave it out")
        return bind(labels)

    def noised(self, first: int, count: int, sde: SDE, *, replicate: int = 0) -> Dequantised:
        """The draws of `count` examples from place `first` on: x (d, count, *D) and log_q (d, count)."""
        values, _ = self.dataset.fetch(self.order[first : first + count])
        seed = self.seed if replicate == 0 else derive_seed(self.seed, _REPLICATE, replicate)
        noise = self.dequantisation
        return noise.draw(self.dataset.spec, sde, values.to(self.device), seed=seed, start=first, draws=self.draws)

    def score(
        self,
        score_fn: ScoreFn,
        sde: SDE,
        first: int,
        count: int,
        *,
        replicate: int = 0,
        divergence: Divergence,
        ode: AdaptiveODE,
    ) -> Scores:
        """Score the examples at places `first` … `first` + `count` − 1, by one solve for each draw.

        Raises:
            SolveError: A solve fails; says for which example of the data set, whatever the order.
        """
        noised = self.noised(first, count, sde, replicate=replicate)
        seed = self.seed if replicate == 0 else derive_seed(self.seed, _REPLICATE, replicate)
        try:
            solves = [
                log_likelihood(
                    score_fn,
                    sde,
                    x,
                    divergence=divergence,
                    ode=ode,
                    seed=seed if draw == 0 else derive_seed(seed, _DRAW, draw),
                    start=first,
                )
                for draw, x in enumerate(noised.x)
            ]
        except SolveError as failure:
            raise failure.of_examples(self.order[first : first + count].tolist()) from failure
        log_prob = torch.stack([solve.per_probe.double().cpu() for solve in solves], 1)
        return Scores(
            bits_per_dim=code_length(self.dataset.spec, log_prob, noised.log_q.T.cpu()[:, :, None]),
            prior=torch.stack([solve.prior.double().cpu() for solve in solves], 1),
            delta=torch.stack([solve.delta.double().cpu() for solve in solves], 1),
            nfe=sum(solve.nfe for solve in solves),
        )
