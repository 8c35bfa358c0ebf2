"""CIFAR-10, read by torchvision, which checks each file's MD5 before it unpickles it.

Reference: Krizhevsky 2009, Learning multiple layers of features from tiny images.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch

from sde_diffusion.data.dataset import DataSource, TensorDataset
from sde_diffusion.data.sources.mnist import CACHE
from sde_diffusion.data.spec import DataSpec
from sde_diffusion.errors import InputError
from sde_diffusion.fields import option


@dataclass(frozen=True)
class CIFAR10(DataSource):
    """50,000 training and 10,000 test colour images (3, 32, 32) of 256 levels in 10 classes.

    Args:
        root: `cifar-10-batches-py`, the unpacked python version, or the folder that holds it; empty for
            `~/.cache/sde_diffusion`.
        download: Whether torchvision may download what is absent to `root`.

    Raises:
        InputError: The files are absent (the message says how to get them), or one does not have its checksum. Such a
            file is not opened: they are pickles, and could run code.
    """

    root: str = option("", "nothing")
    download: bool = option(False, "nothing")

    spec: ClassVar[DataSpec] = DataSpec(
        "cifar10",
        (3, 32, 32),
        levels=256,
        classes=(
            *("airplane", "automobile", "bird", "cat", "deer"),
            *("dog", "frog", "horse", "ship", "truck"),
        ),
    )

    def read(self, split: Literal["train", "test"]) -> TensorDataset:
        from torchvision.datasets import CIFAR10 as Reader  # takes a second to import: only who loads it pays

        root = Path(self.root or CACHE).expanduser()
        root = root.parent if root.name == Reader.base_folder else root
        try:
            with warnings.catch_warnings():  # the files were pickled by an old numpy
                warnings.simplefilter("ignore", np.exceptions.VisibleDeprecationWarning)
                images = Reader(root, train=split == "train", download=self.download)
        except (OSError, RuntimeError) as error:
            raise InputError(self._diagnosis(root, error)) from error
        values = torch.from_numpy(images.data).permute(0, 3, 1, 2).contiguous()
        return TensorDataset(self.spec, values, torch.tensor(images.targets))

    def _diagnosis(self, root: Path, error: Exception) -> str:
        from torchvision.datasets import CIFAR10 as Reader
        from torchvision.datasets.utils import check_integrity

        folder = root / Reader.base_folder
        files = [*Reader.train_list, *Reader.test_list, [Reader.meta["filename"], Reader.meta["md5"]]]
        for name, checksum in files:
            if (folder / name).is_file() and not check_integrity(folder / name, checksum):
                return f"{folder / name} is damaged: it does not have CIFAR-10's checksum; fetch it again"
        if self.download:
            return f"cannot download CIFAR-10 to {root}: {' '.join(str(error).split())}; set `data.root` to a copy"
        return (
            f"no CIFAR-10, or not all of it, in {folder}; set `data.root` to the folder that holds "
            f"{Reader.base_folder}, or allow a download with `data.download=true`"
        )
