"""A folder of images of any size, grey or coloured, resized and cropped to one size."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from sde_diffusion.data.dataset import Dataset, DataSource, TensorDataset, fits_in_memory
from sde_diffusion.data.disk.listing import Listing, list_files
from sde_diffusion.data.spec import DataSpec
from sde_diffusion.errors import InputError, require
from sde_diffusion.fields import option

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
KEYS = 1 << 48  # number of keys of names
_DEEP_MODES = {"I", "F", "I;16", "I;16B", "I;16L", "I;16N"}  # Pillow would clip these to 8 bits


@dataclass(frozen=True)
class Images(DataSource):
    """The images in a folder and below it, (channels, *size) of 256 levels.

    Each image is turned upright, scaled until it just covers `size`, and cropped at the centre. Where `root` has the
    sub-folders `train` and `test` these are the splits; otherwise a hash of its name sends each file to one of them, so
    a file stays where it is when others come. The order within a split is by that hash as well: the first n images,
    and the last n, are a fair selection. Splits above `MEMORY_LIMIT` are decoded as they are needed.

    Args:
        root: The folder.
        size: (height, width), or one number for both.
        channels: 1 for grey, 3 for colour; images of the other kind are converted, transparency is dropped.
        labelled: Whether the first level of sub-folders, where there is one, names the classes.
        test_fraction: Part of the files that is the test split, in [0, 1).

    Raises:
        InputError: The folder is missing, unreadable or empty, an image is broken (the message names the file), or
            images lie both in class folders and beside them.
    """

    root: str = option("", "nothing")
    size: tuple[int, ...] = (32, 32)
    channels: int = 3
    labelled: bool = True
    test_fraction: float = 0.1

    def read(self, split: Literal["train", "test"]) -> Dataset:
        self._check_options()
        root = Path(self.root).expanduser()
        sorted_out = (root / "train").is_dir() and (root / "test").is_dir()
        top = root / "train" if sorted_out else root
        files = _files(top)
        classes = _classes(files) if self.labelled else ()
        if not sorted_out:
            files = self._part(top, files, split)
        elif split == "test":
            top = root / "test"
            files = _files(top)
        height, width = self.size * 2 if len(self.size) == 1 else self.size
        spec = DataSpec("images", (self.channels, height, width), levels=256, classes=classes)
        images = ImageFiles(spec, files, _labels(files, classes) if classes else None)
        if not fits_in_memory(spec, len(files)):
            return images
        values = torch.empty(len(files), *spec.shape, dtype=torch.uint8)

        def decode(index: int) -> None:
            values[index] = images.decode(files[index])

        with ThreadPoolExecutor() as pool:
            for _ in pool.map(decode, range(len(files))):
                pass  # errors are raised here
        return TensorDataset(spec, values, images.labels)

    def _part(self, root: Path, files: Listing, split: str) -> Listing:
        """The files of one split: those whose keys lie below `test_fraction`, one at least, are the test split."""
        cut = int((files.keys() < self.test_fraction * KEYS).sum())
        cut = max(cut, 1) if self.test_fraction > 0 else 0
        part = files.take(slice(cut, None) if split == "train" else slice(cut))
        require(
            len(part) > 0,
            f"the {split} split of {root} is empty with `data.test_fraction` = {self.test_fraction}; change it, add "
            f"images, or sort them into the sub-folders train and test",
        )
        return part

    def _check_options(self) -> None:
        require(self.root != "", "`data.root` must name a folder of images, got nothing; set it")
        require(
            len(self.size) in (1, 2) and min(self.size) > 0,
            f"`data.size` must be (height, width), both > 0, or one number for both, got {self.size}",
        )
        require(self.channels in (1, 3), f"`data.channels` must be 1 (grey) or 3 (colour), got {self.channels}")
        require(0 <= self.test_fraction < 1, f"`data.test_fraction` must be in [0, 1), got {self.test_fraction}")


class ImageFiles(Dataset):
    """Image files, decoded when they are fetched."""

    def __init__(self, spec: DataSpec, files: Listing, labels: Tensor | None) -> None:
        self.spec, self.files, self.labels = spec, files, labels

    def __len__(self) -> int:
        return len(self.files)

    def fetch(self, indices: Tensor) -> tuple[Tensor, Tensor | None]:
        values = torch.stack([self.decode(self.files[i]) for i in indices.tolist()])
        return values, None if self.labels is None else self.labels[indices].long()

    def decode(self, file: Path) -> Tensor:
        """One image as `spec` wants it, (C, H, W) uint8.

        Raises:
            InputError: The file is not a whole image of 8 bits a channel; the message names it.
        """
        channels, height, width = self.spec.shape
        try:
            with Image.open(file) as opened:
                opened.load()
                image = ImageOps.exif_transpose(opened)
        except Exception as error:  # decoders raise nearly anything on a broken file
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InputError(f"cannot read image {file}: {reason}; repair or remove it") from error
        if image.mode in _DEEP_MODES:
            raise InputError(f"image {file} must have 8 bits a channel, got mode {image.mode}; use `data.name=arrays`")
        if image.mode == "P":
            image = image.convert("RGBA")  # or a palette with transparency makes Pillow warn
        image = ImageOps.fit(image.convert("L" if channels == 1 else "RGB"), (width, height), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(image).reshape(height, width, channels)).permute(2, 0, 1)


def _files(root: Path) -> Listing:
    """The images in `root` and below, without hidden files, in the order of their keys."""
    require(root.is_dir(), f"image folder {root} must exist and be a folder; check `data.root`")
    require(os.access(root, os.R_OK | os.X_OK), f"image folder {root} cannot be read; check its permissions")
    files = list_files(root, SUFFIXES)
    require(len(files) > 0, f"no images in {root}; known endings: {', '.join(sorted(SUFFIXES))}")
    return files.take(files.keys().argsort())


def _classes(files: Listing) -> tuple[str, ...]:
    """Names of the sub-folders that hold the images; none where the images lie in `root` itself."""
    inside = files.places >= 0
    if inside.any() and not inside.all():
        raise InputError(
            f"images must lie either all in sub-folders of {files.root}, which name their classes, or all beside them, "
            f"got {int(inside.sum())} of {len(files)} in sub-folders; move them or set `data.labelled=false`"
        )
    return tuple(
        sorted(files.folders[place] for place in torch.bincount(files.places[inside]).nonzero()[:, 0].tolist())
    )


def _labels(files: Listing, classes: tuple[str, ...]) -> Tensor:
    """The class of each file, (N,) int32."""
    index = {name: i for i, name in enumerate(classes)}
    labels = torch.tensor([index.get(name, -1) for name in files.folders] + [-1], dtype=torch.int32)[
        files.places.long()
    ]
    if (labels < 0).any():
        file = files[int((labels < 0).nonzero()[0])]
        place = file.relative_to(files.root).parts[0]
        raise InputError(f"{file} must lie in a folder named for a class ({', '.join(classes[:10])}), got {place}")
    return labels
