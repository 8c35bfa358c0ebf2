"""The U-Net: sizes, levels, attention, and what it refuses."""

from typing import Any

import pytest
import torch

from sde_diffusion.errors import InputError
from sde_diffusion.networks import UNet
from sde_diffusion.networks.attention import Attention


@pytest.mark.parametrize("shape", [(1, 5, 7), (3, 28, 28), (2, 9, 16), (1, 1, 1), (5, 1, 12), (1, 8, 8)])
def test_any_size_and_number_of_channels_works(shape: tuple[int, int, int]) -> None:
    net = UNet(shape, channels=8)
    assert net(torch.randn(2, *shape), torch.randn(2)).shape == (2, *shape)


def test_sides_are_halved_upwards_and_cropped_on_the_way_up() -> None:
    net = UNet((1, 5, 7), channels=8, blocks=1, multipliers=(1, 2, 2))
    sizes: list[tuple[int, ...]] = []
    for level in [*net.down, *net.up]:
        level.stages[-1].register_forward_hook(lambda module, inputs, output: sizes.append(tuple(output.shape[2:])))
    net(torch.randn(1, 1, 5, 7), torch.zeros(1))
    assert sizes == [(5, 7), (3, 4), (2, 2), (2, 2), (3, 4), (5, 7)]


@pytest.mark.parametrize(("attention", "expected"), [((), 1), ((27,), 4), ((14, 7), 7), ((40, 20, 13, 6), 1)])
def test_attention_sits_at_the_smaller_side_of_a_level_and_in_the_middle(
    attention: tuple[int, ...], expected: int
) -> None:
    net = UNet((1, 40, 27), channels=8, blocks=1, attention=attention)
    assert sum(isinstance(module, Attention) for module in net.modules()) == expected


@pytest.mark.parametrize(("attention", "told"), [((16,), True), ((16, 14), False), ((), False)])
def test_attention_at_no_level_is_told(
    attention: tuple[int, ...], told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    UNet((1, 28, 30), channels=8, attention=attention)
    expected = (
        "`attention` at 16 meets no level of the U-Net, whose smaller sides are 28, 14, 7: only the middle has it"
    )
    assert [record.getMessage() for record in caplog.records] == [expected] * told


def test_heads_are_at_least_as_wide_as_asked() -> None:
    net = UNet((1, 8, 8), channels=24, multipliers=(1,), attention=(8,), head_channels=8)
    assert {module.heads for module in net.modules() if isinstance(module, Attention)} == {3}


def test_dropout_and_groups_reach_the_blocks() -> None:
    net = UNet((1, 8, 8), channels=32, multipliers=(1,), dropout=0.3, groups=4)
    assert {module.p for module in net.modules() if isinstance(module, torch.nn.Dropout)} == {0.3}
    assert {module.num_groups for module in net.modules() if isinstance(module, torch.nn.GroupNorm)} == {4}


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((8, 8), {}, r"`shape` must be \(channels, height, width\) for the network 'unet', got \(8, 8\); 'mlp' takes"),
        ((1, 0, 8), {}, r"`shape` must be \(channels, height, width\)"),
        ((1, 8, 8), {"channels": 5}, "`channels` must be even and ≥ 4, got 5"),
        ((1, 8, 8), {"multipliers": ()}, r"`multipliers` must be one or more numbers > 0, got \(\)"),
        ((1, 8, 8), {"multipliers": (1, 0)}, r"`multipliers` must be one or more numbers > 0, got \(1, 0\)"),
        ((1, 8, 8), {"blocks": 0}, "`blocks` must be > 0, got 0"),
        ((1, 8, 8), {"head_channels": 0}, "`head_channels` must be > 0, got 0"),
        ((1, 8, 8), {"groups": 0}, "`groups` must be > 0, got 0"),
        ((1, 8, 8), {"dropout": 1.0}, r"`dropout` must be in \[0, 1\), got 1.0"),
    ],
)
def test_a_bad_option_is_an_error(shape: tuple[int, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        UNet(shape, **options)
