"""Guidance with exact scores: that of p_t(x) p_t(y | x)^w, whatever the kind. The classes are parts of a mixture."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from sde_diffusion.guidance import GUIDANCES, Bind
from sde_diffusion.oracle import GaussianMixture
from sde_diffusion.score import ScoreFn
from sde_diffusion.tensors import select
from sde_diffusion.verify.check import Check, Measured, NotShown, Setting, worst
from sde_diffusion.verify.problems import mixture, processes

TIMES = [0.02, 0.1, 0.3, 0.5, 0.7, 0.95]
SCALES = (0.0, 0.5, 3.0)


@dataclass(frozen=True, eq=False)
class Labelled:
    """Something of the part of a mixture that each sample's label names, of the whole for −1; v tells the label."""

    density: GaussianMixture
    labels: Tensor
    of: Callable[[GaussianMixture, Tensor, Tensor], Tensor]

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        assert len(x) == len(t) == len(self.labels)
        labels = self.labels.tolist()
        every = {k: self.of(part(self.density, k), x, t) for k in set(labels)}
        return torch.stack([every[k][i] for i, k in enumerate(labels)])

    def score_and_fraction(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """As a model with a learned variance."""
        return self(x, t), self.labels.to(x)[:, None].expand_as(x)

    def select(self, rows: Tensor) -> "Labelled":
        """See `PerSample`."""
        return Labelled(self.density, self.labels[rows], self.of)


def part(density: GaussianMixture, label: int) -> GaussianMixture:
    """p(x | label); p(x) for −1."""
    if label == -1:
        return density
    return GaussianMixture(density.sde, *(value[label : label + 1] for value in _values(density)))


def _values(density: GaussianMixture) -> tuple[Tensor, Tensor, Tensor]:
    return density.weights, density.means, density.stds


def exact_model(density: GaussianMixture) -> Bind:
    """Its exact scores, as of a model with classes."""
    return lambda labels: Labelled(density, labels, lambda of, x, t: of.score(x, t))


def exact_classifier(density: GaussianMixture) -> Bind:
    """log p(y | x_t) by Bayes' rule, up to a constant."""
    return lambda labels: Labelled(density, labels, lambda of, x, t: of.log_prob(x, t) - density.log_prob(x, t))


def _no_classes(density: GaussianMixture) -> Bind:
    return lambda labels: exact_model(density)(torch.full_like(labels, -1))


GUIDES: dict[str, Callable[[GaussianMixture], Bind | None]] = {
    "classifier_free": lambda density: None,
    "autoguidance": _no_classes,  # a worse model: it has not learnt the classes
    "classifier": exact_classifier,
}
"""What makes a row of `GUIDANCES` give the score of p(x) p(y | x)^w."""


def checks(setting: Setting) -> Iterator[Check]:
    """All checks of this area."""
    for process, sde in processes(betas=False).items():
        density = mixture(setting, sde)
        for name in GUIDANCES:
            for scale in SCALES:
                case = f"{process} {name} w={scale:g}"
                yield Check(
                    "a guided score is the tilted density's", case, partial(_tilted, setting, density, name, scale)
                )
            case = f"{process} {name}"
            yield Check("guidance keeps to its interval", case, partial(_interval, setting, density, name))
            yield Check("guided samples keep their labels", case, partial(_labels, setting, density, name))


def _problem(setting: Setting) -> tuple[Tensor, Tensor, Tensor]:
    """x, t and labels."""
    t = setting.tensor(TIMES)
    return setting.normal(len(t), 2, seed=3), t, torch.arange(len(t), device=setting.device) % 3


def _guided(
    density: GaussianMixture, labels: Tensor, name: str, scale: float, interval: tuple[float, float] | None = None
) -> ScoreFn:
    if name not in GUIDES:
        raise NotShown("there is no closed form for it here")
    guidance = GUIDANCES[name](scale=scale, interval=interval)
    return guidance.apply(exact_model(density), labels, density.sde, conditional=True, guide=GUIDES[name](density))


def _tilted(setting: Setting, density: GaussianMixture, name: str, scale: float) -> Measured:
    """Against w ∇ log p(x|y) + (1 − w) ∇ log p(x), the gradients by autograd in float64."""
    x, t, labels = _problem(setting)
    found, at = _guided(density, labels, name, scale)(x, t), x.double().requires_grad_()
    terms = []
    for kind in (labels, torch.full_like(labels, -1)):
        logs = Labelled(density, kind, lambda of, x, t: of.log_prob(x, t))(at, t)
        terms.append(torch.autograd.grad(logs.sum(), at)[0])
    expected = scale * terms[0] + (1 - scale) * terms[1]
    size = max(float(term.abs().max()) for term in terms)
    return Measured(worst(found, expected, scale=(1 + abs(scale)) * size), 1e3 * setting.eps)


def _interval(setting: Setting, density: GaussianMixture, name: str) -> Measured:
    """A batch of six times of which two are inside: there w = 3, and elsewhere the score without guidance."""
    x, t, labels = _problem(setting)
    level = (-density.sde.half_log_snr(t.double())).exp()
    ends = (float(level[0]), float(level[2]))
    found, free, full = (
        _guided(density, labels, name, scale, interval)(x, t)
        for scale, interval in ((3.0, ends), (1.0, None), (3.0, None))
    )
    inside = torch.arange(len(t), device=x.device)[:, None].eq(setting.tensor([1, 2])).any(1)[:, None]
    return Measured(worst(found, torch.where(inside, full, free).double()), 1e3 * setting.eps * float(full.abs().max()))


def _labels(setting: Setting, density: GaussianMixture, name: str) -> Measured:
    x, t, labels = _problem(setting)
    score_fn, rows = _guided(density, labels, name, 3.0), torch.tensor([4, 0, 3], device=x.device)
    whole = score_fn(x, t)
    found = select(score_fn, rows)(x[rows], t[rows])
    return Measured(worst(found, whole[rows].double()), 1e3 * setting.eps * float(whole.abs().max()))
