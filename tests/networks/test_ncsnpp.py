"""NCSN++ and DDPM++: the sizes of the published networks, what each option does, and images of any size."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sde_diffusion.config.build import count_parameters
from sde_diffusion.errors import InputError
from sde_diffusion.networks import DDPMpp, NCSNpp
from sde_diffusion.networks.score_sde.resample import FilterDown
from tests.exchange.score_sde_reference import PRESETS, ScoreSDENet

TINY: dict[str, Any] = {"channels": 8, "multipliers": (1, 2, 2), "blocks": 1, "attention": (), "dropout": 0.0}
LARGE = {"blocks": 2, "multipliers": (1, 1, 2, 2, 2, 2, 2)}
SKIPS = {"progressive_input": "input_skip", "progressive": "output_skip"}
OURS: dict[str, tuple[type[NCSNpp], dict[str, Any]]] = {
    "ddpm cifar10": (
        NCSNpp,
        {"blocks": 2, "block": "ddpm", "fir": False, "rescale": False, "progressive_input": "none"}
        | {"embedding": "sinusoidal"},
    ),
    "ddpmpp cifar10": (DDPMpp, {}),
    "ddpmpp cifar10 deep": (DDPMpp, {"blocks": 8}),
    "ncsnpp cifar10": (NCSNpp, {}),
    "ncsnpp cifar10 deep": (NCSNpp, {"blocks": 8}),
    "ncsnpp cifar10 vp deep": (NCSNpp, {"blocks": 8, "embedding": "sinusoidal"}),
    "ncsnpp celeba": (NCSNpp, {"embedding": "sinusoidal"}),
    "ncsnpp celebahq 256": (NCSNpp, LARGE | SKIPS),
    "ncsnpp celebahq 1024": (
        NCSNpp,
        SKIPS | {"channels": 16, "blocks": 1, "multipliers": (1, 2, 4, 8, 16, 32, 32, 32)},
    ),
}


def awake(net: torch.nn.Module) -> torch.nn.Module:
    """In float64, and no parameter zero."""
    generator = torch.Generator().manual_seed(1)
    for parameter in net.double().parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64), alpha=0.1)
    return net.eval()


def images(*shape: int) -> Tensor:
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("name", PRESETS)
def test_the_published_presets_have_the_published_number_of_parameters(name: str) -> None:
    published, shape, count = PRESETS[name]
    network, options = OURS[name]
    with torch.device("meta"):
        theirs = sum(p.numel() for p in ScoreSDENet(published).parameters() if p.requires_grad)
        ours = count_parameters(network(shape, **options))
    assert (ours, theirs) == (count, count)


@pytest.mark.parametrize(
    "options",
    [
        {"progressive_input": "input_skip"},
        {"progressive_input": "input_skip", "combine": "cat"},
        {"progressive": "output_skip"},
        {"progressive": "residual"},
        {"progressive": "residual", "progressive_input": "input_skip", "combine": "cat", "block": "ddpm"},
        {"block": "ddpm", "fir": False, "progressive": "residual"},
        {"fir": False, "progressive": "output_skip"},
        {"multipliers": (2,), "progressive": "output_skip"},
    ],
    ids=lambda options: ",".join(f"{key}={value}" for key, value in options.items()),
)
def test_every_option_starts_as_zero_and_takes_any_sides(options: dict[str, Any]) -> None:
    net = NCSNpp((2, 11, 5), heads=2, **TINY | options)
    c_noise = torch.tensor([-1.0, 0.5])
    assert torch.equal(net(images(2, 11, 5).float(), c_noise), torch.zeros(2, 4, 11, 5))
    net = awake(net)
    x = images(2, 11, 5).requires_grad_()
    net(x, c_noise.double()).square().sum().backward()
    assert x.grad is not None
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in net.parameters())


def test_the_image_enters_at_the_lower_levels() -> None:
    """Cut off at the top, it still reaches the output where it enters below, and not where it enters at the top."""
    for progressive_input, reaches in (("none", False), ("input_skip", True), ("residual", True)):
        net = awake(NCSNpp((2, 8, 8), progressive_input=progressive_input, **TINY))
        torch.nn.init.zeros_(net.input.weight)
        out = [net(x, torch.zeros(2).double()) for x in (images(2, 8, 8), images(2, 8, 8) + 1)]
        assert (not torch.equal(out[0], out[1])) == reaches


def test_every_level_gives_an_image_to_the_output() -> None:
    net = awake(NCSNpp((2, 8, 8), progressive="output_skip", **TINY))
    x, c_noise = images(2, 8, 8), torch.zeros(2).double()
    before = net(x, c_noise)
    for level in net.up:
        last = level.head[-1]
        last.bias.data += 1.0
        after = net(x, c_noise)
        inside = (after - before)[..., 3:5, 3:5]
        assert inside.abs().min() > 0.1
        last.bias.data -= 1.0


@pytest.mark.parametrize(("rescale", "scale"), [(True, math.sqrt(0.5)), (False, 1.0)])
def test_sums_of_two_branches_are_divided_by_the_square_root_of_two(rescale: bool, scale: float) -> None:
    """The branches of a new network are zero, so its blocks and attentions are their skips, scaled."""
    net = NCSNpp((2, 8, 8), rescale=rescale, **TINY | {"attention": (8,)})
    x = images(8, 8, 8).float()
    (block, *_), (attention, *_) = net.down[0].blocks, net.down[0].attentions
    torch.testing.assert_close(block(x, torch.zeros(2, 8)), scale * x)
    torch.testing.assert_close(attention(x), scale * x)
    leave = net.down[0].leave
    torch.testing.assert_close(leave(x, torch.zeros(2, 8)), scale * leave.skip(FilterDown()(x)))


def test_attention_is_at_its_resolutions_once_a_level_on_the_way_up() -> None:
    net = NCSNpp((1, 8, 6), **TINY | {"attention": (3,), "blocks": 2})
    plain = NCSNpp((1, 8, 6), **TINY | {"blocks": 2})
    count = [sum(type(m).__name__ == "Attention" for m in each.modules()) for each in (net, plain)]
    assert count == [1 + 2 + 1, 1]


def test_first_weights_are_uniform_with_the_published_variance() -> None:
    """2/(fan in + fan out) of each block's own projection, though all lie in one matrix; a tenth of it in attention."""
    torch.manual_seed(0)
    net = NCSNpp((3, 8, 8), channels=64, multipliers=(1, 2), blocks=1, attention=(8,))
    for rows, width in zip(net.shifts.weight.split(net._widths), net._widths, strict=True):
        limit = math.sqrt(6 / (256 + width))
        assert 0.98 * limit < rows.abs().max() <= limit
    qkv = net.down[0].attentions[0].attention.qkv.weight
    for rows in qkv.chunk(3):
        limit = math.sqrt(0.1 * 6 / (64 + 64))
        assert 0.98 * limit < rows.abs().max() <= limit


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": (4,)}, r"`shape` must be \(channels, height, width\) for the networks 'ncsnpp' and 'ddpmpp', got"),
        ({"channels": 5}, "`channels` must be even and ≥ 4, got 5"),
        ({"multipliers": ()}, r"`multipliers` must be one or more numbers > 0, got \(\)"),
        ({"blocks": 0}, "`blocks` must be > 0, got 0"),
        ({"dropout": 1.0}, r"`dropout` must be in \[0, 1\), got 1.0"),
        ({"block": "bigan"}, "`block` must be one of biggan, ddpm, got 'bigan'"),
        ({"progressive": "skip"}, "`progressive` must be one of none, output_skip, residual, got 'skip'"),
        ({"progressive_input": "skip"}, "`progressive_input` must be one of none, input_skip, residual, got 'skip'"),
        ({"combine": "add"}, "`combine` must be one of sum, cat, got 'add'"),
    ],
)
def test_a_bad_option_is_an_error(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        NCSNpp(**{"shape": (1, 8, 8)} | options)
