"""A residual multi-layer perceptron, for vectors and small events of any shape."""

import math
from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

from sde_diffusion.errors import require, require_positive
from sde_diffusion.networks.base import Network
from sde_diffusion.networks.blocks import zeroed
from sde_diffusion.networks.embedding import Condition
from sde_diffusion.networks.fourier import FourierFeatures


class MLP(Network):
    """F(x, c_noise, label) by residual layers h + W₂ SiLU(W₁ SiLU(h) + shift) on the flattened x; zero at the start.

    `shift` is the layer's share of the time embedding.

    Args:
        shape: Of one event; any.
        classes: Number of classes; 0 for a network without labels.
        heads: Number of events in the output, one after another along the first dimension.
        width: Features of a hidden layer, even and at least 4; the time embedding has as many.
        depth: Number of residual layers.
        fourier: Exponents of waves of the input beside it; see `FourierFeatures`.
        embedding: How c_noise is embedded, a name in `EMBEDDINGS`.
        embedding_scale: Its highest (sinusoidal) or typical (fourier) frequency [radians per unit of c_noise].

    Raises:
        InputError: An argument outside its range; in `forward`, labels although `classes` is 0.
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        classes: int = 0,
        heads: int = 1,
        width: int = 128,
        depth: int = 4,
        fourier: tuple[int, ...] = (),
        embedding: Literal["sinusoidal", "fourier"] = "sinusoidal",
        embedding_scale: float = 16.0,
    ) -> None:
        super().__init__()
        shape = tuple(shape)
        require(min(shape, default=0) > 0, f"`shape` must be one or more sizes > 0, got {shape}")
        require(width >= 4 and width % 2 == 0, f"`width` must be even and ≥ 4, got {width}")
        require_positive(heads=heads, depth=depth)
        self.shape, self.classes = shape, classes
        dims = math.prod(shape)
        self.features = FourierFeatures(fourier)
        self.input = nn.Linear(self.features.factor * dims, width)
        self.first = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.second = nn.ModuleList(zeroed(nn.Linear(width, width)) for _ in range(depth))
        self.output = zeroed(nn.Linear(width, heads * dims))
        self.condition = Condition(width, width, classes=classes, embedding=embedding, scale=embedding_scale)
        self.shifts = nn.Linear(width, depth * width)  # of all layers in one product

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        """(B, *shape), (B,), (B,) int64 or None -> (B, heads · shape[0], *shape[1:])."""
        shifts = self.shifts(self.condition(c_noise, label)).chunk(len(self.first), 1)
        h = self.input(self.features(x).flatten(1))
        for first, second, shift in zip(self.first, self.second, shifts, strict=True):
            h = h + second(functional.silu(first(functional.silu(h)) + shift))
        out: Tensor = self.output(functional.silu(h))
        return out.reshape(len(x), -1, *x.shape[2:])
