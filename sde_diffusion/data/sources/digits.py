"""Handwritten digits, 8×8, embedded in scikit-learn: the data set that is always there.

Reference: Alpaydin & Kaynak 1998, UCI Optical Recognition of Handwritten Digits, doi:10.24432/C50P49.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from sde_diffusion.data.dataset import DataSource, TensorDataset
from sde_diffusion.data.spec import DataSpec

TRAIN = 1500  # of 1797; the others are the test split


@dataclass(frozen=True)
class Digits(DataSource):
    """1797 grey images (1, 8, 8) of 17 levels, in 10 classes: the first 1500 to train, the other 297 to test."""

    spec: ClassVar[DataSpec] = DataSpec("digits", (1, 8, 8), levels=17, classes=tuple(map(str, range(10))))

    def read(self, split: Literal["train", "test"]) -> TensorDataset:
        from sklearn.datasets import load_digits  # takes a second to import: only who loads it pays

        digits = load_digits()
        part = slice(None, TRAIN) if split == "train" else slice(TRAIN, None)
        values = torch.from_numpy(digits.images[part]).to(torch.uint8).unsqueeze(1)
        return TensorDataset(self.spec, values, torch.from_numpy(digits.target[part]))
