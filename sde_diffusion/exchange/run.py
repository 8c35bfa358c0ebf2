"""A model of another package as the first checkpoint of a run of ours."""

from torch import Tensor

from sde_diffusion.config.build import Config, build_model, choose_device, plain_config, read_config
from sde_diffusion.config.parse import Raw, merge
from sde_diffusion.data import DataSpec
from sde_diffusion.data.sources.cifar10 import CIFAR10
from sde_diffusion.data.sources.mnist import MNIST
from sde_diffusion.errors import require
from sde_diffusion.exchange.base import Imported
from sde_diffusion.exchange.slots import to_ours
from sde_diffusion.training import Checkpoint

LEVELS = 256  # of imported data, which are images
BY_SHAPE = {spec.shape: spec for spec in (CIFAR10.spec, MNIST.spec)}
"""The data set that an import of a shape is for, where the user names none."""


def run_config(found: Imported, given: Raw) -> Config:
    """The config of the run: what the file fixes, and over it the user's sections `given`.

    Raises:
        InputError: See `read_config`; or a section `model` of another number of heads or classes than the file's.
    """
    own: Raw = {"model": {"conditional": found.classes > 0}, "data": _data(found)}
    if found.classes:
        own["training"] = {"label_dropout": 0.0}  # it has always been told the class
    sections = merge(found.config, own)
    config = read_config(None, (), merge(sections, given))
    for key, fixed, reason in (
        ("learned_variance", sections["model"].get("learned_variance", False), "heads"),
        ("conditional", found.classes > 0, "classes"),
    ):
        require(
            getattr(config.model, key) == fixed,
            f"`model.{key}` must be {str(fixed).lower()}, as the {reason} of the imported network are, got "
            f"{str(not fixed).lower()}; leave it out",
        )
    return config


def first_checkpoint(found: Imported, config: Config, source: str) -> Checkpoint:
    """Weights and averaged weights by our names, with `config` and what the data mean.

    Args:
        found: The model.
        config: See `run_config`.
        source: What messages call the file.

    Raises:
        InputError: A tensor that is missing, misshaped or left over, or a data set of another shape.
    """
    spec = _spec(found, config)
    model = build_model(config, spec, choose_device("cpu"))
    like, slots = model.net.state_dict() | found.implied, found.slots(model.net)
    tensors: dict[str, Tensor] = {}
    for kind, weights in (("model", found.weights), ("ema", found.averaged or found.weights)):
        ours = to_ours(slots, weights, like, source)
        tensors |= {f"{kind}.net.{name}": value for name, value in ours.items()}
    return Checkpoint(tensors, {"config": plain_config(config), "data": spec.to_dict(), "step": found.step})


def _data(found: Imported) -> Raw:
    """The section `data` of a model for events of this shape."""
    shape = found.shape
    if shape in BY_SHAPE and found.classes in (0, len(BY_SHAPE[shape].classes)):
        return {"name": BY_SHAPE[shape].name}
    if len(shape) == 3 and shape[0] in (1, 3):
        return {"name": "images", "size": list(shape[1:]), "channels": shape[0], "labelled": found.classes > 0}
    return {"name": "arrays"}


def _spec(found: Imported, config: Config) -> DataSpec:
    """What the model's numbers mean: as its data set says, where that is known without its files."""
    name = plain_config(config)["data"]["name"]
    own: DataSpec | None = getattr(config.data, "spec", None)
    if own is None:
        return DataSpec(name, found.shape, levels=LEVELS, classes=tuple(map(str, range(found.classes))))
    require(
        own.shape == found.shape,
        f"`data.name` must be a data set of shape {found.shape}, got {name} of {own.shape}; name it by --data",
    )
    classes = len(own.classes)
    require(
        found.classes in (0, classes),
        f"`data.name` must be a data set of {found.classes} classes, got {name} of {classes}; name it by --data",
    )
    return own
