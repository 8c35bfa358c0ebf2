"""Where the tensors of another package lie in ours: a list of slots, which serves both directions.

What they store apart we may store together: the projections of the time embedding of all residual blocks are the rows
of one matrix here. So a slot is rows of one of our tensors, seen in the layout of theirs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sde_diffusion.errors import InputError, require

Layout = Literal["same", "linear", "transposed", "swapped"]


@dataclass(frozen=True)
class Slot:
    """Rows of our tensor `ours` as their tensor `theirs`.

    Attributes:
        theirs, ours: The names.
        rows: First row and the one after the last; None for all.
        layout: What theirs is to ours: the `same`; the matrix (`linear`) of our 1×1 convolution, or its `transposed`;
            or with the two halves of the columns `swapped`.
    """

    theirs: str
    ours: str
    rows: tuple[int, int] | None = None
    layout: Layout = "same"

    def look(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Their tensor, of ours."""
        part = self._part(tensors)
        if self.layout == "swapped":
            return part.roll(part.shape[1] // 2, 1)
        if self.layout == "same":
            return part
        return part.flatten(1).T if self.layout == "transposed" else part.flatten(1)

    def fill(self, tensors: Mapping[str, Tensor], theirs: Tensor) -> None:
        """Write their tensor into ours."""
        part = self._part(tensors)
        if self.layout == "swapped":
            theirs = theirs.roll(part.shape[1] // 2, 1)
        elif self.layout == "transposed":
            theirs = theirs.T
        part.copy_(theirs.reshape(part.shape))

    def _part(self, tensors: Mapping[str, Tensor]) -> Tensor:
        whole = tensors[self.ours]
        return whole if self.rows is None else whole[slice(*self.rows)]


def to_ours(
    slots: Sequence[Slot], theirs: Mapping[str, Tensor], like: Mapping[str, Tensor], source: str
) -> dict[str, Tensor]:
    """Our tensors, of theirs.

    Args:
        slots: The correspondence.
        theirs: Their tensors by name.
        like: Our tensors, whose shapes count, and whose values stay where no slot lies.
        source: What the messages call the file.

    Raises:
        InputError: A tensor that is missing, has another shape, or is left over: the first one, and the setting.
    """
    ours = {name: value.detach().clone() for name, value in like.items()}
    for slot in slots:
        if slot.theirs not in theirs:
            raise InputError(
                f"{source} lacks the tensor {slot.theirs!r}, which `model.network` has as {slot.ours!r}; "
                f"change its options by --set model.network.… until they are those of the file"
            )
        found, wanted = theirs[slot.theirs], slot.look(ours).shape
        require(
            found.shape == wanted,
            f"the tensor {slot.theirs!r} of {source} must have shape {tuple(wanted)}, as {slot.ours!r} in "
            f"`model.network`, got {tuple(found.shape)}; change its `channels`, `multipliers` or the --shape",
        )
        require(
            found.is_floating_point(),
            f"the tensor {slot.theirs!r} of {source} must hold real numbers, got {found.dtype}; fetch it again",
        )
        require(
            bool(torch.isfinite(found).all()), f"the tensor {slot.theirs!r} of {source} must be finite; fetch it again"
        )
        slot.fill(ours, found)
    known = {slot.theirs for slot in slots}
    left = next((name for name in theirs if name not in known), None)
    require(
        left is None,
        f"{source} has the tensor {left!r}, for which the network of `model.network` has no place; change its options, "
        f"such as `blocks` and `attention`, until they are those of the file",
    )
    return ours


def to_theirs(slots: Sequence[Slot], ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their tensors, of ours."""
    return {slot.theirs: slot.look(ours).detach().cpu().clone().contiguous() for slot in slots}
