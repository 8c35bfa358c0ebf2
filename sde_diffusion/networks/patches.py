"""Squares of pixels as one place of the network: space to depth, and back.

Reference: Shi et al. 2016, arXiv:1609.05158; Hoogeboom et al. 2023 (simple diffusion), arXiv:2301.11093, section 3.3.
"""

from collections.abc import Sequence

from einops import rearrange
from torch import Tensor

from sde_diffusion.errors import require, require_positive

_SIDES = "hwd"


class Patches:
    """(B, C, *sides) ↔ (B, C pⁿ, *sides/p) for n sides: the p × p pixels of a patch become channels of one place.

    Args:
        sides: Of an image, a series or a volume.
        patch: p, which divides every side; 1 changes nothing.

    Raises:
        InputError: It does not divide them.
    """

    def __init__(self, sides: Sequence[int], patch: int) -> None:
        require_positive(patch=patch)
        require(
            all(side % patch == 0 for side in sides),
            f"`patch` must divide every side of the data, {' × '.join(map(str, sides))}, got {patch}",
        )
        self.patch, self.pixels = patch, patch ** len(sides)
        self.sides = [side // patch for side in sides]
        names = _SIDES[: len(self.sides)]
        self._outside = f"b c {' '.join(f'({name} {name}p)' for name in names)}"
        self._inside = f"b ({' '.join(f'{name}p' for name in names)} c) {' '.join(names)}"
        self._sizes = {f"{name}p": patch for name in names}

    def cut(self, x: Tensor) -> Tensor:
        """(B, C, *sides) -> (B, C pⁿ, *sides/p)."""
        return x if self.patch == 1 else rearrange(x, f"{self._outside} -> {self._inside}", **self._sizes)

    def joined(self, x: Tensor) -> Tensor:
        """(B, C pⁿ, *sides/p) -> (B, C, *sides)."""
        return x if self.patch == 1 else rearrange(x, f"{self._inside} -> {self._outside}", **self._sizes)
