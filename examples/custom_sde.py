"""A process of your own: five formulas, and every solver, loss and likelihood can use it.

Run it: `python examples/custom_sde.py`.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

import sde_diffusion as sd
from sde_diffusion.verify import CHECKS, Setting, collect, run


@dataclass(frozen=True)
class LinearVE(sd.SDE):
    """dx = σ_max √(2t) dw:  a = 1,  std = σ_max t. The noise of Karras et al. 2022 (EDM), with time in units of σ_max.

    Attributes:
        sigma_max: Standard deviation of the noise at t = 1.
    """

    sigma_max: float = 20.0

    def log_mean_coef(self, t: Tensor) -> Tensor:
        """log a(t)"""
        return torch.zeros_like(t)

    def std(self, t: Tensor) -> Tensor:
        return self.sigma_max * t

    def drift_coef(self, t: Tensor) -> Tensor:
        """f(t) = d log a / dt"""
        return torch.zeros_like(t)

    def diffusion(self, t: Tensor) -> Tensor:
        """g(t) = √(d std²/dt − 2 f std²)"""
        return self.sigma_max * torch.sqrt(2 * t)

    @property
    def prior_std(self) -> float:
        return self.sigma_max


# With a row of its own the process is known by name: to `sd.load`, to configs and to the command line of this program.
sd.SDES["linear_ve"] = LinearVE

# Do the five formulas belong together? `verify` asks automatic differentiation, as it does for every row.
checks = [check for check in collect("sde", CHECKS["sde"], Setting()) if "linear_ve" in check.case]
outcomes = [run("sde", check) for check in checks]
failed = [f"{one.family}: {one.note or one.error}" for one in outcomes if one.status == "failed"]
print(f"{len(outcomes)} checks of the formulas, {len(failed)} failed", *failed)

# Data with a known score: three points with some spread. Solvers take this score as they take a network's.
sde = LinearVE()
angles = torch.arange(3) * 2 * math.pi / 3
data = sd.GaussianMixture(sde, torch.ones(3), torch.stack([angles.cos(), angles.sin()], 1), torch.full((3,), 0.1))
for solver in (sd.PerSampleODE(), sd.for_budget(20), sd.EulerMaruyama(steps=300, grid=sd.LogSNRGrid())):
    found = sd.sample(data.score, sde, solver, (1000, 2))
    log_prob = data.log_prob(found.x).mean()
    print(f"{found.nfe:4} evaluations: mean log-density of the samples {log_prob:.3f}")
points = data.sample(1000, generator=sd.generator(0))
print(f"of the data itself {data.log_prob(points).mean():.3f}")

# A network learns the score from data in the same way for every process. The times of its training are those of EDM:
# most of them where the noise is about as large as the data.
torch.manual_seed(0)
rng = sd.generator(1)
score = sd.ScoreModel(sd.MLP((2,), width=64, depth=2), sde, prediction="edm")
optimizer = torch.optim.Adam(score.parameters(), lr=5e-3)
for _ in range(400):
    x = data.sample(512, generator=rng)
    loss = sd.dsm_loss(score, x, weighting=sd.EDMWeighting(), time_sampler=sd.LogNormalTime()).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
model = sd.load(sd.save("custom_sde", score, units=sd.Continuous((2,))), device="cpu")
samples = model.sample(1000, nfe=20)
distance = torch.cdist(samples, data.means).min(1).values
print(f"{model.sde}: {(distance < 0.3).float().mean():.1%} of the model's samples lie at one of the three points")
