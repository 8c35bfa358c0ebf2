"""Plain networks F(x, c_noise, label); they know no SDE. A new one is a file here and a row in `NETWORKS`.

Each is built as `Network(shape, *, classes=0, heads=1, …)` and called with x (B, *shape), c_noise (B,) and label (B,)
int64, where −1 means "no label", or None for a batch without any; it starts as zero and returns its heads one after
another along the first dimension of the event, (B, heads · shape[0], *shape[1:]): (B, *shape) for the usual one.
"""

from torch import nn

from sde_diffusion.networks.base import Network
from sde_diffusion.networks.classifier import CLASSIFIERS, Encoder, VectorClassifier
from sde_diffusion.networks.coupling import CouplingFlow
from sde_diffusion.networks.dit import DiT
from sde_diffusion.networks.embedding import EMBEDDINGS, GaussianFourier, Sinusoidal
from sde_diffusion.networks.mlp import MLP
from sde_diffusion.networks.score_sde.ncsnpp import DDPMpp, NCSNpp
from sde_diffusion.networks.unet import UNet

NETWORKS: dict[str, type[nn.Module]] = {"unet": UNet, "ddpmpp": DDPMpp, "ncsnpp": NCSNpp, "dit": DiT, "mlp": MLP}

__all__ = [
    "CLASSIFIERS",
    "EMBEDDINGS",
    "MLP",
    "NETWORKS",
    "CouplingFlow",
    "DDPMpp",
    "DiT",
    "Encoder",
    "GaussianFourier",
    "NCSNpp",
    "Network",
    "Sinusoidal",
    "UNet",
    "VectorClassifier",
]
