"""Packed names: the right files, the right classes, and little memory for many."""

import hashlib
import os
import pickle
import tracemalloc
from pathlib import Path

import pytest
import torch

from sde_diffusion.data.disk import listing
from sde_diffusion.data.disk.listing import list_files
from sde_diffusion.data.sources.images import Images
from sde_diffusion.errors import InputError
from tests.data.files import write_image

NAMES = ["a/1.png", "a/b/2.PNG", "ü/ö.png", "c d/3.jpg", "4.png"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in [*NAMES, "a/.h/5.png", "a/.6.png", "a/7.txt", "e/f/8.txt"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    os.symlink(tmp_path / "a", tmp_path / "link")
    os.symlink(tmp_path / "a" / "1.png", tmp_path / "a" / "9.png")
    os.symlink(tmp_path / "nowhere", tmp_path / "a" / "10.png")
    return tmp_path


def test_files_are_found_with_their_folders(root: Path) -> None:
    found = list_files(root, {".png", ".jpg"})
    assert {*found} == {root / name for name in [*NAMES, "a/9.png"]}
    for i, file in enumerate(found):
        parts = file.relative_to(root).parts
        place = int(found.places[i])
        assert (found.folders[place] if place >= 0 else None) == (parts[0] if len(parts) > 1 else None)
    assert {*pickle.loads(pickle.dumps(found))} == {*found}


def test_keys_are_of_the_names_and_survive_a_choice(root: Path) -> None:
    """The keys of earlier versions: the splits of a folder stay what they were."""
    found = list_files(root, {".png", ".jpg"})
    names = [file.relative_to(root).as_posix().encode() for file in found]
    expected = [int.from_bytes(hashlib.sha256(name).digest()[:6]) for name in names]
    assert found.keys().tolist() == expected
    order = found.keys().argsort()
    taken = found.take(order)
    assert [*taken] == [found[int(i)] for i in order]
    assert taken.keys().tolist() == sorted(expected)
    assert [*taken.take(slice(1, 3))] == [*taken][1:3]


def test_an_unreadable_folder_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: Path) -> None:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(listing.os, "scandir", refuse)
    with pytest.raises(InputError, match=f"image folder {root} cannot be read: Permission denied; check its perm"):
        list_files(root, {".png"})


def test_a_name_costs_its_text_and_twenty_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Entry:
        def __init__(self, name: str) -> None:
            self.name = name

        def is_dir(self) -> bool:
            return False

        def is_file(self) -> bool:
            return True

    class Folder(list[Entry]):
        def __enter__(self) -> "Folder":
            return self

        def __exit__(self, *_: object) -> None:
            self.clear()

    count = 20_000
    monkeypatch.setattr(listing.os, "scandir", lambda _: Folder(Entry(f"{i:032d}.png") for i in range(count)))
    found = list_files(tmp_path, {".png"})
    assert found.nbytes == count * (36 + 20)
    assert found[count - 1] == tmp_path / f"{count - 1:032d}.png"
    tracemalloc.start()
    found.take(found.keys().argsort())
    assert tracemalloc.get_traced_memory()[1] < 64 * count, "no object a name"
    tracemalloc.stop()


def test_labels_of_a_streamed_folder_take_four_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sde_diffusion.data.dataset.MEMORY_LIMIT", 0)
    for i in range(6):
        write_image(tmp_path / "ab"[i % 2] / f"{i}.png", 8, 8)
    dataset = Images(root=str(tmp_path), size=(8,), test_fraction=0.0).read("train")
    labels = dataset.fetch(torch.arange(6))[1]
    assert labels is not None
    assert labels.dtype == torch.int64
    assert sorted(labels.tolist()) == [0, 0, 0, 1, 1, 1]
