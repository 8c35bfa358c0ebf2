"""MNIST and Fashion-MNIST from every place and packing they come in."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch

from sde_diffusion.data.sources import mnist
from sde_diffusion.data.sources.mnist import MNIST, FashionMNIST
from sde_diffusion.errors import InputError
from tests.data.files import idx_bytes, noise, write_idx

TRAIN_IMAGES = "train-images-idx3-ubyte"
TRAIN_LABELS = "train-labels-idx1-ubyte"


@pytest.fixture(autouse=True)
def nothing_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Hide what this computer has."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mnist, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(FashionMNIST, "system_folders", (str(tmp_path / "system"),))


def check(source: MNIST) -> None:
    for split, count in (("train", 30), ("test", 20)):
        dataset = source.read(split)  # type: ignore[arg-type]
        assert torch.equal(dataset.values, torch.from_numpy(noise(count, 1, 28, 28, seed=count)))
        assert dataset.labels is not None
        assert dataset.labels.tolist() == [i % 10 for i in range(count)]


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("below", ["", "MNIST/raw"])
def test_a_given_root_holds_the_files_or_torchvisions_folders(tmp_path: Path, packed: bool, below: str) -> None:
    write_idx(tmp_path / "root" / below, packed=packed)
    check(MNIST(root=str(tmp_path / "root")))


def test_a_system_package_is_found_and_then_the_cache(tmp_path: Path) -> None:
    write_idx(tmp_path / "cache" / "FashionMNIST" / "raw", packed=False)
    check(FashionMNIST())
    write_idx(tmp_path / "system", packed=True, train=5)
    assert len(FashionMNIST().read("train")) == 5


def test_a_folder_beside_the_work_comes_first(tmp_path: Path) -> None:
    write_idx(tmp_path / "system", packed=True, train=5)
    write_idx(tmp_path / "data" / "fashion-mnist", packed=True, train=6)
    assert len(FashionMNIST().read("train")) == 6


def test_a_given_root_is_the_only_place_searched(tmp_path: Path) -> None:
    write_idx(tmp_path / "system", packed=True)
    with pytest.raises(InputError, match=r"no FashionMNIST in .*elsewhere"):
        FashionMNIST(root=str(tmp_path / "elsewhere")).load("train")


def test_where_to_get_it_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        FashionMNIST().load("train")
    for part in (
        str(tmp_path / "system"),
        "`data.root`",
        "apt-get install dataset-fashion-mnist",
        "data.download=true",
    ):
        assert part in str(error.value)
    with pytest.raises(InputError, match="no MNIST in") as error:
        MNIST().load("train")
    assert "apt-get" not in str(error.value)


def test_a_download_is_torchvisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision.datasets

    def download(self: torchvision.datasets.MNIST) -> None:
        write_idx(Path(self.raw_folder), packed=False)

    monkeypatch.setattr(torchvision.datasets.MNIST, "download", download)
    check(FashionMNIST(download=True))
    assert (tmp_path / "cache" / "FashionMNIST" / "raw" / TRAIN_IMAGES).is_file()
    check(MNIST(root=str(tmp_path / "root"), download=True))


def test_a_failed_download_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision.datasets

    def fail(self: torchvision.datasets.MNIST) -> None:
        raise RuntimeError("Error downloading:\nno route to host")

    monkeypatch.setattr(torchvision.datasets.MNIST, "download", fail)
    with pytest.raises(
        InputError, match=r"^cannot download MNIST to .*: Error downloading: no route .*`data.root` to a"
    ):
        MNIST(download=True).load("train")


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-100],
        lambda data: data + b"more",
        lambda data: data[:2],
        lambda data: b"",
        lambda data: b"<html>not found</html>",
    ],
)
@pytest.mark.parametrize("name", [TRAIN_IMAGES, TRAIN_LABELS])
@pytest.mark.parametrize("packed", [True, False])
def test_a_damaged_file_is_named(tmp_path: Path, damage, name: str, packed: bool) -> None:  # type: ignore[no-untyped-def]
    path = write_idx(tmp_path, packed=False) / name
    data = damage(path.read_bytes())
    if name == TRAIN_LABELS:
        data = data[:20]
    if packed:
        path.unlink()
        path = path.with_name(f"{name}.gz")
    path.write_bytes(gzip.compress(data) if packed else data)
    with pytest.raises(InputError, match=f"{path} is not a whole idx file of images or labels; fetch it again"):
        MNIST(root=str(tmp_path)).load("train")


@pytest.mark.parametrize("length", [0, 10, -10])
def test_a_damaged_gz_is_named(tmp_path: Path, length: int) -> None:
    path = write_idx(tmp_path, packed=True) / f"{TRAIN_IMAGES}.gz"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(InputError, match=f"{path} is not a whole idx file"):
        MNIST(root=str(tmp_path)).load("train")


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        (TRAIN_IMAGES, noise(30, 28, 27), "must hold images of 28×28, got 28×27"),
        (TRAIN_LABELS, noise(29) % 10, "must hold one label for each of 30 images, got 29"),
        (TRAIN_LABELS, np.full(30, 10, np.uint8), "must be from 0 to 9, the classes of mnist .*, got 10"),
    ],
)
def test_files_that_do_not_fit_are_named(tmp_path: Path, name: str, values, message: str) -> None:  # type: ignore[no-untyped-def]
    path = write_idx(tmp_path, packed=False) / name
    path.write_bytes(idx_bytes(values))
    with pytest.raises(InputError, match=f"{path}`? {message}"):
        MNIST(root=str(tmp_path)).load("train")


INSTALLED = Path("/usr/share/datasets/fashion-mnist")


@pytest.mark.skipif(not INSTALLED.is_dir(), reason="needs Debian's dataset-fashion-mnist")
def test_debians_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FashionMNIST, "system_folders", (str(INSTALLED),))
    train, test = FashionMNIST().read("train"), FashionMNIST().read("test")
    assert (len(train), len(test)) == (60_000, 10_000)
    assert train.labels is not None
    assert train.labels.bincount().tolist() == [6000] * 10
    assert train.values.double().mean() / 255 == pytest.approx(0.2860, abs=1e-4)  # the published mean
