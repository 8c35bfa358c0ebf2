"""Every kind of event and every option of the U-Net through what the conformance suite asks of its defaults."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sde_diffusion.networks import UNet
from tests.commands.running import TINY, succeed
from tests.conformance.test_networks import CLASSES, awake

SHAPES = {"series": (2, 11), "image": (2, 9, 6), "volume": (2, 5, 4, 3)}
OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "published": {"group_channels": 1, "norm_eps": 1e-6, "padding": "same", "groups": 8},
    "tutorial": {"order": "conv_first", "standardised": True, "attention": (), "linear_attention": (9, 6, 5, 3, 2)},
    "film": {"time": "scale_shift", "middle": "bare_attention"},
    "film, conv first": {"time": "scale_shift", "order": "conv_first", "middle": "none"},
}


@pytest.fixture(params=OPTIONS)
def options(request: pytest.FixtureRequest) -> dict[str, Any]:
    return OPTIONS[request.param]


@pytest.fixture(params=SHAPES)
def shape(request: pytest.FixtureRequest) -> tuple[int, ...]:
    return SHAPES[request.param]


def build(shape: tuple[int, ...], options: dict[str, Any]) -> UNet:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        common: dict[str, Any] = {"channels": 8, "multipliers": (1, 2), "blocks": 1, "head_channels": 4}
        return UNet(shape, classes=CLASSES, **common | options).eval()


def batch(shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(4, *shape, generator=generator, dtype=torch.float64)
    return x, torch.linspace(-1.7, 1.2, 4, dtype=torch.float64), torch.tensor([-1, 0, 1, 2])


def test_it_starts_as_zero_and_keeps_the_shape(shape: tuple[int, ...], options: dict[str, Any]) -> None:
    x, c_noise, label = batch(shape)
    out = build(shape, options)(x.float(), c_noise.float(), label)
    torch.testing.assert_close(out, torch.zeros(x.shape), rtol=0, atol=0)


def test_noise_level_and_label_matter(shape: tuple[int, ...], options: dict[str, Any]) -> None:
    net = awake(build(shape, options))
    x, c_noise, label = batch(shape)
    out = net(x, c_noise, label)
    for changed in (net(x, c_noise + 0.1, label), net(x, c_noise, label.roll(1))):
        assert (out - changed).flatten(1).norm(dim=1).min() > 1e-3


def test_a_sample_does_not_depend_on_its_batch(shape: tuple[int, ...], options: dict[str, Any]) -> None:
    net = awake(build(shape, options))
    rows = batch(shape)
    alone = torch.cat([net(*(part[i : i + 1] for part in rows)) for i in range(4)])
    torch.testing.assert_close(net(*rows), alone, rtol=1e-10, atol=1e-12)


def test_the_gradient_reaches_every_parameter(shape: tuple[int, ...], options: dict[str, Any]) -> None:
    net = awake(build(shape, options)).train()
    net(*batch(shape)).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("shape", [(2, 12), (1, 6, 5, 4)])
def test_series_and_volumes_train_from_arrays(shape: tuple[int, ...], tmp_path: Any) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(40, *shape)).astype(np.float32))
    data = ("--set", f"data={{name: arrays, file: {tmp_path}/x.npy}}")
    out = succeed("train", *TINY, *data, "--steps", 2, "--out", tmp_path / "run").out
    assert f"shape {shape}" in out
    succeed("sample", tmp_path / "run", "--solver", "ddim", "--steps", 2, "--count", 2)
    assert np.load(tmp_path / "run" / "sample_ddim_seed0_steps2" / "samples.npz")["samples"].shape == (2, *shape)
