"""What every data set must satisfy, on tiny files in its format."""

import math
from collections.abc import Callable
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pytest
import torch

from sde_diffusion.data import DATASETS, Dataset, DataSource, DataSpec, Split, sweep, training_batches
from sde_diffusion.data.sources.toys import Toy
from tests.data.files import noise, write_cifar10, write_idx, write_images


def make_mnist(path: Path, _: pytest.MonkeyPatch) -> dict[str, Any]:
    return {"root": str(write_idx(path / "idx", packed=True))}


def make_cifar10(path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    return {"root": str(write_cifar10(path, monkeypatch))}


def make_images(path: Path, _: pytest.MonkeyPatch) -> dict[str, Any]:
    return {"root": str(write_images(path / "images")), "size": (8, 6), "test_fraction": 0.3}


def make_arrays(path: Path, _: pytest.MonkeyPatch) -> dict[str, Any]:
    np.savez(path / "a.npz", x=noise(30, 2, 3, 4) % 5, labels=np.arange(30) % 3)
    return {"file": str(path / "a.npz"), "levels": 5}


def make_latents(path: Path, _: pytest.MonkeyPatch) -> dict[str, Any]:
    (path / "latents").mkdir()
    for i, count in enumerate((13, 1, 16)):
        values = np.random.default_rng(i).normal(3, 2, (count, 4, 2, 2)).astype(np.float32)
        np.savez(path / "latents" / f"{i}.npz", x=values, labels=np.arange(count) % 2)
    return {"root": str(path / "latents"), "per_channel": True, "spread": 0.5}


def no_files(_: Path, __: pytest.MonkeyPatch) -> dict[str, Any]:
    return {}


# the options that make each row of `DATASETS` read a tiny set, whose files are written first
MAKERS: dict[str, Callable[[Path, pytest.MonkeyPatch], dict[str, Any]]] = {
    "digits": no_files,
    "fashion_mnist": make_mnist,
    "mnist": make_mnist,
    "cifar10": make_cifar10,
    "images": make_images,
    "arrays": make_arrays,
    "latents": make_latents,
} | {name: no_files for name, source in DATASETS.items() if issubclass(source, Toy)}

SPLITS: tuple[Split, ...] = get_args(Split)


@pytest.fixture(params=DATASETS)
def name(request: pytest.FixtureRequest) -> str:
    """Each row in turn."""
    return str(request.param)


@pytest.fixture
def source(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataSource:
    """The row's source, with files to read."""
    assert name in MAKERS, (
        f"`DATASETS` has the new row {name!r}: add to `MAKERS` in {__file__} a function that writes a tiny set of its "
        f"files into the given folder and returns the options to read it"
    )
    return DATASETS[name](validation=4, **MAKERS[name](tmp_path, monkeypatch))


@pytest.fixture(params=SPLITS)
def split(request: pytest.FixtureRequest, source: DataSource) -> Dataset:
    """Each split in turn."""
    return source.load(request.param)


def test_options_can_be_left_out_and_read_from_a_config(name: str) -> None:
    DATASETS[name]()
    types = {"bool", "int", "float", "str", "tuple[int, ...]", "tuple[float, ...]", "tuple[str, ...]", "int | None"}
    for field in fields(DATASETS[name]):
        kind = field.type if isinstance(field.type, str) else getattr(field.type, "__name__", "")
        assert str(field.type) in types or kind in types, f"{field.name}: {field.type}"


def test_the_spec_says_what_fetch_gives(name: str, split: Dataset) -> None:
    spec = split.spec
    indices = torch.tensor([len(split) - 1, 0, 0])
    values, labels = split.fetch(indices)
    assert spec.name == name
    assert values.shape == (3, *spec.shape)
    assert values.dtype == spec.dtype
    assert torch.equal(values[1], values[2])
    assert (labels is None) == (not spec.classes)
    if labels is not None:
        assert labels.shape == (3,)
        assert labels.dtype == torch.int64


def test_all_values_and_labels_are_in_range_and_survive_the_round_trip(split: Dataset) -> None:
    spec = split.spec
    values, labels = split.fetch(torch.arange(len(split)))
    x = spec.to_model(values)
    back = spec.from_model(x)
    assert x.dtype == torch.float32
    if spec.levels is None:
        torch.testing.assert_close(back, values, rtol=1e-6, atol=1e-6 * spec.unit)
        assert values.isfinite().all()
    else:
        assert torch.equal(back, values)
        assert 0 <= int(values.min()) <= int(values.max()) < spec.levels
        assert x.abs().max() < 1
    if labels is not None:
        spec.check_labels(labels)
    assert DataSpec.from_dict(spec.to_dict()) == spec


def test_every_level_survives_the_round_trip(split: Dataset) -> None:
    if split.spec.levels is not None:
        n = torch.arange(split.spec.levels)
        assert torch.equal(split.spec.from_model(split.spec.to_model(n)).long(), n)


def test_the_splits_share_one_spec_and_are_disjoint(source: DataSource) -> None:
    splits = [source.load(split) for split in SPLITS]
    assert len({split.spec for split in splits}) == 1
    rows = [{tuple(row) for row in s.fetch(torch.arange(len(s)))[0].flatten(1).tolist()} for s in splits]
    assert not rows[0] & rows[1]
    assert not rows[1] & rows[2]
    assert len(splits[SPLITS.index("validation")]) == 4


@pytest.mark.parametrize("split", ["train", "test"])
def test_loading_twice_gives_the_same_data(source: DataSource, split: Literal["train", "test"]) -> None:
    first, second = source.load(split), source.load(split)
    assert first.spec == second.spec
    everything = torch.arange(len(first))
    for a, b in zip(first.fetch(everything), second.fetch(everything), strict=True):
        assert (a is None and b is None) or (a is not None and b is not None and torch.equal(a, b))


def test_a_sweep_covers_everything_once(source: DataSource) -> None:
    dataset = source.load("test")
    parts = list(sweep(dataset, batch=7, seed=0, limit=100))
    assert [first for first, _ in parts] == list(range(0, min(len(dataset), 100), 7))
    x = torch.cat([batch.x for _, batch in parts])
    values, labels = dataset.fetch(torch.arange(len(x)))
    torch.testing.assert_close(dataset.spec.from_model(x), values, rtol=1e-6, atol=1e-5)
    if labels is not None:
        assert torch.equal(torch.cat([b.label for _, b in parts if b.label is not None]), labels)


def test_training_resumes(source: DataSource) -> None:
    dataset = source.load("train")
    batch = len(dataset) // 2 + 1
    whole = list(islice(training_batches(dataset, batch=batch, seed=1), 6))
    rest = list(islice(training_batches(dataset, batch=batch, seed=1, start=3), 3))
    for a, b in zip(whole[3:], rest, strict=True):
        assert torch.equal(a.x, b.x)
        assert (a.label is None and b.label is None) or torch.equal(a.label, b.label)  # type: ignore[arg-type]


def test_bits_of_the_uniform_density(split: Dataset) -> None:
    """A density of 2^−D on [−1, 1]^D is one of 1/L^D per value, or of (2 scale)^−D in units of y."""
    spec = split.spec
    bits = spec.bits_per_dim(torch.tensor([-spec.dims * math.log(2)], dtype=torch.float64))
    expected = math.log2(2 * spec.unit if spec.levels is None else spec.levels)
    assert bits.item() == pytest.approx(expected, rel=1e-12)
