"""Scores: the oracle, the continuity equation, and what a network's output is turned into."""

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from sde_diffusion.model import NOISE_CONDITIONINGS, PREDICTIONS, ScoreModel
from sde_diffusion.score import eps_from_score, reverse_drift, score_from_x0, x0_from_score
from sde_diffusion.sde import SDE
from sde_diffusion.verify.check import Check, Measured, NotShown, Setting, relative, worst
from sde_diffusion.verify.problems import gaussian, mixture, processes

SIGMA_DATA = 0.7
TIMES = [1e-3, 0.01, 0.1, 0.3, 0.7, 1.0]

Estimate = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def _karras(a: Tensor, std: Tensor, x: Tensor, eps: Tensor, x0: Tensor) -> Tensor:
    """F = (D − c_skip y)/c_out of Karras et al. 2022, eq. 7 and table 1, with y = x/a and D − y = −σ ε̂ for digits."""
    y, sigma = x / a, std / a
    total = sigma**2 + SIGMA_DATA**2
    return (sigma / total * y - eps) / (SIGMA_DATA / total.sqrt())


TARGETS: dict[str, Estimate] = {
    "eps": lambda a, std, x, eps, x0: eps,
    "x0": lambda a, std, x, eps, x0: x0,
    "v": lambda a, std, x, eps, x0: (a * eps - std * x0) / (a**2 + std**2).sqrt(),
    "edm": _karras,
}
"""What F estimates, from a, std, x, ε̂ and x̂0, written as in the papers and not as in the model."""

TOLD = {
    "log_snr": lambda sde, t: -0.25 * sde.half_log_snr(t),
    "time": lambda sde, t: 999 * t,
    "step": lambda sde, t: sde.levels * t - 1,
    "std": lambda sde, t: sde.std(t),
}
"""c_noise."""


class Answer(nn.Module):
    """A network that knows the answer and remembers the question."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = answer
        self.x = self.c_noise = torch.empty(0)

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None) -> Tensor:
        self.x, self.c_noise = x, c_noise
        return self.answer


def checks(setting: Setting) -> Iterator[Check]:
    """All checks of this area."""
    for name, sde in processes().items():
        yield Check("oracle's density against torch.distributions", name, partial(_density, setting, sde))
        yield Check("oracle's score is the gradient of its density", name, partial(_gradient, setting, sde))
        yield Check("ε̂, x̂0 and score follow from each other", name, partial(_tweedie, setting, sde))
        for eta in (0.0, 0.5, 1.0):
            family = "Fokker–Planck equation, η g dw" if eta else "continuity equation of the flow"
            yield Check(family, f"{name} η={eta:g}", partial(_residual, setting, sde, eta))
        for key in PREDICTIONS:
            yield Check("a right F gives the right score", f"{name} {key}", partial(_prediction, setting, sde, key))
        for key in NOISE_CONDITIONINGS:
            yield Check("c_noise tells the times apart", f"{name} {key}", partial(_conditioning, setting, sde, key))
        yield Check("c_in x has unit variance", name, partial(_unit_input, setting, sde))
        yield Check("a zero network under edm is the Gaussian's score", name, partial(_zero, setting, sde))


def _density(setting: Setting, sde: SDE) -> Measured:
    oracle, t, x = mixture(setting, sde), 0.3, setting.normal(8, 2, seed=2)
    a, std = (float(c(torch.tensor(t, dtype=torch.float64))) for c in (sde.mean_coef, sde.std))
    spread = ((a * oracle.stds.double()) ** 2 + std**2).sqrt()[:, None].expand(-1, 2)
    parts = torch.distributions.Independent(torch.distributions.Normal(a * oracle.means.double(), spread), 1)
    shares = torch.distributions.Categorical(oracle.weights.double())
    exact = torch.distributions.MixtureSameFamily(shares, parts).log_prob(x.double())  # type: ignore[no-untyped-call]
    found = oracle.log_prob(x.double(), torch.full((8,), t, dtype=torch.float64, device=setting.device))
    return Measured(worst(found, exact), 1e-11)


def _gradient(setting: Setting, sde: SDE) -> Measured:
    oracle, x = mixture(setting, sde), setting.normal(6, 2, seed=2).requires_grad_()
    t = setting.tensor(TIMES)
    slope = torch.autograd.grad(oracle.log_prob(x, t).sum(), x)[0].double()
    return Measured(worst(oracle.score(x, t), slope, scale=float(slope.abs().max())), 1e3 * setting.eps)


def _tweedie(setting: Setting, sde: SDE) -> Measured:
    """Of the Gaussian N(m, s²): ε̂ = std (x − a m)/V and x̂0 = m + a s² (x − a m)/V with V = a² s² + std²."""
    oracle, t, x = gaussian(setting, sde, 3), setting.tensor(TIMES[1:]), setting.normal(5, 3, seed=2)
    a, std = sde.mean_coef(t.double())[:, None], sde.std(t.double())[:, None]
    mean, share = oracle.means.double(), float(oracle.stds[0]) ** 2
    rest = (x.double() - a * mean) / (a**2 * share + std**2)
    score, x0 = oracle.score(x, t), mean + a * share * rest
    off = worst(eps_from_score(sde, score, t), std * rest, scale=std * rest.abs().max())
    scale = (x.abs() + std**2 * score.abs()) / a  # of the terms, whose roundings remain
    off = max(off, worst(x0_from_score(sde, score, x, t), x0, scale=scale))
    scale = (a * x0.abs() + x.abs()) / std**2
    return Measured(max(off, worst(score_from_x0(sde, x0.to(x), x, t), -rest, scale=scale)), 128 * setting.eps)


def _residual(setting: Setting, sde: SDE, eta: float) -> Measured:
    """∂_t log p + ∇·v + v·∇log p at points of p_t, for v = drift + ½ η² g² s: 0 if v carries the mixture. Float64.

    A missing ½ leaves a residual of order one.
    """
    setting, off = Setting(setting.device), 0.0
    oracle = mixture(setting, sde, (3,))
    for t in (0.01, 0.1, 0.3, 0.5, 0.7, 0.9):
        times = setting.tensor([t] * 8).requires_grad_()
        x = oracle.sample(8, times.detach(), generator=setting.generator(2)).requires_grad_()
        growth = torch.autograd.grad(oracle.log_prob(x, times).sum(), times)[0]
        score, noise = oracle.score(x, times), 0.5 * eta**2 * sde.diffusion(times)[:, None] ** 2
        drift = reverse_drift(sde, score, x, times, eta) + noise * score
        for i in range(3):
            growth = growth + torch.autograd.grad(drift[:, i].sum(), x, retain_graph=True)[0][:, i]
        off = max(off, worst(growth + (drift * score).sum(1), 0.0))
    return Measured(off, 1e-10)


def _gaussian_parts(setting: Setting, sde: SDE) -> tuple[Tensor, ...]:
    """t, a, std, x, ε̂ and x̂0 of N(½, 0.6²) in float64."""
    t = setting.tensor([sde.t_min, 1e-4, *TIMES]).double()
    a, std = sde.mean_coef(t)[:, None], sde.std(t)[:, None]
    variance = (0.6 * a) ** 2 + std**2
    rest = variance.sqrt() * setting.normal(len(t), 3, seed=3).double()
    return t, a, std, 0.5 * a + rest, std * rest / variance, 0.5 + 0.36 * a * rest / variance


def _prediction(setting: Setting, sde: SDE, name: str) -> Measured:
    """Coefficients are right to 32 ε, and rounding is in proportion to the two terms of ε̂."""
    t, a, std, x, eps, x0 = _gaussian_parts(setting, sde)
    c_skip, c_out = PREDICTIONS[name](a, std, SIGMA_DATA)
    answer = TARGETS[name](a, std, x, eps, x0) if name in TARGETS else (eps - c_skip * x) / c_out
    model = ScoreModel(Answer(answer.to(setting.dtype)), sde, prediction=name, sigma_data=SIGMA_DATA)
    found = model(x.to(setting.dtype), t.to(setting.dtype)).double()
    terms = (c_skip * x).abs() + (c_out * answer).abs()
    if found.isnan().any():
        return Measured(math.nan, 0.0)
    return Measured(worst(-std * found, eps, scale=terms + eps.abs()), 100 * setting.eps)


def _conditioning(setting: Setting, sde: SDE, name: str) -> Measured:
    t = torch.linspace(sde.t_min, sde.t_max, 101, dtype=torch.float64).to(setting.device)
    x = setting.normal(101, 2)
    net = Answer(x)
    if name == "step" and sde.levels is None:
        raise NotShown("the process has no levels")
    ScoreModel(net, sde, conditioning=name)(x, t)
    wrong = float((net.c_noise.diff() <= 0).sum() + (~net.c_noise.isfinite()).sum())
    exact = TOLD[name](sde, t) if name in TOLD else NOISE_CONDITIONINGS[name](sde.at(t))
    off = worst(net.c_noise, exact, scale=exact.abs().clamp(min=1.0))
    return Measured(off + wrong + float(net.c_noise.dtype != x.dtype), 4 * setting.eps)


def _unit_input(setting: Setting, sde: SDE) -> Measured:
    """x of the standard deviation that data of σ_d give x_t."""
    t, a, std, *_ = _gaussian_parts(setting, sde)
    x = torch.hypot(a * SIGMA_DATA, std).expand(-1, 2).to(setting.dtype)
    net = Answer(x)
    ScoreModel(net, sde, sigma_data=SIGMA_DATA)(x, t.to(setting.dtype))
    return Measured(worst(net.x, 1.0), 100 * setting.eps)


def _zero(setting: Setting, sde: SDE) -> Measured:
    t, a, std, x, *_ = _gaussian_parts(setting, sde)
    net = Answer(torch.zeros_like(x).to(setting.dtype))
    found = ScoreModel(net, sde, prediction="edm", sigma_data=SIGMA_DATA)(x.to(setting.dtype), t.to(setting.dtype))
    return Measured(relative(found, -x / ((a * SIGMA_DATA) ** 2 + std**2)), 100 * setting.eps)
