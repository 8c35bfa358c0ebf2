"""A solver of your own: the explicit midpoint method, checked against an exact flow, then used on a trained model.

Run it: `python examples/custom_solver.py`.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

import sde_diffusion as sd


@dataclass(frozen=True, kw_only=True)
class Midpoint(sd.Solver):
    """Solve the probability flow dx/dt = f x − ½ g² s by x ← x + h v(x + ½ h v(x, t), t + ½ h).

    Attributes:
        steps: Number of steps, two score evaluations each.
    """

    order = 2  # the error falls with the square of the step
    stochastic = False  # it draws no noise, so it can encode and decode

    steps: int = 50

    def solve(self, process: sd.ReverseProcess, x: Tensor, t_from: float, t_to: float) -> Tensor:
        """The state at `t_to` from the state `x` (B, *D) at `t_from`."""
        times = sd.LogSNRGrid()(process.sde, t_from, t_to, self.steps)
        for t, t_next in pairwise(times):
            h = float(t_next - t)
            middle = x + 0.5 * h * process.drift(x, t, eta=0.0)
            x = x + h * process.drift(middle, 0.5 * (t + t_next), eta=0.0)
            process.observe(x, float(t_next))
        return x


# The flow of a Gaussian is known in closed form. Twice the steps must leave a quarter of the error.
sde = sd.VPSDE()
gaussian = sd.GaussianMixture.gaussian(sde, torch.tensor([0.5, -0.3], dtype=torch.float64), 0.4)
z = torch.randn(64, 2, generator=sd.generator(0), dtype=torch.float64)
start, end = (torch.tensor(t, dtype=torch.float64) for t in (sde.t_max, 0.01))
exact = gaussian.flow(z, start, end)
previous = None
for steps in (50, 100, 200, 400):
    found = sd.sample(gaussian.score, sde, Midpoint(steps=steps), x_init=z, t_end=float(end), denoise=False)
    error = (found.x - exact).abs().max().item()
    print(f"{steps:4} steps: largest error {error:.1e}", f"({previous / error:.1f} times less)" if previous else "")
    previous = error

# A trained model takes it like any other solver.
model = sd.load("pretrained:fashion_mnist_vp", device="cpu")
images = model.sample(4, solver=Midpoint(steps=10))
print(f"{tuple(images.shape)} images, grey values from {images.min()} to {images.max()}")
