"""Data sets. A new one is a file here and a row in `DATASETS`; its dataclass fields are its config section."""

from sde_diffusion.data.dataset import Batch, Dataset, DataSource, Split, TensorDataset
from sde_diffusion.data.loader import sweep, training_batches
from sde_diffusion.data.sources.arrays import Arrays
from sde_diffusion.data.sources.cifar10 import CIFAR10
from sde_diffusion.data.sources.digits import Digits
from sde_diffusion.data.sources.images import Images
from sde_diffusion.data.sources.latents import Latents
from sde_diffusion.data.sources.mnist import MNIST, FashionMNIST
from sde_diffusion.data.sources.toys import Checkerboard, EightGaussians, Rings, SwissRoll, TwoMoons
from sde_diffusion.data.spec import Continuous, DataSpec, Discrete

DATASETS: dict[str, type[DataSource]] = {
    "digits": Digits,
    "fashion_mnist": FashionMNIST,
    "mnist": MNIST,
    "cifar10": CIFAR10,
    "images": Images,
    "arrays": Arrays,
    "latents": Latents,
    "two_moons": TwoMoons,
    "swiss_roll": SwissRoll,
    "checkerboard": Checkerboard,
    "eight_gaussians": EightGaussians,
    "rings": Rings,
}

__all__ = [
    "CIFAR10",
    "DATASETS",
    "MNIST",
    "Arrays",
    "Batch",
    "Checkerboard",
    "Continuous",
    "DataSource",
    "DataSpec",
    "Dataset",
    "Digits",
    "Discrete",
    "EightGaussians",
    "FashionMNIST",
    "Images",
    "Latents",
    "Rings",
    "Split",
    "SwissRoll",
    "TensorDataset",
    "TwoMoons",
    "sweep",
    "training_batches",
]
