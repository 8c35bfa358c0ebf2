"""The U-Net: sizes, levels, attention, and what it refuses."""

from pathlib import Path
from typing import Any

import pytest
import torch

from sde_diffusion.config.parse import read_yaml
from sde_diffusion.errors import InputError
from sde_diffusion.networks import UNet
from sde_diffusion.networks.attention import Attention, LinearAttention
from sde_diffusion.networks.blocks import Conv, Downsample
from sde_diffusion.networks.unet import levels_for

SERIES = [(2, 9), (1, 1), (3, 16)]
VOLUMES = [(1, 5, 6, 7), (2, 4, 4, 4)]


@pytest.mark.parametrize(
    "shape", [(1, 5, 7), (3, 28, 28), (2, 9, 16), (1, 1, 1), (5, 1, 12), (1, 8, 8), *SERIES, *VOLUMES]
)
@pytest.mark.parametrize("padding", ["symmetric", "same"])
def test_any_size_and_number_of_channels_works(shape: tuple[int, ...], padding: Any) -> None:
    net = UNet(shape, channels=8, padding=padding)
    assert net(torch.randn(2, *shape), torch.randn(2)).shape == (2, *shape)


@pytest.mark.parametrize(
    ("sides", "levels"),
    [
        ((8, 8), 1),
        ((13,), 1),
        ((14, 40), 2),
        ((28, 28), 3),
        ((32, 48), 3),
        ((64, 64, 64), 4),
        ((256, 256), 6),
        ((1,), 1),
    ],
)
def test_the_number_of_levels_follows_the_size_where_it_is_not_given(sides: tuple[int, ...], levels: int) -> None:
    assert levels_for(sides) == levels
    with torch.device("meta"):
        net = UNet((1, *sides), channels=8, multipliers=None, attention=())
        assert [level.stages[0].block.conv1.weight.shape[0] for level in net.down] == [8, *[16] * (levels - 1)]


def count(shape: tuple[int, ...], **options: Any) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in UNet(shape, **options).parameters())


def test_published_networks_have_their_numbers_of_parameters() -> None:
    """DDPM's for CIFAR-10 (35.7 M) and for 256 × 256 images (114 M), to the last one."""
    common = {"channels": 128, "attention": (16,)}
    assert count((3, 32, 32), multipliers=(1, 2, 2, 2), **common) == 35_746_307
    assert count((3, 256, 256), multipliers=(1, 1, 2, 2, 4, 4), **common) == 113_673_219
    raw = read_yaml(Path(__file__).parents[2] / "configs" / "cifar10_vp.yaml")["model"]["network"]
    assert raw.pop("name") == "unet"
    assert count((3, 32, 32), **raw) == 35_746_307


def test_options_of_layers_reach_them() -> None:
    options: dict[str, Any] = {"group_channels": 1, "norm_eps": 1e-6, "standardised": True, "order": "conv_first"}
    net = UNet((1, 8, 8), channels=16, multipliers=(1, 2), attention=(8,), padding="same", **options)
    norms = [module for module in net.modules() if isinstance(module, torch.nn.GroupNorm)]
    assert {(norm.num_groups, norm.eps) for norm in norms} == {(16, 1e-6), (32, 1e-6)}
    standardised = {name for name, module in net.named_modules() if isinstance(module, Conv) and module.standardised}
    assert {name.rpartition(".")[2] for name in standardised} == {"conv1", "conv2"}
    assert [module.same for module in net.modules() if isinstance(module, Downsample)] == [True]


@pytest.mark.parametrize(("middle", "full", "normed"), [("attention", 1, 4), ("bare_attention", 1, 3), ("none", 0, 3)])
def test_linear_attention_and_that_of_the_middle_sit_where_asked(middle: Any, full: int, normed: int) -> None:
    net = UNet((1, 16), channels=8, multipliers=(1, 2), blocks=1, attention=(), linear_attention=(8,), middle=middle)
    found = [module for module in net.modules() if isinstance(module, Attention)]
    assert sum(isinstance(module, LinearAttention) for module in found) == 3
    assert len(found) == 3 + full
    assert sum(isinstance(module.norm, torch.nn.GroupNorm) for module in found) == normed


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
    expected = "`attention` at 16 meets no level of the U-Net, whose smallest sides are 28, 14, 7"
    assert [record.getMessage() for record in caplog.records] == [expected] * told


@pytest.mark.parametrize("shape", [(3, 12), (2, 12, 6), (1, 6, 6, 12)])
def test_patches_are_places_of_level_0(shape: tuple[int, ...]) -> None:
    """The network works on sides/3, and what it makes of a pixel of x lies at that pixel."""
    net = UNet(shape, channels=8, multipliers=(1, 2), blocks=1, attention=(2,), patch=3, heads=2).double()
    torch.nn.init.normal_(net.output[-1].weight)
    seen: list[torch.Size] = []
    net.down[0].entry.register_forward_hook(lambda module, inputs, out: seen.append(inputs[0].shape[1:]))
    x = torch.randn(2, *shape, dtype=torch.double).requires_grad_()
    out = net(x, torch.zeros(2, dtype=torch.double))
    assert out.shape == (2, 2 * shape[0], *shape[1:])
    assert seen == [(shape[0] * 3 ** (len(shape) - 1), *(side // 3 for side in shape[1:]))]
    assert sum(isinstance(module, Attention) for module in net.modules()) > 1


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
        (
            (8,),
            {},
            r"`shape` must be channels and one to three sides, .* for the network 'unet', got \(8,\); 'mlp' takes",
        ),
        ((1, 2, 3, 4, 5), {}, r"`shape` must be channels and one to three sides"),
        ((1, 0, 8), {}, r"`shape` must be channels and one to three sides"),
        ((1, 8, 9), {"patch": 2}, "`patch` must divide every side of the data, 8 × 9, got 2"),
        ((1, 8, 8), {"fourier_gate": True}, "`fourier_gate` must be false where `fourier` names no waves"),
        ((1, 8, 8), {"patch": 0}, "`patch` must be > 0, got 0"),
        ((1, 8, 8), {"channels": 5}, "`channels` must be even and ≥ 4, got 5"),
        ((1, 8, 8), {"multipliers": ()}, r"`multipliers` must be one or more numbers > 0, got \(\)"),
        ((1, 8, 8), {"multipliers": (1, 0)}, r"`multipliers` must be one or more numbers > 0, got \(1, 0\)"),
        ((1, 8, 8), {"blocks": 0}, "`blocks` must be > 0, got 0"),
        ((1, 8, 8), {"head_channels": 0}, "`head_channels` must be > 0, got 0"),
        ((1, 8, 8), {"groups": 0}, "`groups` must be > 0, got 0"),
        ((1, 8, 8), {"group_channels": 0}, "`group_channels` must be > 0, got 0"),
        ((1, 8, 8), {"norm_eps": 0.0}, "`norm_eps` must be > 0, got 0.0"),
        ((1, 8, 8), {"middle": "plain"}, "`middle` must be one of attention, bare_attention, none, got 'plain'"),
        ((1, 8, 8), {"time": "film"}, "`time` must be one of shift, scale_shift, got 'film'"),
        ((1, 8, 8), {"order": "post"}, "`order` must be one of norm_first, conv_first, got 'post'"),
        ((1, 8, 8), {"padding": "end"}, "`padding` must be one of symmetric, same, got 'end'"),
        ((1, 8, 8), {"standardised": True}, "must be followed by a normalisation, got `order` = norm_first; set it to"),
        ((1, 8, 8), {"linear_attention": (8, 4)}, "must not name a resolution of `attention`, got 8 in both"),
        ((1, 8, 8), {"dropout": 1.0}, r"`dropout` must be in \[0, 1\), got 1.0"),
    ],
)
def test_a_bad_option_is_an_error(shape: tuple[int, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        UNet(shape, **options)
