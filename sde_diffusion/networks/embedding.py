"""What the networks know besides x: the noise level as waves in c_noise, and the class label.

Both embeddings are (sin ωc, cos ωc) for frequencies ω in radians per unit of c; they differ in how the ω are chosen.
`scale` bounds the steepness in time, and with it the steps of an adaptive solver: c_noise = −λ/4 spans about [−2, 2],
where the networks' default 16 resolves Δλ ≈ 0.25 and stays smooth; c_noise = 999 t wants 1, as in DDPM.

References: Vaswani et al. 2017, arXiv:1706.03762, section 3.5; Tancik et al. 2020, arXiv:2006.10739, section 4.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from sde_diffusion.errors import require, require_positive
from sde_diffusion.registry import lookup


class Waves(nn.Module):
    """c (B,) -> (sin ωc, cos ωc), (B, 2 len(ω)), for fixed frequencies ω that are saved with the weights."""

    frequencies: Tensor

    def __init__(self, frequencies: Tensor) -> None:
        super().__init__()
        self.register_buffer("frequencies", frequencies)

    def forward(self, c: Tensor) -> Tensor:
        phase = c[:, None] * self.frequencies
        return torch.cat([phase.sin(), phase.cos()], 1)


class Sinusoidal(Waves):
    """Geometric frequencies ω_i = scale · max_period^{−i/(h−1)}, i = 0 … h−1, h = width/2.

    With `scale` 1 on c = 999 t this is the published embedding of DDPM.

    Args:
        width: Number of features, even and at least 4.
        scale: The highest frequency [radians per unit of c].
        max_period: Ratio of the highest frequency to the lowest.
    """

    def __init__(self, width: int, *, scale: float = 1.0, max_period: float = 10_000.0) -> None:
        half = width // 2
        exponent = torch.arange(half, dtype=torch.float64, device="cpu") / (half - 1)
        super().__init__((scale * max_period**-exponent).float())


class GaussianFourier(Waves):
    """Random frequencies ω ~ N(0, scale²), the same in every run: they have a generator of their own.

    Args:
        width: Number of features, even and at least 4.
        scale: Standard deviation of the frequencies [radians per unit of c].
    """

    def __init__(self, width: int, *, scale: float = 1.0) -> None:
        generator = torch.Generator("cpu").manual_seed(0)
        super().__init__(scale * torch.randn(width // 2, generator=generator, device="cpu"))


EMBEDDINGS: dict[str, type[Sinusoidal] | type[GaussianFourier]] = {
    "sinusoidal": Sinusoidal,
    "fourier": GaussianFourier,
}


class Condition(nn.Module):
    """Noise level and class label as one vector: SiLU(W₂ SiLU(W₁ embedding(c)) + table[label]).

    The label's table has a learned row for "no label". Dropping labels at random in training therefore gives the
    unconditional model that classifier-free guidance needs.

    Args:
        width: Number of embedding features of c, even and at least 4.
        features: Number of features of the result.
        classes: Number of classes; 0 for a network without labels.
        embedding: A name in `EMBEDDINGS`.
        scale: Its `scale`.

    Raises:
        InputError: `classes` < 0, unknown `embedding`, `scale` ≤ 0; in `forward`, labels although `classes` is 0.
    """

    def __init__(self, width: int, features: int, *, classes: int, embedding: str, scale: float) -> None:
        super().__init__()
        require(classes >= 0, f"`classes` must be ≥ 0, got {classes}")
        require_positive(embedding_scale=scale)
        self.embedding = lookup(EMBEDDINGS, embedding, "embedding")(width, scale=scale)
        self.lift = nn.Sequential(nn.Linear(width, features), nn.SiLU(), nn.Linear(features, features))
        self.table = nn.Embedding(classes + 1, features) if classes else None

    def forward(self, c_noise: Tensor, label: Tensor | None) -> Tensor:
        """(B,), (B,) or None -> (B, features)."""
        known = label is None or self.table is not None
        require(known, "the network has no classes, but got labels; build it with `classes` > 0")
        features: Tensor = self.lift(self.embedding(c_noise))
        if self.table is not None:
            row = torch.zeros_like(c_noise, dtype=torch.int64) if label is None else label + 1
            features = features + self.table(row)
        return functional.silu(features)
