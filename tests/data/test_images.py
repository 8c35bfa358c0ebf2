"""Folders of images: what is found, how it is split, cropped and streamed, and what is wrong with it."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sde_diffusion.data import dataset as base
from sde_diffusion.data import training_batches
from sde_diffusion.data.dataset import TensorDataset
from sde_diffusion.data.sources.images import ImageFiles, Images
from sde_diffusion.errors import InputError
from tests.data.files import noise, write_image, write_images


def read(root: Path, split: str = "train", **options: Any) -> TensorDataset:
    dataset = Images(**{"root": str(root), "size": (8,)} | options).read(split)  # type: ignore[arg-type]
    assert isinstance(dataset, TensorDataset)
    return dataset


def names(root: Path, split: str, **options: Any) -> list[str]:
    """The files of a split, told apart by their single colour."""
    return [str(int(v)) for v in read(root, split, channels=1, **options).values[:, 0, 0, 0]]


def write_plain(root: Path, values: range, suffix: str = "png") -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for value in values:
        Image.new("L", (9, 11), value).save(root / f"{value}.{suffix}")
    return root


@pytest.mark.parametrize("suffix", ["png", "bmp", "webp", "tiff", "PNG"])
@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_of_the_right_size_is_kept_as_it_is(tmp_path: Path, suffix: str, channels: int) -> None:
    pixels = noise(8, 6, 3, seed=1)
    pixels[..., 1:] = pixels[..., :1] if channels == 1 else pixels[..., 1:]  # a grey one stays exact
    Image.fromarray(pixels).save(tmp_path / f"a.{suffix}", lossless=True)
    values = read(tmp_path, size=(8, 6), channels=channels, test_fraction=0.0).values
    expected = torch.from_numpy(pixels).permute(2, 0, 1)[:channels]
    assert torch.equal(values[0], expected)


def test_large_images_are_scaled_to_cover_and_cropped_at_the_centre(tmp_path: Path) -> None:
    ramp = np.broadcast_to(5 * np.arange(32, dtype=np.uint8), (16, 32))  # a cubic kernel keeps a straight line
    Image.fromarray(ramp.copy()).save(tmp_path / "a.png")
    values = read(tmp_path, size=(4, 4), channels=1, test_fraction=0.0).values[0, 0]
    centres = 5 * (9.5 + 4 * torch.arange(4))  # of four columns of 4 pixels each, in the middle square 8 … 23
    assert (values - centres).abs().max() <= 1


def test_images_are_turned_upright(tmp_path: Path) -> None:
    pixels = noise(6, 8, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90° clockwise to show
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    values = read(tmp_path, size=(8, 6), test_fraction=0.0).values[0]
    assert torch.equal(values, torch.from_numpy(np.rot90(pixels, -1).copy()).permute(2, 0, 1))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_modes_are_converted(tmp_path: Path, mode: str) -> None:
    suffix = "tiff" if mode == "CMYK" else "png"
    image = Image.new("RGB", (8, 8), "white").convert(mode)
    image.save(tmp_path / f"a.{suffix}", transparency=b"\x00\x80" if mode == "P" else None)
    for channels in (1, 3):
        values = read(tmp_path, channels=channels, test_fraction=0.0).values
        assert values.shape == (1, channels, 8, 8)
        assert (values == 255).all()


def test_the_split_is_by_name_and_new_files_move_no_others(tmp_path: Path) -> None:
    write_plain(tmp_path, range(60))
    train, test = names(tmp_path, "train", test_fraction=0.3), names(tmp_path, "test", test_fraction=0.3)
    assert {*train, *test} == {str(i) for i in range(60)}
    assert not {*train} & {*test}
    assert abs(len(test) - 18) < 4 * (60 * 0.3 * 0.7) ** 0.5
    write_plain(tmp_path, range(60, 90))
    assert {*train} < {*names(tmp_path, "train", test_fraction=0.3)}
    assert {*test} < {*names(tmp_path, "test", test_fraction=0.3)}


def test_even_a_few_files_give_a_test_split(tmp_path: Path) -> None:
    write_plain(tmp_path, range(3))
    assert len(names(tmp_path, "test", test_fraction=0.01)) == 1
    assert len(names(tmp_path, "train", test_fraction=0.01)) == 2


def test_sub_folders_train_and_test_are_the_splits(tmp_path: Path) -> None:
    write_plain(tmp_path / "train", range(5))
    write_plain(tmp_path / "test", range(7, 9))
    assert sorted(names(tmp_path, "train")) == list("01234")
    assert sorted(names(tmp_path, "test")) == list("78")


def test_sub_folders_are_classes(tmp_path: Path) -> None:
    write_plain(tmp_path / "cat" / "deeper", range(5))
    write_plain(tmp_path / "ant", range(10, 15))
    train = read(tmp_path, channels=1)
    assert train.spec.classes == ("ant", "cat")
    assert train.labels is not None
    assert train.labels.tolist() == [int(v < 10) for v in train.values[:, 0, 0, 0]]
    plain = read(tmp_path, labelled=False)
    assert plain.spec.classes == ()
    assert plain.labels is None


def test_classes_come_from_the_training_folder(tmp_path: Path) -> None:
    write_plain(tmp_path / "train" / "cat", range(3))
    write_plain(tmp_path / "train" / "dog", range(3))
    write_plain(tmp_path / "test" / "dog", range(3))
    test = read(tmp_path, "test")
    assert test.spec.classes == ("cat", "dog")
    assert test.labels is not None
    assert test.labels.tolist() == [1, 1, 1]
    write_plain(tmp_path / "test" / "emu", range(1))
    with pytest.raises(InputError, match=r"emu/0\.png must lie in a folder named for a class \(cat, dog\), got emu"):
        read(tmp_path, "test")


def test_hidden_and_other_files_are_passed_over(tmp_path: Path) -> None:
    write_plain(tmp_path, range(1, 2))
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "._1.png").write_bytes(b"a resource fork")
    write_plain(tmp_path / ".thumbnails", range(5, 6))
    assert names(tmp_path, "train", test_fraction=0.0) == ["1"]


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_large_folder_streams_the_same_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    source = Images(root=str(write_images(tmp_path)), size=(8, 6))
    memory = source.load("train")
    monkeypatch.setattr(base, "MEMORY_LIMIT", 1000)
    stream = source.load("train")
    assert isinstance(stream, ImageFiles)
    assert stream.spec == memory.spec
    batches = [training_batches(d, batch=5, seed=0, flip=True, workers=workers) for d in (memory, stream)]
    for _ in range(6):
        a, b = map(next, batches)
        assert torch.equal(a.x, b.x)
        assert a.label is not None
        assert b.label is not None
        assert torch.equal(a.label, b.label)


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "webp", "gif", "tiff"])
@pytest.mark.parametrize("kept", [0, 20, -40])
def test_a_broken_image_is_named(tmp_path: Path, suffix: str, kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(3):
        path = write_image(tmp_path / f"{i}.{suffix}", 20, 20)
    path.write_bytes(path.read_bytes()[:kept])
    message = rf"cannot read image {path}: .*; repair or remove it"
    with pytest.raises(InputError, match=message) as error:
        read(tmp_path, test_fraction=0.0)
    assert "\n" not in str(error.value)
    monkeypatch.setattr(base, "MEMORY_LIMIT", 0)
    with pytest.raises(InputError, match=message):
        Images(root=str(tmp_path), test_fraction=0.0).load("train").fetch(torch.arange(3))


def test_deep_images_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(path)
    with pytest.raises(InputError, match=f"image {path} must have 8 bits a channel, got mode I;16; use `data.name=arr"):
        read(tmp_path, test_fraction=0.0)


def test_unreadable_folders_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"`data.root` must name a folder of images, got nothing; set it"):
        Images().load("train")
    with pytest.raises(InputError, match=f"image folder {tmp_path}/none must exist and be a folder; check `data.root`"):
        read(tmp_path / "none")
    with pytest.raises(InputError, match=f"no images in {tmp_path}; known endings: .bmp, "):
        read(tmp_path)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(InputError, match=f"image folder {tmp_path} cannot be read; check its permissions"):
        read(tmp_path)


def test_images_beside_class_folders_are_refused(tmp_path: Path) -> None:
    write_plain(tmp_path / "cat", range(2))
    write_plain(tmp_path, range(1))
    with pytest.raises(InputError, match=r"images must lie either all .*, got 2 of 3 in sub-folders; .*labelled=false"):
        read(tmp_path)
    assert len(read(tmp_path, labelled=False, test_fraction=0.0)) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": ()}, r"`data.size` must be \(height, width\), both > 0, or one number for both, got \(\)"),
        ({"size": (8, 0)}, r"`data.size` must be .*, got \(8, 0\)"),
        ({"size": (8, 8, 3)}, r"`data.size` must be .*, got \(8, 8, 3\)"),
        ({"channels": 2}, r"`data.channels` must be 1 \(grey\) or 3 \(colour\), got 2"),
        ({"test_fraction": 1.0}, r"`data.test_fraction` must be in \[0, 1\), got 1.0"),
        (
            {"test_fraction": 0.0},
            "the test split of .* is empty with `data.test_fraction` = 0.0; change it, add images",
        ),
    ],
)
def test_impossible_options_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    write_plain(tmp_path, range(2))
    with pytest.raises(InputError, match=message):
        read(tmp_path, "test", **options)


def test_one_image_cannot_be_split(tmp_path: Path) -> None:
    write_plain(tmp_path, range(1))
    with pytest.raises(InputError, match=r"the train split of .* is empty with `data.test_fraction` = 0.1"):
        read(tmp_path)
