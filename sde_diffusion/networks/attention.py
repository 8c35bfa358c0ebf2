"""Self-attention over the pixels of a feature map: with all pairs of pixels, or in linear time.

References: Vaswani et al. 2017, arXiv:1706.03762, section 3.2; Ho et al. 2020, arXiv:2006.11239, appendix B; Shen et
al. 2018, arXiv:1812.01243.
"""

from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from sde_diffusion.networks.blocks import Layers, parts, zeroed

FEW, FEW_ROUGH = 100, 256  # pixels up to which plain products are faster than fused on the CPU; in half precision


class Attention(nn.Module):
    """x + W_o softmax(q kᵀ/√d) v over all pixels, with q, k, v linear in GroupNorm(x); starts as the identity.

    Args:
        channels: Channels in and out.
        layers: How its layers are made.
        head_channels: Least width d of a head: there are as many heads as divide the channels into equal parts of at
            least this many. Narrow heads are slow.
        normed: Whether q, k, v are linear in GroupNorm(x); else in x.
    """

    def __init__(self, channels: int, layers: Layers, *, head_channels: int, normed: bool = True) -> None:
        super().__init__()
        self.heads = parts(channels, channels, head_channels)
        self.norm = layers.norm(channels) if normed else nn.Identity()
        self.qkv = layers.conv(channels, 3 * channels, 1)
        self.out = zeroed(layers.conv(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *sides) -> (B, C, *sides)."""
        qkv = rearrange(self.qkv(self.norm(x)).flatten(2), "b (three n d) s -> three b n s d", three=3, n=self.heads)
        mixed = rearrange(self.mix(qkv), "b n s d -> b (n d) s")
        out: Tensor = x + self.out(mixed.reshape(x.shape))
        return out

    def mix(self, qkv: Tensor) -> Tensor:
        """q, k and v (3, B, heads, pixels, d) -> (B, heads, pixels, d)."""
        if qkv.device.type == "cpu" and qkv.shape[-2] <= (FEW_ROUGH if qkv.dtype.itemsize < 4 else FEW):
            q, k, v = qkv
            mixed: Tensor = (q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)).softmax(-1) @ v
            return mixed
        return scaled_dot_product_attention(*qkv.contiguous())  # the fused kernels want d innermost


class LinearAttention(Attention):
    """x + W_o softmax_d(q)/√d (softmax_s(k)ᵀ v): its cost is linear in the number of pixels s; starts as the identity.

    The keys are normalised over the pixels and the queries over the d features of a head, so that the small matrix
    softmax_s(k)ᵀ v, (d, d), stands for all pixels. q, k, v are linear in GroupNorm(x).

    Reference: Shen et al. 2018, "Efficient Attention", arXiv:1812.01243, eq. 3.
    """

    def mix(self, qkv: Tensor) -> Tensor:
        q, k, v = qkv
        context = k.softmax(-2).transpose(-1, -2) @ v
        mixed: Tensor = q.softmax(-1) @ context * q.shape[-1] ** -0.5
        return mixed
