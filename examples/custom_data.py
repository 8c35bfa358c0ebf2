"""Data of your own, in two ways: as a tensor for one program, and as a row that configs and commands know by name.

Run it: `python examples/custom_data.py`.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

import sde_diffusion as sd

CLASSES = ("left", "right")
FAST = {"steps": 300, "learning_rate": 5e-3, "log_every": 0, "validate_every": 0, "sample_every": 0}


def arms(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Two spirals that wind into each other: points (count, 2), and the class of each, (count,)."""
    rng = sd.generator(seed)
    label = torch.randint(2, (count,), generator=rng)
    turn = 1 + 3 * torch.rand(count, generator=rng)
    angle = turn + torch.pi * label
    points = turn[:, None] * torch.stack([angle.cos(), angle.sin()], 1) / 3
    return points + 0.05 * torch.randn(count, 2, generator=rng), label


# First way: a tensor. The units say what the numbers mean; the model sees (y − shift)/scale.
points, labels = arms(4000, seed=0)
units = sd.Continuous((2,), scale=round(points.std().item(), 3), classes=CLASSES)
trainer = sd.Trainer(
    sd.ScoreModel(sd.MLP((2,), classes=2, width=64, depth=2), sd.VPSDE(), prediction="v"),
    sd.TensorDataset(units, points, labels),
    folder="runs/arms",
    config=sd.TrainingConfig(**FAST),
    resume=True,  # a second start goes on with the run; without it a folder that holds one is refused
)
trainer.run()
model = sd.load("runs/arms", device="cpu")  # `python cli.py sample runs/arms` reads it too
left, right = (model.sample(200, nfe=20, label=name) for name in CLASSES)
near = [torch.cdist(drawn, points).argmin(1) for drawn in (left, right)]
share = torch.cat([labels[near[0]] == 0, labels[near[1]] == 1]).float().mean()
print(f"{share:.0%} of the samples lie on the spiral of their class")


# Second way: a source of data, whose options are fields, and a row.
@dataclass(frozen=True)
class Arms(sd.DataSource):
    """Two spirals in the plane.

    Attributes:
        count: Number of points in a split.
    """

    count: int = 4000

    def read(self, split: Literal["train", "test"]) -> sd.TensorDataset:
        """One split: points and labels with their units."""
        points, labels = arms(self.count, seed=0 if split == "train" else 1)
        spec = sd.DataSpec("arms", (2,), levels=None, classes=CLASSES, scale=1.0)
        return sd.TensorDataset(spec, points, labels)


sd.DATASETS["arms"] = Arms
network = {"name": "mlp", "width": 64, "depth": 2}
config = {"data": {"name": "arms", "count": 2000}, "model": {"network": network}, "training": FAST}
model = sd.train(config, out="runs/arms_vp", device="cpu")
test = Arms().read("test")
print(f"bits per dimension of the test split: {model.bits_per_dim(test.values[:256])}")
