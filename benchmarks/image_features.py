"""Features of Fashion-MNIST images and the distance between sets of them, for comparisons within this repository.

There is no standard feature network for such images, so this is one of our own: a small classifier trained for two
epochs from a fixed seed. Its distances can be compared where its hash is the same, and the floor, real images against
real ones at the same number, says what zero looks like.

    FD² = |m₁ − m₂|² + tr(C₁ + C₂ − 2 (C₁^½ C₂ C₁^½)^½)

of the means m and covariances C of the features: the Fréchet distance between the Gaussians that have them.

Reference: Heusel et al. 2017, arXiv:1706.08500, eq. 6, there with Inception's features and also printed squared.
"""

import hashlib
import math
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from sde_diffusion.data.sources.mnist import FashionMNIST
from sde_diffusion.rng import generator
from sde_diffusion.runtime.atomic_write import write_atomically

EPOCHS, BATCH, RATE = 2, 128, 2e-3
FOLDS = 10  # of the jackknife


class FeatureNet(nn.Module):
    """uint8 images (B, 1, 28, 28) -> features (B, 64), and logits (B, 10) of those."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 32, 64, 64)
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairwise(widths))
        self.features = nn.Linear(64 * 16, 64)
        self.logits = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        """The features."""
        x = images.float() / 127.5 - 1
        for conv in self.convs:
            x = functional.silu(conv(x))
        features: Tensor = self.features(x.flatten(1))
        return features


class Judge(NamedTuple):
    """The trained network, its hash, its accuracy on the test images, and the features of all training images."""

    net: FeatureNet
    sha256: str
    accuracy: float
    real: Tensor

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """(N, 1, 28, 28) uint8 -> (N, 64) float64 on the CPU."""
        device = next(self.net.parameters()).device
        return torch.cat([self.net(part.to(device)).double().cpu() for part in images.split(1000)])

    @torch.no_grad()
    def classes(self, images: Tensor) -> Tensor:
        """The most likely class of each image, (N,)."""
        device = next(self.net.parameters()).device
        return self.net.logits(self.features(images).float().to(device)).argmax(1).cpu()


def trained_judge(folder: Path, device: torch.device) -> Judge:
    """The network of `folder`, trained first if it is not there."""
    path = folder / "feature_net.safetensors"
    train, test = FashionMNIST().load("train"), FashionMNIST().load("test")
    images, labels = train.fetch(torch.arange(len(train)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = FeatureNet()
    if not path.exists():
        assert labels is not None
        _train(net.to(device), images.to(device), labels.to(device))
        write_atomically(path, save({name: value.cpu().contiguous() for name, value in net.state_dict().items()}))
    net.load_state_dict(load_file(path))
    judge = Judge(net.to(device).eval(), hashlib.sha256(path.read_bytes()).hexdigest(), math.nan, torch.empty(0))
    held_out, classes = test.fetch(torch.arange(len(test)))
    assert classes is not None
    accuracy = float((judge.classes(held_out) == classes.cpu()).double().mean())
    return judge._replace(accuracy=accuracy, real=judge.features(images))


def _train(net: FeatureNet, images: Tensor, labels: Tensor) -> None:
    steps = EPOCHS * len(images) // BATCH
    optimizer = torch.optim.Adam(net.parameters(), RATE)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    for step in tqdm(range(steps), desc="feature net", disable=None):
        rows = torch.randint(len(images), (BATCH,), generator=generator(0, step)).to(images.device)
        loss = functional.cross_entropy(net.logits(net(images[rows])), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()


class Moments(NamedTuple):
    """Mean (d,) and covariance (d, d) of a set of features, float64."""

    mean: Tensor
    covariance: Tensor

    @classmethod
    def of(cls, features: Tensor) -> "Moments":
        """Of features (N, d)."""
        return cls(features.mean(0), torch.cov(features.T))


def frechet(features: Tensor, real: Moments) -> tuple[float, float]:
    """FD² of features (N, d) from `real`, and its standard error by a jackknife of ten folds."""
    whole = _squared(Moments.of(features), real)
    fold = torch.arange(len(features)) * FOLDS // len(features)  # blocks, for labels may go round
    left = torch.tensor([_squared(Moments.of(features[fold != i]), real) for i in range(FOLDS)], dtype=torch.float64)
    return whole, float(((FOLDS - 1) / FOLDS * (left - left.mean()).square().sum()).sqrt())


def _squared(a: Moments, b: Moments) -> float:
    root = _root(a.covariance)
    cross = _root(root @ b.covariance @ root)
    total = (a.mean - b.mean).square().sum() + (a.covariance + b.covariance - 2 * cross).trace()
    return float(total.clamp(min=0))


def _root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ torch.diag(values.clamp(min=0).sqrt()) @ vectors.T
