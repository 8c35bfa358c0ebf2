"""Learn a density in the plane: data, training, samples and log-densities in one file. It takes about ten seconds.

Run it: `python examples/minimal.py`.

A diffusion model has three parts. A process turns data into noise. A score, here a network, learns the way back: it
estimates ∇ log p_t(x), where p_t is the density of the data after the process has run for the time t. A solver follows
the score from noise to data.
"""

import math

import torch

import sde_diffusion as sd

STEPS, BATCH = 800, 512

# Data: five Gaussians on a circle. Their density is known in closed form, so at the end we see what was learnt.
torch.manual_seed(0)
angles = torch.arange(5) * 2 * math.pi / 5
centres = torch.stack([angles.cos(), angles.sin()], 1)


def draw(count: int) -> torch.Tensor:
    """Points of the plane, (count, 2)."""
    return centres[torch.randint(5, (count,))] + 0.2 * torch.randn(count, 2)


# The model: the variance-preserving process and a network. 0.7 is the standard deviation of the data.
sde = sd.VPSDE()
score = sd.ScoreModel(sd.MLP((2,), width=64, depth=2), sde, prediction="edm", sigma_data=0.7)
average = sd.EMA(score, 0.99)  # the running mean of the weights gives better samples than the last ones

# Training: draw a time and noise for each example, and compare the score with the one that the noise implies.
optimizer = torch.optim.Adam(score.parameters(), lr=5e-3)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
for step in range(STEPS):
    loss = sd.dsm_loss(score, draw(BATCH)).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()
    average.update(score, step)
    if (step + 1) % 200 == 0:
        print(f"step {step + 1:5}  loss {loss.item():.3f}")

# The file holds the weights, the process and the units of the data. `sd.load` and every command read it.
file = sd.save("minimal.safetensors", average.model, units=sd.Continuous((2,)))
model = sd.load(file, device="cpu")

# Samples: twenty network calls each.
samples = model.sample(1000, nfe=20, seed=0)
distance = (samples[:, None] - centres).norm(dim=-1).min(1).values
print(f"{(distance < 0.6).float().mean():.1%} of the samples lie within three standard deviations of a centre")

# Log-densities, in nats: the model's beside the true ones, for new points.
truth = sd.GaussianMixture(sde, torch.full((5,), 1 / 5), centres, torch.full((5,), 0.2))
points = draw(256)
learnt, exact = model.log_prob(points, divergence="exact"), truth.log_prob(points)
print(f"mean log-density {learnt.mean():.3f} by the model, {exact.mean():.3f} in truth")
print(f"bits per dimension: {model.bits_per_dim(points)}")
