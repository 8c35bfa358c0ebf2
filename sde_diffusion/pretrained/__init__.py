"""Trained models that come with the package. A new one is a file NAME.safetensors here and a row in `PRETRAINED`."""

from pathlib import Path

from sde_diffusion.registry import lookup

FOLDER = Path(__file__).parent
PRETRAINED: dict[str, str] = {
    "digits_vp": "8×8 digits, VP, 0.4 million parameters, the 1000 steps of `make demo`: 1.9414 ± 0.0265 bits/dim",
    "fashion_mnist_vp": "Fashion-MNIST, VP, 1.6 million parameters, 5000 steps of configs/fashion_mnist_vp.yaml",
}
"""What each is, by name."""


def pretrained(name: str) -> Path:
    """The checkpoint of a trained model, by its name in `PRETRAINED`.

    Raises:
        InputError: Unknown name.
    """
    lookup(PRETRAINED, name, "pretrained model")
    return FOLDER / f"{name}.safetensors"


def name_of(path: Path) -> str | None:
    """The name of the pretrained model at `path`; None if it is none of them."""
    return path.stem if path.parent == FOLDER else None
