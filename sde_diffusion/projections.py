"""Maps of the predicted clean sample x̂0 into the range of the data, for any solver: the process applies them."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_diffusion.errors import require, require_positive
from sde_diffusion.tensors import expand


@dataclass(frozen=True, kw_only=True)
class Projection(ABC):
    """A map of x̂0, (B, *D) -> (B, *D); a sample's result depends on that sample alone."""

    @abstractmethod
    def __call__(self, x0: Tensor) -> Tensor:
        """The projected x̂0."""


@dataclass(frozen=True, kw_only=True)
class Clip(Projection):
    """Every coordinate held to [low, high]; discrete data live in [−1, 1].

    Attributes:
        low: Smallest value kept.
        high: Largest value kept.

    Reference: Ho et al. 2020, arXiv:2006.11239, published code.
    """

    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        require(self.low < self.high, f"`high` must be > `low` = {self.low}, got {self.high}")

    def __call__(self, x0: Tensor) -> Tensor:
        return x0.clamp(self.low, self.high)


@dataclass(frozen=True, kw_only=True)
class DynamicThreshold(Projection):
    """Every sample clipped to [−s, s] and scaled by bound/s, where s is a quantile of its |x̂0| and at least the bound.

    Attributes:
        quantile: Share of the coordinates that stay unclipped.
        bound: Where the data end.

    Reference: Saharia et al. 2022, arXiv:2205.11487, section 2.3.
    """

    quantile: float = 0.995
    bound: float = 1.0

    def __post_init__(self) -> None:
        require(0 < self.quantile <= 1, f"`quantile` must be in (0, 1], got {self.quantile}")
        require_positive(bound=self.bound)

    def __call__(self, x0: Tensor) -> Tensor:
        sizes = x0.abs().flatten(1).sort(dim=1).values  # torch.quantile refuses large samples
        place = self.quantile * (sizes.shape[1] - 1)
        low = int(place)
        high = min(low + 1, sizes.shape[1] - 1)
        limit = torch.lerp(sizes[:, low], sizes[:, high], place - low).clamp(min=self.bound)
        limit = expand(limit, x0)
        return x0.clamp(-limit, limit) * (self.bound / limit)


PROJECTIONS: dict[str, type[Projection]] = {"clip": Clip, "dynamic_threshold": DynamicThreshold}
