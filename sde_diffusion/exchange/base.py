"""What an exchange format is: how another package stores a model, read and perhaps written."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn

from sde_diffusion.config.build import Trained
from sde_diffusion.config.parse import Raw
from sde_diffusion.errors import InputError
from sde_diffusion.exchange.slots import Slot


@dataclass(frozen=True, eq=False)
class Imported:
    """A model of another package, in our terms but for the names of its tensors.

    Attributes:
        config: The sections that it fixes, such as `sde` and `model`; what the user sets goes above them.
        shape: Of one event.
        weights: Its tensors by its own names.
        slots: Where these lie in the tensors of a network that was built by `config`.
        averaged: Its averaged weights by the same names, where it has both.
        implied: Tensors by our names that it implies without storing them, such as frequencies.
        classes: Number of classes; 0 for none.
        step: Training steps behind the weights; 0 where it does not say.
        notes: What the user should know, a line each.
    """

    config: Raw
    shape: tuple[int, ...]
    weights: dict[str, Tensor]
    slots: Callable[[nn.Module], Sequence[Slot]]
    averaged: dict[str, Tensor] | None = None
    implied: dict[str, Tensor] = field(default_factory=dict)
    classes: int = 0
    step: int = 0
    notes: tuple[str, ...] = ()


class Format(ABC):
    """How another package stores a model. A subclass has no options and no state."""

    @abstractmethod
    def detects(self, path: Path) -> bool:
        """Whether `path`, which exists, looks like this format; nothing is loaded for it but small text files."""

    @abstractmethod
    def read(self, path: Path, *, shape: tuple[int, ...] | None, config: Raw) -> Imported:
        """Read a model.

        Args:
            path: File or folder.
            shape: Of one event, from the user; None to take it from the file.
            config: The user's own sections, for what the file does not say.

        Raises:
            InputError: Something that is absent, broken, or that our networks and processes cannot express; names it.
        """

    def write(self, trained: Trained, folder: Path) -> list[Path]:
        """Write a model to `folder`, which exists.

        Returns:
            The files.

        Raises:
            InputError: Something that the format cannot express; names the setting.
        """
        raise InputError(f"the format of {type(self).__name__} can be imported only; export to another --format")
