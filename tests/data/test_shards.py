"""Rows of many files as one array: every format, bounded handles, and files that change under a run."""

import json
import os
import pickle
import struct
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sde_diffusion.data import dataset as base
from sde_diffusion.data import training_batches
from sde_diffusion.data.disk import scan
from sde_diffusion.data.disk import shards as module
from sde_diffusion.data.disk.scan import scan_floats
from sde_diffusion.data.disk.shards import Shards, locate, shard_files
from sde_diffusion.data.sources.arrays import Arrays, ShardedDataset, open_rows
from sde_diffusion.errors import InputError

ROWS = np.random.default_rng(0).normal(size=(23, 2, 3)).astype(np.float32)
CUTS = (0, 5, 6, 20, 23)


def write(folder: Path, suffix: str = "npy", values: Any = ROWS, **more: Any) -> Path:
    """The rows in four files of unequal lengths."""
    folder.mkdir(exist_ok=True)
    for i, (start, stop) in enumerate(pairwise(CUTS)):
        part, rest = values[start:stop], {name: whole[start:stop] for name, whole in more.items()}
        file = folder / f"part_{i}.{suffix}"
        if suffix == "npy":
            np.save(file, part)
        elif suffix == "npz":
            np.savez(file, x=part, **rest)
        else:
            save_file({name: torch.as_tensor(whole) for name, whole in ({"x": part} | rest).items()}, file)
    return folder


def opened(folder: Path) -> Shards:
    (rows,) = open_rows(str(folder)).values()
    assert isinstance(rows, Shards)
    return rows


@pytest.mark.parametrize("suffix", ["npy", "npz", "safetensors"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "uint8", "int16", "bool"])
def test_rows_come_from_the_right_file(tmp_path: Path, suffix: str, dtype: str) -> None:
    values = (ROWS * 10).astype(dtype)
    rows = opened(write(tmp_path / "a", suffix, values))
    assert (rows.shape, rows.dtype, rows.ndim, rows.size) == (values.shape, values.dtype, 3, values.size)
    order = np.random.default_rng(1).permutation(23)
    assert np.array_equal(rows[order], values[order])
    assert np.array_equal(rows[np.array([22, 4, 5, 6, 7, 0, 0])], values[[22, 4, 5, 6, 7, 0, 0]])
    assert np.array_equal(rows[3:21], values[3:21])
    assert rows[7:7].shape == (0, 2, 3)


def test_other_byte_orders_are_read(tmp_path: Path) -> None:
    assert np.array_equal(opened(write(tmp_path / "a", values=ROWS.astype(">f4")))[:], ROWS)


def test_bfloat16_is_read_exactly(tmp_path: Path) -> None:
    values = torch.from_numpy(ROWS).bfloat16()
    rows = opened(write(tmp_path / "a", "safetensors", values))
    assert rows.dtype == np.float32
    assert np.array_equal(rows[:], values.float().numpy())


def test_few_files_are_open_at_once_and_none_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def count() -> int:
        return len(os.listdir("/proc/self/fd"))

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("no /proc")
    monkeypatch.setattr(module, "HANDLES", 2)
    before = count()
    rows = opened(write(tmp_path / "a"))
    for i in np.random.default_rng(1).integers(0, 23, 200):
        assert np.array_equal(rows[np.array([i])], ROWS[[i]])
        assert count() <= before + 2
    copy = pickle.loads(pickle.dumps(rows))
    assert np.array_equal(copy[:], ROWS)
    del rows, copy
    assert count() == before


def test_a_folder_a_pattern_and_a_file_are_places(tmp_path: Path) -> None:
    folder = write(tmp_path / "a")
    (folder / "notes.txt").write_text("no array")
    (folder / ".part.npy").write_bytes(b"")
    files = [folder / f"part_{i}.npy" for i in range(4)]
    assert shard_files(str(folder)) == shard_files(str(folder / "part_*.npy")) == files
    assert shard_files(str(files[1])) == [files[1]]
    with pytest.raises(InputError, match=f"no array files match {folder}/x.*; check the pattern"):
        shard_files(str(folder / "x*"))
    (tmp_path / "b").mkdir()
    with pytest.raises(InputError, match=f"no array files in {tmp_path}/b; known endings: .npy, .npz, .safetensors"):
        shard_files(str(tmp_path / "b"))


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_streamed_and_held_shards_give_the_batches_of_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    labels = np.arange(23) % 3
    np.savez(tmp_path / "whole.npz", x=ROWS, labels=labels)
    source = Arrays(file=str(write(tmp_path / "a", suffix, labels=labels)), validation=3)
    whole, held = Arrays(file=str(tmp_path / "whole.npz"), validation=3).load("train"), source.load("train")
    monkeypatch.setattr(base, "MEMORY_LIMIT", 0)
    stream = source.load("train")
    assert (held.in_memory, stream.in_memory) == (True, False)
    assert whole.spec == held.spec == stream.spec
    batches = [training_batches(data, batch=7, seed=0) for data in (whole, held, stream)]
    for _ in range(6):
        first, *others = map(next, batches)
        for other in others:
            assert torch.equal(first.x, other.x)
            assert torch.equal(first.label, other.label)  # type: ignore[arg-type]


def changed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> ShardedDataset:
    """A streamed set of which every file has been read."""
    monkeypatch.setattr(base, "MEMORY_LIMIT", 0)
    dataset = Arrays(file=str(folder), test_fraction=0.0).read("train")
    assert isinstance(dataset, ShardedDataset)
    dataset.fetch(torch.arange(23))
    return dataset


HELD = r"a/part_2.npy has changed while it was in use: it held float32 of shape \(14, 2, 3\), now: "
MEND = "; restore it and resume the run$"


@pytest.mark.parametrize("reopened", [False, True])
@pytest.mark.parametrize(
    ("values", "message"),
    [
        (ROWS[:3], r"float32 of shape \(3, 2, 3\)"),
        (ROWS[:14].reshape(14, 3, 2), r"float32 of shape \(14, 3, 2\)"),
        (ROWS[:14].astype(np.int32), r"int32 of shape \(14, 2, 3\)"),
        (None, "152 bytes of 464|.*is not a whole"),
    ],
)
def test_a_shard_that_is_cut_or_replaced_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: Any, message: str, reopened: bool
) -> None:
    """In place, whether it is open or has to be opened anew."""
    folder = write(tmp_path / "a")
    dataset = changed(folder, monkeypatch)
    file = folder / "part_2.npy"
    if reopened:
        dataset = pickle.loads(pickle.dumps(dataset))
    whole = file.read_bytes()
    if values is None:
        os.truncate(file, 152)
    else:
        np.save(file, values)
    for _ in range(2):  # it stays an error
        with pytest.raises(InputError, match=HELD + f".*{message}.*" + MEND):
            dataset.fetch(torch.tensor([0, 18]))
    assert np.array_equal(dataset.fetch(torch.tensor([22]))[0].numpy(), ROWS[[22]]), "other files are"
    file.write_bytes(whole)
    assert np.array_equal(dataset.fetch(torch.tensor([18]))[0].numpy(), ROWS[[18]]), "mended"


def test_a_shard_that_is_gone_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "a")
    dataset = changed(folder, monkeypatch)
    (folder / "part_2.npy").unlink()
    assert np.array_equal(dataset.fetch(torch.tensor([18]))[0].numpy(), ROWS[[18]]), "an open file stays readable"
    with pytest.raises(InputError, match=HELD + "No such file or directory" + MEND):
        pickle.loads(pickle.dumps(dataset)).fetch(torch.tensor([18]))


def test_a_file_that_was_only_touched_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "a")
    dataset = changed(folder, monkeypatch)
    os.utime(folder / "part_2.npy", (1, 1))
    assert np.array_equal(dataset.fetch(torch.tensor([18]))[0].numpy(), ROWS[[18]])


def header(**entries: Any) -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.npy", b"", "is not a whole .*: the magic string is not correct"),
        ("a.safetensors", b"\0", "is not a whole .*: unpack requires a buffer of 8 bytes"),
        ("a.safetensors", struct.pack("<Q", 1 << 60), "is not a whole .*: its header is too long"),
        ("a.safetensors", header(x={"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}), "whole .*: 'F8_E4M3'"),
        ("a.safetensors", header(x={"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}), "bytes of "),
        ("a.safetensors", header(x=3), "is not a whole .*: 'int' object is not subscriptable"),
    ],
)
def test_what_is_no_array_file_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        locate(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)


def test_files_that_cannot_be_read_row_by_row_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", "npz")
    np.savez_compressed(folder / "part_1.npz", x=ROWS[:2])
    with pytest.raises(InputError, match=r"part_1.npz must not be compressed, .*; write it by np.savez"):
        open_rows(str(folder))
    folder = write(tmp_path / "b")
    np.save(folder / "part_1.npy", np.asfortranarray(ROWS[:2]))
    with pytest.raises(InputError, match=r"part_1.npy must be in C's order, got Fortran's, .* np.ascontiguousarray"):
        open_rows(str(folder))
    file = folder / "part_1.npy"
    assert np.array_equal(open_rows(str(file))["values"], ROWS[:2]), "one file alone is read as a whole"


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (ROWS[:4, :1], r"part_1.npy must hold rows of shape \(2, 3\) and <f4 like .*part_0.npy, got float32 of shape"),
        (ROWS[:4].astype(np.float64), "part_1.npy must hold rows .*, got float64 of shape"),
    ],
)
def test_unlike_files_are_refused(tmp_path: Path, other: Any, message: str) -> None:
    folder = write(tmp_path / "a")
    np.save(folder / "part_1.npy", other)
    with pytest.raises(InputError, match=message):
        open_rows(str(folder))


def test_archives_of_other_arrays_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", "npz")
    np.savez(folder / "part_2.npz", x=ROWS, y=ROWS)
    with pytest.raises(InputError, match=r"part_2.npz must hold the arrays x like .*part_0.npz, got x, y"):
        open_rows(str(folder))
    np.savez(folder / "part_0.npz", x=ROWS, labels=np.arange(3))
    with pytest.raises(InputError, match=r"arrays of .*part_0.npz must have equally many rows, got .*'labels': 3"):
        open_rows(str(folder))


@pytest.mark.parametrize("channels", [False, True])
def test_a_scan_in_pieces_is_exact_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, channels: bool) -> None:
    monkeypatch.setattr(scan, "_CHUNK", 12)
    monkeypatch.setattr(scan, "_WORTH", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder, axes = write(tmp_path / "a"), (0, 2) if channels else None
    found = scan_floats(folder, opened(folder), start=2, stop=21, channels=channels)
    part = ROWS[2:21].astype(np.float64)
    np.testing.assert_allclose(found.mean, np.ravel(part.mean(axes)), rtol=1e-10)
    np.testing.assert_allclose(found.std, np.ravel(part.std(axes)), rtol=1e-10)
    np.testing.assert_allclose(found.low, np.ravel(part.min(axes)), rtol=1e-10)
    rows = opened(folder)
    monkeypatch.setattr(Shards, "__getitem__", lambda *_: pytest.fail("read again"))
    assert scan_floats(folder, rows, start=2, stop=21, channels=channels) == found
    monkeypatch.undo()
    monkeypatch.setattr(scan, "_WORTH", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    np.save(folder / "part_0.npy", ROWS[:5] + np.float32(1))
    assert scan_floats(folder, opened(folder), start=2, stop=21, channels=channels) != found
    np.save(folder / "part_0.npy", ROWS[:5] * np.float32(np.nan))
    with pytest.raises(InputError, match=f"values in {folder} must be finite, got 6 NaN or infinite; fix the data"):
        scan_floats(folder, opened(folder), start=4, stop=21, channels=channels)
