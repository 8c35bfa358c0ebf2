"""CIFAR-10 from files in its format."""

from pathlib import Path

import pytest
import torch

from sde_diffusion.data.sources import cifar10
from sde_diffusion.data.sources.cifar10 import CIFAR10
from sde_diffusion.errors import InputError
from tests.data.files import noise, write_cifar10

FOLDER = "cifar-10-batches-py"


@pytest.mark.parametrize("below", ["", FOLDER])
def test_images_keep_their_order_and_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, below: str) -> None:
    source = CIFAR10(root=str(write_cifar10(tmp_path, monkeypatch) / below))
    train, test = source.read("train"), source.read("test")
    assert (len(train), len(test)) == (50, 10)
    assert torch.equal(train.values[:10].flatten(1), torch.from_numpy(noise(10, 3072, seed=1200)))
    assert train.labels is not None
    assert train.labels.tolist() == list(range(10)) * 5


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch", "batches.meta"])
def test_a_file_without_its_checksum_is_named_and_never_unpickled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    write_cifar10(tmp_path, monkeypatch)
    path, marker = tmp_path / FOLDER / name, tmp_path / "marker"
    path.write_bytes(f"cos\nmkdir\n(V{marker}\ntR.".encode() + path.read_bytes())
    with pytest.raises(InputError, match=f"{path} is damaged: it does not have CIFAR-10's checksum; fetch it again"):
        CIFAR10(root=str(tmp_path)).load("train")
    assert not marker.exists()


@pytest.mark.parametrize("missing", ["data_batch_3", "batches.meta"])
def test_missing_files_are_missing_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    write_cifar10(tmp_path, monkeypatch)
    (tmp_path / FOLDER / missing).unlink()
    with pytest.raises(
        InputError, match=f"no CIFAR-10, or not all of it, in .*{FOLDER}; set `data.root` .*download=true"
    ):
        CIFAR10(root=str(tmp_path)).load("train")


def test_a_failed_download_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision.datasets

    def fail(self: torchvision.datasets.CIFAR10) -> None:
        raise OSError("no route\nto host")

    monkeypatch.setattr(torchvision.datasets.CIFAR10, "download", fail)
    monkeypatch.setattr(cifar10, "CACHE", tmp_path / "cache")
    with pytest.raises(InputError, match=r"^cannot download CIFAR-10 to .*cache: no route to host; set `data.root`"):
        CIFAR10(download=True).load("train")
