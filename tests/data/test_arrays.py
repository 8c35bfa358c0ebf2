"""Array files of any shape: kinds of numbers, labels, splits, streaming, and what is wrong with a file."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sde_diffusion.data import Dataset, Split, training_batches
from sde_diffusion.data import dataset as base
from sde_diffusion.data.dataset import TensorDataset
from sde_diffusion.data.disk import scan
from sde_diffusion.data.sources.arrays import Arrays, ShardedDataset
from sde_diffusion.errors import InputError
from tests.data.files import noise

FLOATS = np.random.default_rng(0).normal(3.0, 2.0, (40, 5)).astype(np.float32)


def save(path: Path, values: Any, **more: Any) -> str:
    if path.suffix == ".npz":
        np.savez_compressed(path, x=values, **more)
    else:
        np.save(path, values)
    return str(path)


def read(split: str, **options: Any) -> Dataset:
    return Arrays(**options).read(split)  # type: ignore[arg-type]


def everything(dataset: Dataset) -> tuple[torch.Tensor, torch.Tensor | None]:
    return dataset.fetch(torch.arange(len(dataset)))


@pytest.mark.parametrize("suffix", ["npy", "npz"])
@pytest.mark.parametrize("shape", [(1,), (7,), (3, 4), (2, 3, 4), (1, 2, 3, 4)])
def test_any_shape_of_bytes(tmp_path: Path, suffix: str, shape: tuple[int, ...]) -> None:
    values = noise(20, *shape)
    file = save(tmp_path / f"a.{suffix}", values)
    train, test = read("train", file=file), read("test", file=file)
    assert train.spec.shape == shape
    assert train.spec.levels == 256
    assert isinstance(train, TensorDataset)
    assert torch.equal(torch.cat([everything(train)[0], everything(test)[0]]), torch.from_numpy(values))
    assert (len(train), len(test)) == (18, 2)


@pytest.mark.parametrize(
    ("dtype", "levels", "expected"),
    [
        ("bool", None, 2),
        ("uint8", 17, 17),
        ("int64", 12, 12),
        ("uint16", 4096, 4096),
        (">i4", 11, 11),
        ("int8", 11, 11),
    ],
)
def test_integers_have_levels(tmp_path: Path, dtype: str, levels: int | None, expected: int) -> None:
    values = (np.arange(40).reshape(20, 2) % (2 if dtype == "bool" else 11)).astype(dtype)
    dataset = read("train", file=save(tmp_path / "a.npy", values), levels=levels, test_fraction=0.0)
    found, _ = everything(dataset)
    assert dataset.spec.levels == expected
    assert (dataset.spec.shift, dataset.spec.scale) == (0.0, 1.0)
    assert found.dtype == dataset.spec.dtype
    assert torch.equal(found.long(), torch.from_numpy(values.astype(np.int64)))


@pytest.mark.parametrize("chunk", [1, 12, 1 << 24])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f8"])
def test_floats_are_standardised_by_the_training_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, dtype: str
) -> None:
    monkeypatch.setattr(scan, "_CHUNK", chunk)
    values = FLOATS.astype(dtype)
    values[36:] += 9  # the test split
    dataset = read("train", file=save(tmp_path / "a.npy", values))
    part = values[:36].astype(np.float64)
    assert dataset.spec.levels is None
    assert dataset.spec.shift == pytest.approx(part.mean(), rel=1e-10)
    assert dataset.spec.scale == pytest.approx(part.std(), rel=1e-10)
    assert read("test", file=str(tmp_path / "a.npy")).spec == dataset.spec


def test_a_large_shift_costs_no_digits(tmp_path: Path) -> None:
    """Float64 near 1e9 with a spread of 1: the values reach the model with float32's full precision."""
    values = 1e9 + np.random.default_rng(0).normal(size=(1000, 2))
    dataset = read("train", file=save(tmp_path / "a.npy", values), test_fraction=0.0)
    x = dataset.spec.to_model(everything(dataset)[0])
    expected = (values - values.mean()) / values.std()
    assert np.abs(x.numpy() - expected).max() < 1e-6  # eps(1e9) in float64 is 1.2e-7


def test_labels_come_with_the_archive_or_from_a_file(tmp_path: Path) -> None:
    labels = np.arange(20) % 3
    archive = save(tmp_path / "a.npz", noise(20, 2), labels=labels)
    plain = save(tmp_path / "b.npy", noise(20, 2))
    file = save(tmp_path / "labels.npy", labels.astype(np.uint8))
    for options in ({"file": archive}, {"file": plain, "labels": file}):
        for split, expected in (("train", labels[:18]), ("test", labels[18:])):
            dataset = read(split, **options)
            found = everything(dataset)[1]
            assert found is not None
            assert dataset.spec.classes == ("0", "1", "2")
            assert found.tolist() == expected.tolist()
    named = read("train", file=archive, classes=("a", "b", "c", "d"))
    assert named.spec.classes == ("a", "b", "c", "d")


def test_a_second_file_is_the_test_split(tmp_path: Path) -> None:
    file = save(tmp_path / "a.npz", FLOATS, labels=np.arange(40) % 2)
    test = save(tmp_path / "b.npz", FLOATS[:7] + 1, labels=np.ones(7, int))
    assert len(read("train", file=file, test=test)) == 40
    dataset = read("test", file=file, test=test)
    values, labels = everything(dataset)
    assert torch.equal(values, torch.from_numpy(FLOATS[:7] + 1))
    assert labels is not None
    assert labels.tolist() == [1] * 7
    assert dataset.spec == read("train", file=file, test=test).spec


def test_an_array_is_chosen_by_its_key(tmp_path: Path) -> None:
    file = save(tmp_path / "a.npz", noise(5, 2), y=noise(5, 3))
    assert read("train", file=file, key="y").spec.shape == (3,)
    with pytest.raises(
        InputError, match=f"{file} must hold one array beside `labels`, got x, y; name one by `data.key`"
    ):
        read("train", file=file)
    with pytest.raises(InputError, match=rf"`data.key` must be an array of {file} \(x, y\), got 'z'"):
        read("train", file=file, key="z")


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("values", [FLOATS, noise(40, 2, 3)])
def test_a_large_file_streams_the_same_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int, values: Any
) -> None:
    labels = save(tmp_path / "labels.npy", np.arange(40) % 4)
    source = Arrays(file=save(tmp_path / "a.npy", values), labels=labels, validation=5)
    splits: tuple[Split, ...] = ("train", "validation", "test")
    for split in splits:
        memory = source.load(split)
        with monkeypatch.context() as context:
            context.setattr(base, "MEMORY_LIMIT", 0)
            stream = source.load(split)
        assert memory.in_memory
        assert not stream.in_memory
        assert memory.spec == stream.spec
        batches = [training_batches(d, batch=7, seed=0, workers=workers) for d in (memory, stream)]
        for _ in range(6):
            a, b = map(next, batches)
            assert torch.equal(a.x, b.x)
            assert torch.equal(a.label, b.label)  # type: ignore[arg-type]


def test_a_file_that_breaks_while_it_streams_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "MEMORY_LIMIT", 0)
    path = tmp_path / "a.npy"
    dataset = read("train", file=save(path, FLOATS))
    assert isinstance(dataset, ShardedDataset)
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(InputError, match=f"{path} has changed while it was in use: it held float32 of shape .40, 5"):
        everything(dataset)


@pytest.mark.parametrize("suffix", ["npy", "npz"])
@pytest.mark.parametrize("kept", [0, 4, 60, -20])
def test_a_truncated_file_is_named(tmp_path: Path, suffix: str, kept: int) -> None:
    path = tmp_path / f"a.{suffix}"
    save(path, FLOATS)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(
        InputError, match=f"{path} is not a whole .npy, .npz or .safetensors file of numbers: ."
    ) as error:
        read("train", file=str(path))
    assert "\n" not in str(error.value)


def test_a_flipped_byte_in_an_archive_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, x=FLOATS)
    data = bytearray(path.read_bytes())
    data[400] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=f"{path} is not a whole .npy, .npz or .safetensors file of numbers: Bad CRC"):
        read("train", file=str(path))


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    objects = np.array([[1, "a"]], dtype=object)
    for name, reason in (("a.npy", "Python objects in dtype"), ("a.npz", "allow_pickle=False")):
        file = save(tmp_path / name, objects)
        with pytest.raises(InputError, match=f"{file} is not a whole .* of numbers: .*{reason}"):
            read("train", file=file)
    path, marker = tmp_path / "p.npy", tmp_path / "marker"
    path.write_bytes(f"cos\nmkdir\n(V{marker}\ntR.".encode())
    with pytest.raises(InputError, match=f"{path} is not a whole .* of numbers: the magic string is not correct"):
        read("train", file=str(path))
    assert not marker.exists()


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (noise(9), {}, r"must hold examples \(N, …\) of at least one number each, got shape \(9,\); reshape"),
        (noise(9, 2)[:0], {}, r"must hold examples .*, got shape \(0, 2\)|is not a whole .npy"),
        (np.full((9, 2), "a"), {}, "must hold integers or real numbers, got <U1"),
        (np.full((9, 2), 1j), {}, "must hold integers or real numbers, got complex128"),
        (np.full((9, 2), 3.0), {}, "must hold more than one value, got 3 everywhere"),
        (np.where(np.eye(9) > 0, np.nan, 1), {}, "must be finite, got 8 NaN or infinite; fix the data"),
        (np.where(np.eye(9) > 0, np.inf, 1), {}, "must be finite, got 8 NaN or infinite; fix the data"),
        (
            np.eye(9),
            {"levels": 4},
            "`data.levels` must be left out for floating-point data, got 4; store .* as integers",
        ),
        (np.arange(18).reshape(9, 2), {}, "`data.levels` must be set: .* holds int64, values up to 17"),
        (np.arange(18).reshape(9, 2), {"levels": 15}, r"must be from 0 to 14 \(`data.levels` = 15\), got 15; raise"),
        (-np.arange(18).reshape(9, 2), {"levels": 15}, "must be from 0 to 14 .*, got -15; shift the values"),
        (noise(9, 2), {"levels": 1}, "`data.levels` must be ≥ 2, got 1"),
        (noise(9, 2), {"levels": 70000}, "`levels` must be from 2 to 65536, got 70000"),
        (noise(9, 2), {"test_fraction": -0.1}, r"`data.test_fraction` must be in \[0, 1\), got -0.1"),
        (noise(1, 2), {}, "the train split of .* is empty; lower `data.test_fraction`"),
        (noise(9, 2), {"classes": ("a",)}, "`data.classes` needs labels, and .* has none; set `data.labels`"),
    ],
)
def test_impossible_training_data_is_refused(
    tmp_path: Path, values: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        read("train", file=save(tmp_path / "a.npy", values), **options)


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (np.zeros(8, int), {}, r"labels in .*a.npz must be 9 integers, one per example, got int64 of shape \(8,\)"),
        (np.zeros(9), {}, "labels in .* must be 9 integers, one per example, got float64"),
        (np.arange(9) - 1, {}, "labels in .* must be class indices from 0 to 9999, got -1"),
        (np.arange(9) + 20260101, {}, "labels in .* must be class indices from 0 to 9999, got 20260109"),
        (np.arange(9), {"classes": ("a", "b")}, r"labels of .*a.npz` must be from 0 to 1, .* \(a, b\), got 2"),
    ],
)
def test_impossible_labels_are_refused(tmp_path: Path, labels: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read("train", file=save(tmp_path / "a.npz", noise(9, 2), labels=labels), **options)


def test_a_label_file_holds_one_array(tmp_path: Path) -> None:
    file = save(tmp_path / "a.npy", noise(9, 2))
    labels = save(tmp_path / "l.npz", np.zeros(9, int), y=np.zeros(9, int))
    with pytest.raises(InputError, match=f"{labels} must hold one array of labels, got 2"):
        read("train", file=file, labels=labels)


@pytest.mark.parametrize(
    ("test", "labels", "message"),
    [
        (FLOATS[:, :3], np.zeros(40, int), r"b.npz must hold examples of shape \(5,\) like .*a.npz, got \(3,\)"),
        (noise(40, 5), np.zeros(40, int), "b.npz must hold the same kind of numbers as .*a.npz, got uint8"),
        (FLOATS, None, "b.npz and .*a.npz must both have labels or neither; see `data.labels` and `data.test_labels`"),
        (FLOATS, np.full(40, 3), r"labels of .*b.npz` must be from 0 to 1, the classes of arrays \(0, 1\), got 3"),
        (FLOATS * np.inf, np.zeros(40, int), "values in .*b.npz must be finite, got 200 NaN or infinite"),
    ],
)
def test_a_test_file_must_fit(tmp_path: Path, test: Any, labels: Any, message: str) -> None:
    file = save(tmp_path / "a.npz", FLOATS, labels=np.arange(40) % 2)
    fellow = save(tmp_path / "b.npz", test, **({} if labels is None else {"labels": labels}))
    with pytest.raises(InputError, match=message):
        read("test", file=file, test=fellow)


def test_missing_files_and_splits_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"`data.file` must name a .npy or .npz file or a folder of them, got nothing; set it"
    ):
        Arrays().load("train")
    with pytest.raises(InputError, match=f"array file {tmp_path}/none.npy must exist; check the path"):
        read("train", file=str(tmp_path / "none.npy"))
    file = save(tmp_path / "a.npy", FLOATS)
    with pytest.raises(InputError, match=f"the test split of {file} is empty with `data.test_fraction` = 0.0 of 40"):
        read("test", file=file, test_fraction=0.0)


def test_units_that_are_given_are_those_of_the_data(tmp_path: Path) -> None:
    np.save(tmp_path / "table.npy", np.random.default_rng(0).normal(3, 2, (20, 2)).astype(np.float32))
    found = Arrays(file=str(tmp_path / "table.npy"), shift=(1.0,), scale=(2.0, 4.0)).load("train").spec
    assert (found.shift, found.scale) == (1.0, (2.0, 4.0))
    with pytest.raises(InputError, match="`scale` must be > 0, got -1"):
        Arrays(file=str(tmp_path / "table.npy"), scale=(-1.0,)).load("train")
