"""The embeddings of c_noise against their closed forms."""

import math

import torch

from sde_diffusion.networks.embedding import GaussianFourier, Sinusoidal


def test_sinusoidal_is_the_published_embedding_of_ddpm() -> None:
    """Sines before cosines, frequencies 10000^(−i/(h−1)); the float32 frequencies err by 2⁻²⁴, times a phase of 999."""
    width, c = 10, torch.tensor([0.0, 1.0, 36.5, 999.0], dtype=torch.float64)
    half = width // 2
    rows = []
    for value in c.tolist():
        phases = [value * math.exp(-math.log(10_000) * i / (half - 1)) for i in range(half)]
        rows.append([math.sin(phase) for phase in phases] + [math.cos(phase) for phase in phases])
    expected = torch.tensor(rows, dtype=torch.float64)
    torch.testing.assert_close(Sinusoidal(width).double()(c), expected, rtol=0, atol=999 * 2**-24)


def test_scale_is_the_highest_frequency() -> None:
    frequencies = Sinusoidal(8, scale=16.0, max_period=64.0).frequencies
    torch.testing.assert_close(frequencies, torch.tensor([16.0, 4.0, 1.0, 0.25]), rtol=1e-6, atol=0)


def test_fourier_features_are_waves_of_random_frequencies() -> None:
    """The standard deviation of n normal numbers is known to σ/√(2n)."""
    count, scale = 4096, 3.0
    embedding = GaussianFourier(2 * count, scale=scale)
    assert abs(float(embedding.frequencies.std()) - scale) < 4 * scale / math.sqrt(2 * count)
    assert abs(float(embedding.frequencies.mean())) < 4 * scale / math.sqrt(count)
    out = embedding(torch.tensor([0.0, 0.5]))
    expected = torch.cat([(0.5 * embedding.frequencies).sin(), (0.5 * embedding.frequencies).cos()])
    torch.testing.assert_close(out[1], expected, rtol=0, atol=1e-6)
    assert torch.equal(out[0], torch.cat([torch.zeros(count), torch.ones(count)]))


def test_fourier_frequencies_are_fixed_and_leave_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    first = GaussianFourier(16)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(5)
    second = GaussianFourier(16, scale=2.0)
    assert torch.equal(2 * first.frequencies, second.frequencies)
    torch.set_rng_state(before)


def test_frequencies_are_saved_with_the_weights_and_are_no_parameters() -> None:
    for embedding in (GaussianFourier(16), Sinusoidal(16)):
        assert list(embedding.state_dict()) == ["frequencies"]
        assert not list(embedding.parameters())
