"""Splits: what a source cuts off, and what data sets give by index."""

from dataclasses import dataclass
from typing import Literal

import pytest
import torch

from sde_diffusion.data import DataSource, DataSpec, TensorDataset
from sde_diffusion.data.dataset import MEMORY_LIMIT, fits_in_memory
from sde_diffusion.errors import InputError

SPEC = DataSpec("count", (2,), levels=100, classes=("even", "odd"))


@dataclass(frozen=True)
class Count(DataSource):
    """The values 0 … 9 to train, 50 … 53 to test."""

    def read(self, split: Literal["train", "test"]) -> TensorDataset:
        n = torch.arange(10) if split == "train" else torch.arange(50, 54)
        return TensorDataset(SPEC, n[:, None].expand(-1, 2).to(torch.uint8), n % 2)


def contents(split: Literal["train", "test", "validation"], validation: int) -> list[int]:
    dataset = Count(validation=validation).load(split).to("cpu")
    values, labels = dataset.fetch(torch.arange(len(dataset)))
    assert labels is not None
    assert labels.tolist() == (values[:, 0] % 2).tolist()
    assert dataset.in_memory
    return [int(v) for v in values[:, 0]]


def test_validation_is_cut_off_the_end_of_training() -> None:
    assert contents("train", 3) == [0, 1, 2, 3, 4, 5, 6]
    assert contents("validation", 3) == [7, 8, 9]
    assert contents("test", 3) == [50, 51, 52, 53]


def test_without_validation_the_test_split_stands_in() -> None:
    assert contents("train", 0) == list(range(10))
    assert contents("validation", 0) == contents("test", 0) == [50, 51, 52, 53]


@pytest.mark.parametrize(
    ("validation", "message"),
    [
        (10, "`data.validation` must be < 10, the size of the training split, got 10"),
        (-1, "`data.validation` must be ≥ 0, got -1"),
    ],
)
def test_impossible_validation_splits_are_refused(validation: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Count(validation=validation).load("train")


def test_unknown_split_is_refused() -> None:
    with pytest.raises(InputError, match="`split` must be one of train, test, validation, got 'valid'"):
        Count().load("valid")  # type: ignore[arg-type]


def test_labels_are_checked() -> None:
    with pytest.raises(InputError, match="`label` must be from 0 to 1"):
        TensorDataset(SPEC, torch.zeros(1, 2, dtype=torch.uint8), torch.tensor([2]))


def test_memory_limit_counts_bytes() -> None:
    wide = DataSpec("wide", (1024, 1024), levels=256)
    deep = DataSpec("deep", (1024, 1024), levels=None)
    assert MEMORY_LIMIT == 1024**3
    assert fits_in_memory(wide, 1024)
    assert not fits_in_memory(wide, 1025)
    assert not fits_in_memory(deep, 257)
