"""Where a sampling run gets its noise: the prior draw and the fresh z of each step."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from sde_diffusion.rng import SampleStream


class NoiseSource(ABC):
    """Standard normal numbers for one run over a batch."""

    @abstractmethod
    def prior(self, shape: tuple[int, ...]) -> Tensor:
        """z ~ N(0, I) of `shape` (B, *D) for the start of the run, before scaling by the prior's std."""

    start: int = 0
    """Index of the first sample of the batch in its run."""

    @abstractmethod
    def __call__(self, x: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
        """z ~ N(0, I), the shape of `x`, for the step from `t` to `t_next`."""


class SeededNoise(NoiseSource):
    """Noise keyed by (seed, sample index, number of the draw): sample i is the same in every batch.

    Args:
        seed: Seed of the run.
        start: Index of the first sample of this batch.
        device, dtype: Of the numbers.
    """

    def __init__(
        self,
        seed: int,
        *,
        start: int = 0,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.seed, self.start, self.device, self.dtype = seed, start, torch.device(device), dtype
        self._stream: SampleStream | None = None

    def prior(self, shape: tuple[int, ...]) -> Tensor:
        self._stream = self._open(shape[0])
        return self._stream.normal(tuple(shape[1:]), self.dtype)

    def __call__(self, x: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
        if self._stream is None or self._stream.count != len(x):
            self._stream = self._open(len(x))
        return self._stream.normal(tuple(x.shape[1:]), self.dtype)

    def _open(self, count: int) -> SampleStream:
        return SampleStream(self.seed, start=self.start, count=count, device=self.device)
