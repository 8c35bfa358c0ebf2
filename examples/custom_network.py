"""A network of your own: any module F(x, c_noise) of the shape of x. Here it learns waves, series of 32 numbers.

Run it: `python examples/custom_network.py`.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

import sde_diffusion as sd

LENGTH, STEPS, BATCH = 32, 300, 64


class WaveNet(nn.Module):
    """Three circular convolutions, each shifted by what the noise level says.

    A network that takes classes has the signature (x, c_noise, label) and an attribute `classes`, their number; a label
    of −1 means none.
    """

    def __init__(self, channels: int = 32) -> None:
        super().__init__()
        self.noise = nn.Sequential(nn.Linear(1, channels), nn.SiLU(), nn.Linear(channels, channels))
        sides = (1, channels, channels, channels)
        self.layers = nn.ModuleList(
            nn.Conv1d(taken, given, kernel_size=7, padding="same", padding_mode="circular")
            for taken, given in pairwise(sides)
        )
        self.last = nn.Conv1d(channels, 1, kernel_size=1)

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        """An estimate (B, 1, LENGTH) from states of unit scale and a number for the noise level, (B,)."""
        shift = self.noise(c_noise[:, None])[:, :, None]
        for layer in self.layers:
            x = nn.functional.silu(layer(x) + shift)
        return self.last(x)


def waves(count: int) -> Tensor:
    """Sines of two periods with random phase, (count, 1, LENGTH)."""
    place = torch.arange(LENGTH) / LENGTH
    return torch.sin(2 * torch.pi * (2 * place + torch.rand(count, 1)))[:, None]


def purity(series: Tensor) -> Tensor:
    """The share of a series' energy that lies at two periods: 1 for a wave."""
    energy = torch.fft.rfft(series[:, 0]).abs() ** 2
    return energy[:, 2] / energy.sum(1)


torch.manual_seed(0)
score = sd.ScoreModel(WaveNet(), sd.VPSDE(), prediction="v", sigma_data=0.7)
optimizer = torch.optim.Adam(score.parameters(), lr=2e-3)
for _ in range(STEPS):
    loss = sd.dsm_loss(score, waves(BATCH)).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

# The file names the class but cannot hold its code, so to load it, give a network of that class.
file = sd.save("custom_network.safetensors", score, units=sd.Continuous((1, LENGTH)))
model = sd.load(file, net=WaveNet(), device="cpu")
samples = model.sample(64, nfe=20)
noise = torch.randn(64, 1, LENGTH)
print(f"energy at two periods: {purity(samples).mean():.0%} of samples, {purity(noise).mean():.0%} of noise")
