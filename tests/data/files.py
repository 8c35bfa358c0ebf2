"""Tiny data sets on the disk, in the formats that the sources read."""

import gzip
import hashlib
import pickle
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

Bytes = npt.NDArray[np.uint8]


def noise(*shape: int, seed: int = 0) -> Bytes:
    """Bytes, the greatest among them 255."""
    values = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    values.reshape(-1)[-1] = 255
    return values


def idx_bytes(values: Bytes) -> bytes:
    return struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.tobytes()


def write_idx(folder: Path, *, packed: bool, train: int = 30, test: int = 20) -> Path:
    """The four files of MNIST, with random images and labels 0, 1, … 9, 0, …."""
    folder.mkdir(parents=True, exist_ok=True)
    for prefix, count in (("train", train), ("t10k", test)):
        parts = {"images-idx3": noise(count, 28, 28, seed=count), "labels-idx1": np.arange(count, dtype=np.uint8) % 10}
        for part, values in parts.items():
            data = idx_bytes(values)
            name = f"{prefix}-{part}-ubyte"
            (folder / f"{name}.gz" if packed else folder / name).write_bytes(gzip.compress(data) if packed else data)
    return folder


def write_cifar10(root: Path, monkeypatch: pytest.MonkeyPatch, per_file: int = 10) -> Path:
    """CIFAR-10's files with random images, and their checksums in torchvision's lists."""
    from torchvision.datasets import CIFAR10

    def write(name: str, content: dict[str, object]) -> str:
        data = pickle.dumps(content, protocol=2)
        (folder / name).write_bytes(data)
        return hashlib.md5(data).hexdigest()

    folder = root / CIFAR10.base_folder
    folder.mkdir(parents=True)
    for table in ("train_list", "test_list"):
        rows = [
            [
                name,
                write(
                    name,
                    {
                        "data": noise(per_file, 3072, seed=100 * len(name) + i),
                        "labels": [j % 10 for j in range(per_file)],
                    },
                ),
            ]
            for i, (name, _) in enumerate(getattr(CIFAR10, table))
        ]
        monkeypatch.setattr(CIFAR10, table, rows)
    md5 = write("batches.meta", {"label_names": ["a"] * 10})
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": md5})
    return root


def write_image(path: Path, height: int = 10, width: int = 12, channels: int = 3, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = noise(height, width, channels, seed=seed)
    Image.fromarray(values[..., 0] if channels == 1 else values).save(path)
    return path


def write_images(root: Path, count: int = 24, folders: tuple[str, ...] = ("cats", "dogs")) -> Path:
    """PNG files of several sizes, dealt out to `folders`."""
    for i in range(count):
        write_image(root / folders[i % len(folders)] / f"{i}.png", 8 + i, 30 - i, channels=1 + 2 * (i % 2), seed=i)
    return root
