"""MNIST and Fashion-MNIST: idx files, read by torchvision's own functions.

References: LeCun et al. 1998, doi:10.1109/5.726791; Xiao et al. 2017, arXiv:1708.07747.
"""

import gzip
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from torch import Tensor

from sde_diffusion.data.dataset import DataSource, TensorDataset
from sde_diffusion.data.spec import DataSpec
from sde_diffusion.errors import InputError, require
from sde_diffusion.fields import option

CACHE = Path("~/.cache/sde_diffusion")  # where a download goes when no folder is given


@dataclass(frozen=True)
class MNIST(DataSource):
    """60,000 training and 10,000 test images (1, 28, 28) of 256 levels: handwritten digits in 10 classes.

    Searched in this order, each for the four idx files, plain or as .gz: `root` and torchvision's `MNIST/raw` below it,
    and nothing else, where it is given; otherwise `data/fashion-mnist` (or `data/mnist`) below the working folder, the
    folders of system packages, then `~/.cache/sde_diffusion`.

    Args:
        root: Folder that holds the files; empty to search.
        download: Whether torchvision may download what is absent, to `root` or `~/.cache/sde_diffusion`.

    Raises:
        InputError: The files are absent (the message says how to get them), or one of them is broken.
    """

    root: str = option("", "nothing")
    download: bool = option(False, "nothing")

    spec: ClassVar[DataSpec] = DataSpec("mnist", (1, 28, 28), levels=256, classes=tuple("0123456789"))
    class_name: ClassVar[str] = "MNIST"  # torchvision's, and its folder
    system_folders: ClassVar[tuple[str, ...]] = ()
    package: ClassVar[str] = ""

    def read(self, split: Literal["train", "test"]) -> TensorDataset:
        from torchvision.datasets.mnist import read_image_file, read_label_file

        prefix = "train" if split == "train" else "t10k"
        names = f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"
        images_file, labels_file = self._find(names) or self._download(names)
        images, labels = _read(read_image_file, images_file), _read(read_label_file, labels_file)
        require(
            images.shape[1:] == self.spec.shape[1:],
            f"{images_file} must hold images of 28×28, got {'×'.join(map(str, images.shape[1:]))}",
        )
        require(
            len(labels) == len(images),
            f"{labels_file} must hold one label for each of {len(images)} images, got {len(labels)}",
        )
        self.spec.check_labels(labels, source=str(labels_file))
        return TensorDataset(self.spec, images.unsqueeze(1), labels)

    def _folders(self) -> list[Path]:
        local = Path("data") / self.spec.name.replace("_", "-")
        roots = [Path(self.root)] if self.root else [local, *map(Path, self.system_folders), CACHE]
        return [folder for root in roots for folder in (root.expanduser(), self._raw(root))]

    def _raw(self, root: Path) -> Path:
        return root.expanduser() / self.class_name / "raw"

    def _find(self, names: tuple[str, str]) -> list[Path] | None:
        for folder in self._folders():
            both = [_plain_or_gz(folder / name) for name in names]
            if all(path.is_file() for path in both):
                return both
        return None

    def _download(self, names: tuple[str, str]) -> list[Path]:
        title = self.class_name
        if not self.download:
            package = f"`apt-get install {self.package}`, " if self.package else ""
            raise InputError(
                f"no {title} in {', '.join(map(str, self._folders()))}; set `data.root` to a folder with "
                f"{names[0]}(.gz) and its fellows, {package}or allow a download with `data.download=true`"
            )
        import torchvision.datasets

        root = Path(self.root or CACHE).expanduser()
        try:
            getattr(torchvision.datasets, title)(root, download=True)
        except (OSError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"cannot download {title} to {root}: {reason}; set `data.root` to a copy") from error
        return [self._raw(root) / name for name in names]


@dataclass(frozen=True)
class FashionMNIST(MNIST):
    """60,000 training and 10,000 test images (1, 28, 28) of 256 levels: clothes in 10 classes.

    Found, read and downloaded as `MNIST` is; Debian's package `dataset-fashion-mnist` is one of the places searched.
    """

    spec: ClassVar[DataSpec] = DataSpec(
        "fashion_mnist",
        (1, 28, 28),
        levels=256,
        classes=(
            *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
            *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        ),
    )
    class_name: ClassVar[str] = "FashionMNIST"
    system_folders: ClassVar[tuple[str, ...]] = ("/usr/share/datasets/fashion-mnist",)
    package: ClassVar[str] = "dataset-fashion-mnist"


def _plain_or_gz(path: Path) -> Path:
    return path if path.is_file() else path.with_name(f"{path.name}.gz")


def _read(reader: Callable[[str], Tensor], path: Path) -> Tensor:
    try:
        with _unpacked(path) as plain:
            return reader(str(plain))
    except (OSError, EOFError, zlib.error, AssertionError, LookupError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{path} is not a whole idx file of images or labels; fetch it again") from error


@contextmanager
def _unpacked(path: Path) -> Iterator[Path]:
    """The plain file behind `path`: torchvision reads no .gz. Lives as long as the context, so no cache goes stale."""
    if path.suffix != ".gz":
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / path.stem
        with gzip.open(path) as source, plain.open("wb") as target:
            shutil.copyfileobj(source, target)
        yield plain
