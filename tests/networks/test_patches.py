"""Space to depth and back."""

import pytest
import torch
from torch.nn import functional

from sde_diffusion.networks.patches import Patches


@pytest.mark.parametrize("sides", [(8,), (8, 12), (4, 8, 12)])
@pytest.mark.parametrize("patch", [1, 2, 4])
def test_joining_undoes_cutting(sides: tuple[int, ...], patch: int) -> None:
    patches, x = Patches(sides, patch), torch.randn(2, 3, *sides)
    cut = patches.cut(x)
    assert cut.shape == (2, 3 * patch ** len(sides), *(side // patch for side in sides))
    assert torch.equal(patches.joined(cut), x)


def test_a_place_holds_the_pixels_of_its_patch() -> None:
    x = torch.arange(2 * 4 * 6).reshape(1, 2, 4, 6)
    cut = Patches((4, 6), 2).cut(x)
    assert cut[0, :, 1, 2].reshape(2, 2, 2).tolist() == x[0, :, 2:4, 4:6].permute(1, 2, 0).tolist()
    one = functional.pixel_unshuffle(x[:, :1].float(), 2)
    assert torch.equal(Patches((4, 6), 2).cut(x[:, :1]).float(), one)
