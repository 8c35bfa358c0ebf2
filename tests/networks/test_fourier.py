"""Waves of the input beside it, alone and in the networks that take them."""

import math

import pytest
import torch

from sde_diffusion.errors import InputError
from sde_diffusion.networks import NETWORKS, UNet
from sde_diffusion.networks.fourier import FourierFeatures
from tests.conformance.test_networks import SHAPE, awake, batch, build


@pytest.mark.parametrize("shape", [(2, 3), (2, 1, 4, 3), (1, 2, 5)])
def test_the_waves_stand_behind_the_input(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    features = FourierFeatures((0, 7))
    expected = [x, (math.pi * x).sin(), (math.pi * x).cos(), (128 * math.pi * x).sin(), (128 * math.pi * x).cos()]
    torch.testing.assert_close(features(x), torch.cat(expected, 1), rtol=1e-10, atol=1e-10)
    assert features.factor == 5
    assert FourierFeatures(())(x) is x


@pytest.mark.parametrize("shape", [(2, 3), (2, 1, 4, 3)])
def test_a_gate_multiplies_each_wave_by_its_own_number(shape: tuple[int, ...]) -> None:
    draws = torch.Generator().manual_seed(0)
    x, embedding = torch.randn(shape, generator=draws).double(), torch.randn(2, 5, generator=draws).double()
    features, plain = FourierFeatures((0, 7), embedding=5).double(), FourierFeatures((0, 7))
    assert features.gate is not None
    assert torch.equal(features(x, embedding), torch.cat([x, torch.zeros_like(plain(x)[:, x.shape[1] :])], 1))
    torch.nn.init.normal_(features.gate.weight)
    gates = embedding @ features.gate.weight.T
    expected = [x] + [
        gates[:, i].reshape(-1, *(1,) * (x.ndim - 1)) * wave
        for i, wave in enumerate(plain(x)[:, x.shape[1] :].split(x.shape[1], 1))
    ]
    torch.testing.assert_close(features(x, embedding), torch.cat(expected, 1), rtol=1e-10, atol=1e-10)


def test_a_network_learns_to_open_its_gate() -> None:
    net = awake(UNet((1, 8, 8), channels=8, multipliers=(1,), blocks=1, attention=(), fourier=(6,), fourier_gate=True))
    net(torch.randn(2, 1, 8, 8).double(), torch.randn(2).double()).square().sum().backward()
    assert net.features.gate is not None
    assert net.features.gate.weight.grad is not None
    assert float(net.features.gate.weight.grad.abs().max()) > 0


def test_neighbouring_levels_of_8_bit_data_are_far_apart() -> None:
    """2⁻⁷ apart in [−1, 1], they have opposite signs in a wave of exponent 7, which is 6 of data over σ_d = ½."""
    levels = (torch.arange(256, dtype=torch.float64) + 0.5) / 128 - 1
    wave = FourierFeatures((6,))(2 * levels[:, None])[:, 1]
    torch.testing.assert_close(wave[1:], -wave[:-1], rtol=1e-10, atol=1e-10)
    assert float(wave.abs().min()) > 0.99


@pytest.mark.parametrize("exponents", [(6, 6), (-1,), (13,)])
def test_exponents_that_are_none(exponents: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"`fourier` must be different exponents from 0 to 12, got \["):
        FourierFeatures(exponents)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_takes_them_at_its_first_layer(name: str) -> None:
    plain, waves = build(name).state_dict(), build(name, fourier=(1, 3)).state_dict()
    assert plain.keys() == waves.keys()
    (changed,) = (key for key in plain if plain[key].shape != waves[key].shape)
    assert waves[changed].shape[1] == 5 * plain[changed].shape[1]

    net = awake(build(name, fourier=(1, 3)))
    x, c_noise, _ = batch()
    assert net(x, c_noise).shape == (len(x), *SHAPE)
    weight = dict(net.named_parameters())[changed]
    out = net(x, c_noise)
    weight.data[:, plain[changed].shape[1] :] = 0
    assert (net(x, c_noise) - out).abs().max() > 1e-3, "the waves matter"
    with pytest.raises(InputError, match="`fourier` must be different exponents"):
        build(name, fourier=(20,))
