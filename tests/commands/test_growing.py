"""Results that grow on the disk: taken up with gaps, never twice, and nothing of another run."""

import io
from pathlib import Path

import numpy as np
import pytest
from tqdm import tqdm

from sde_diffusion.commands.growing import FAILED, GrowingArrays, Rows, Span, spans

THREE = spans(0, 10, 4)


def fill(store: GrowingArrays, wanted: list[Span] = THREE) -> list[Span]:
    """Fill `store`, and say what had to be computed for it."""
    computed = []

    def compute(first: int, count: int) -> Rows:
        computed.append((first, count))
        return {"a": np.arange(first, first + count), "b": np.full((count, 2), first)}

    with tqdm(disable=True) as bar:
        store.fill(wanted, compute, bar)
    return computed


def test_batches_cover_the_rows_once() -> None:
    assert THREE == [(0, 4), (4, 4), (8, 2)]
    assert spans(3, 3, 4) == []


def test_gaps_and_damaged_parts_are_filled(tmp_path: Path) -> None:
    def store(seed: int = 1) -> GrowingArrays:
        return GrowingArrays(tmp_path / "a.npz", {"seed": seed})

    assert fill(store()) == THREE
    parts = sorted((tmp_path / "a.partial").iterdir())
    assert [part.name for part in parts] == ["000000000.npz", "000000004.npz", "000000008.npz"]
    assert fill(store()) == []
    parts[2].write_bytes(parts[2].read_bytes()[:-30])
    parts[0].unlink()
    assert fill(store()) == [(0, 4), (8, 2)]
    assert fill(store(), spans(0, 11, 4)) == [(8, 3)], "the last batch has become larger"
    assert fill(store(seed=2)) == THREE, "those of other facts are not taken up"
    again = store(seed=2)
    fill(again)
    again.finish(without=("b",))
    assert [file.name for file in tmp_path.iterdir()] == ["a.npz"]
    with np.load(tmp_path / "a.npz") as stored:
        assert {name: stored[name].tolist() for name in stored.files} == {"a": list(range(10))}


def test_rows_are_had_by_their_batches(tmp_path: Path) -> None:
    store = GrowingArrays(tmp_path / "a.npz", {})
    fill(store, [(4, 4)])
    fill(store, [(0, 4)])
    assert store.rows([(4, 4)])["a"].tolist() == [4, 5, 6, 7]
    assert store.arrays["a"].tolist() == list(range(8))
    assert store.arrays["b"].shape == (8, 2)
    assert GrowingArrays(tmp_path / "a.npz", {}).arrays == {}


def test_each_row_is_written_once(tmp_path: Path) -> None:
    store, sizes = GrowingArrays(tmp_path / "a.npz", {}), []
    for first in range(0, 80, 4):
        fill(store, [(first, 4)])
        sizes.append(max(file.stat().st_size for file in (tmp_path / "a.partial").iterdir()))
    assert max(sizes) == min(sizes)


def test_what_an_earlier_process_did_counts_but_not_towards_the_speed(tmp_path: Path) -> None:
    fill(GrowingArrays(tmp_path / "a.npz", {}), THREE[:2])
    with tqdm(total=10, file=io.StringIO()) as bar:
        GrowingArrays(tmp_path / "a.npz", {}).fill(THREE, lambda first, count: {"a": np.zeros(count)}, bar)
        assert (bar.n, bar.initial) == (10, 8)


def test_a_failure_leaves_what_was_done(tmp_path: Path) -> None:
    def compute(first: int, count: int) -> Rows:
        if first == 4:
            raise KeyError
        return {"a": np.arange(count), "b": np.zeros(count)}

    with tqdm(disable=True) as bar, pytest.raises(KeyError):
        GrowingArrays(tmp_path / "a.npz", {}).fill(THREE, compute, bar)
    assert [part.name for part in (tmp_path / "a.partial").iterdir()] == ["000000000.npz"], FAILED
