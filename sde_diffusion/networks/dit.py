"""The diffusion transformer: an image as a sequence of patches, told the time by how its features are normalised.

Reference: Peebles & Xie 2023, "Scalable Diffusion Models with Transformers", arXiv:2212.09748, section 3.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from sde_diffusion.errors import require, require_positive
from sde_diffusion.networks.base import Network
from sde_diffusion.networks.blocks import parts, zeroed
from sde_diffusion.networks.embedding import Condition
from sde_diffusion.networks.fourier import FourierFeatures

TIME_FEATURES = 256  # of the embedding of c_noise, as published

SIZES: dict[str, dict[str, int]] = {
    "S": {"width": 384, "depth": 12, "head_channels": 64},
    "B": {"width": 768, "depth": 12, "head_channels": 64},
    "L": {"width": 1024, "depth": 24, "head_channels": 64},
    "XL": {"width": 1152, "depth": 28, "head_channels": 72},
}
"""Options of the published sizes, table 1; DiT-XL/2 is XL with `patch` 2."""


class DiT(Network):
    """F(x, c_noise, label) by a transformer over patches of x, (B, channels, height, width); zero at the start.

    A block is h + gate · attention(scale · norm(h) + shift), then the same with a perceptron; the scales, shifts and
    gates of all its features are linear in the embedding of time and label, and the gates start as zero (adaLN-Zero).
    Where a patch sits, fixed sines and cosines of its row and column say. Any size works: the image is filled up with
    zeros on the right and below to whole patches, and the output cropped. The cost of attention grows with the square
    of the number of patches. The defaults are small; `SIZES` has the published networks.

    Args:
        shape: Of one image, (channels, height, width).
        classes: Number of classes; 0 for a network without labels.
        heads: Number of events in the output, one after another along the channels.
        patch: Side of a patch, at most the smaller side of the image.
        width: Features of a patch, a multiple of 4.
        depth: Number of blocks.
        head_channels: Least width of an attention head: there are as many as divide `width` into equal parts of at
            least this many.
        mlp_ratio: Hidden features of a perceptron over `width`.
        fourier: Exponents of waves of the input beside it; see `FourierFeatures`.
        embedding: How c_noise is embedded, a name in `EMBEDDINGS`.
        embedding_scale: Its highest (sinusoidal) or typical (fourier) frequency [radians per unit of c_noise].

    Raises:
        InputError: An argument outside its range; in `forward`, labels although `classes` is 0.

    Reference: Peebles & Xie 2023, arXiv:2212.09748, section 3.2.
    """

    position: Tensor

    def __init__(
        self,
        shape: Sequence[int],
        *,
        classes: int = 0,
        heads: int = 1,
        patch: int = 2,
        width: int = 192,
        depth: int = 6,
        head_channels: int = 64,
        mlp_ratio: int = 4,
        fourier: tuple[int, ...] = (),
        embedding: Literal["sinusoidal", "fourier"] = "sinusoidal",
        embedding_scale: float = 16.0,
    ) -> None:
        super().__init__()
        shape = tuple(shape)
        require(
            len(shape) == 3 and min(shape) > 0,
            f"`shape` must be (channels, height, width) for the network 'dit', got {shape}; 'unet' takes series and "
            "volumes too, 'mlp' any shape",
        )
        require_positive(heads=heads, patch=patch, depth=depth, head_channels=head_channels, mlp_ratio=mlp_ratio)
        require(width >= 4 and width % 4 == 0, f"`width` must be a multiple of 4, got {width}")
        smaller = min(shape[1:])
        require(patch <= smaller, f"`patch` must be at most the smaller side of the image, {smaller}, got {patch}")
        self.shape, self.classes, self.patch = shape, classes, patch
        self.features = FourierFeatures(fourier)
        self.input = even(nn.Linear(self.features.factor * shape[0] * patch**2, width))
        rows, columns = (-(-side // patch) for side in shape[1:])
        self.register_buffer("position", positions(rows, columns, width), persistent=False)
        self.condition = Condition(TIME_FEATURES, width, classes=classes, embedding=embedding, scale=embedding_scale)
        self.blocks = nn.ModuleList(
            Block(width, count=parts(width, width, head_channels), hidden=mlp_ratio * width) for _ in range(depth)
        )
        self.modulation = zeroed(nn.Linear(width, 2 * width))
        self.output = zeroed(nn.Linear(width, heads * shape[0] * patch**2))

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        """(B, *shape), (B,), (B,) int64 or None -> (B, heads · channels, height, width)."""
        height, width = x.shape[2:]
        p = self.patch
        whole = functional.pad(self.features(x), (0, -width % p, 0, -height % p))
        h = self.input(rearrange(whole, "b c (m p) (n q) -> b (m n) (c p q)", p=p, q=p)) + self.position
        condition = self.condition(c_noise, label)
        for block in self.blocks:
            h = block(h, condition)
        shift, scale = self.modulation(condition)[:, None].chunk(2, -1)
        out = self.output(modulated(h, shift, scale))
        image = rearrange(out, "b (m n) (c p q) -> b c (m p) (n q)", m=-(-height // p), p=p, q=p)
        cropped: Tensor = image[..., :height, :width]
        return cropped


class Block(nn.Module):
    """h + a · attention(modulated(h)), then h + a · W₂ gelu(W₁ modulated(h)); starts as the identity.

    The gates a and the scales and shifts of both halves are linear in the condition.

    Args:
        width: Features in and out.
        count: Number of attention heads.
        hidden: Features inside the perceptron.
    """

    recomputable = True  # for activation checkpointing

    def __init__(self, width: int, *, count: int, hidden: int) -> None:
        super().__init__()
        self.count = count
        self.qkv = even(nn.Linear(width, 3 * width))
        self.out = even(nn.Linear(width, width))
        self.first = even(nn.Linear(width, hidden))
        self.second = even(nn.Linear(hidden, width))
        self.modulation = zeroed(nn.Linear(width, 6 * width))

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        """(B, patches, width), (B, width) -> (B, patches, width)."""
        shift, scale, gate, shift2, scale2, gate2 = self.modulation(condition)[:, None].chunk(6, -1)
        h = h + gate * self.attention(modulated(h, shift, scale))
        inner = functional.gelu(self.first(modulated(h, shift2, scale2)), approximate="tanh")
        out: Tensor = h + gate2 * self.second(inner)
        return out

    def attention(self, h: Tensor) -> Tensor:
        """W_o softmax(q kᵀ/√d) v over all patches."""
        q, k, v = rearrange(self.qkv(h), "b s (three n d) -> three b n s d", three=3, n=self.count)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.out(rearrange(mixed, "b n s d -> b s (n d)"))
        return out


def modulated(h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """norm(h) (1 + scale) + shift, each patch's features being normalised to mean 0 and variance 1."""
    return functional.layer_norm(h, h.shape[-1:], eps=1e-6) * (1 + scale) + shift


def even(layer: nn.Linear) -> nn.Linear:
    """The layer with weights that keep variances in both directions (Glorot & Bengio 2010), and no bias at first."""
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def positions(rows: int, columns: int, width: int) -> Tensor:
    """Sines and cosines of the column j, then of the row i, at ω_k = 10000^(−4k/width), (rows · columns, width)."""
    quarter = width // 4
    omega = 10_000.0 ** -(torch.arange(quarter, dtype=torch.float64, device="cpu") / quarter)
    i, j = torch.meshgrid(*(torch.arange(n, dtype=torch.float64, device="cpu") for n in (rows, columns)), indexing="ij")
    waves = [
        wave for place in (j, i) for phase in [place.reshape(-1, 1) * omega] for wave in (phase.sin(), phase.cos())
    ]
    return torch.cat(waves, 1).float()
