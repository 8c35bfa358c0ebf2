"""Guidance: a score pushed along what tells two models apart.

    s = s_0 + w (s_1 − s_0),    s_1 of what is wanted, s_0 of what it is to be told from

At w = 0 this is s_0, at w = 1 it is s_1, and above it goes beyond. Where s_1 = ∇ log p_t(x|y) and s_0 = ∇ log p_t(x) it
is the score of p_t(x|y)^w p_t(x)^{1−w} ∝ p_t(x) p_t(y|x)^w. This w is that of Dhariwal & Nichol and of Karras et al.;
that of Ho & Salimans is ours less 1. An interval of noise levels, low < σ/a ≤ high, limits guidance: outside, w = 1.

A guided score is a `ScoreFn` like any other, and counts as one score evaluation whatever it costs the networks.

References: Dhariwal & Nichol 2021, arXiv:2105.05233, section 4; Ho & Salimans 2022, arXiv:2207.12598, eq. 6;
Kynkäänniemi et al. 2024, arXiv:2404.07724, eq. 5; Karras et al. 2024b, arXiv:2406.02507, section 3.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from sde_diffusion.errors import InputError, require
from sde_diffusion.score import ScoreFn, score_and_fraction
from sde_diffusion.sde import SDE
from sde_diffusion.tensors import select

Bind = Callable[[Tensor], Callable[[Tensor, Tensor], Tensor]]
"""Labels (B,) -> a function of (x (B, *D), t (B,)): a score, or for a classifier log p(label | x_t), (B,)."""


@dataclass(frozen=True, kw_only=True)
class Guidance(ABC):
    """How a model is guided; `apply` makes the guided score function.

    Attributes:
        scale: The weight w, finite; 1 is the model without guidance.
        interval: Noise levels (low, high) of σ/a between which w holds; elsewhere it is 1. Null for all of them.

    Raises:
        InputError: A `scale` that is not finite, or an `interval` that is not 0 ≤ low < high.
    """

    scale: float = 1.0
    interval: tuple[float, ...] | None = None

    by_label: ClassVar[bool] = True
    """Whether it means something only for samples of a class."""
    guide: ClassVar[Literal["", "model", "classifier"]] = ""
    """What the file `checkpoint` must hold, for guidance that has one."""
    cost: ClassVar[str] = ""
    """What one evaluation costs where w is neither 0 nor 1."""

    def __post_init__(self) -> None:
        require(math.isfinite(self.scale), f"`scale` must be a finite number, got {self.scale}")
        ends = self.interval
        require(
            ends is None or (len(ends) == 2 and 0 <= ends[0] < ends[1]),
            f"`interval` must be two noise levels 0 ≤ low < high of σ/a, got {list(ends or ())}",
        )

    def active(self, *, conditional: bool) -> bool:
        """Whether it differs from no guidance, for a model that knows labels or not."""
        return self.scale != 1

    def apply(self, bind: Bind, labels: Tensor, sde: SDE, *, conditional: bool, guide: Bind | None = None) -> ScoreFn:
        """The guided score function for samples of the classes `labels`.

        Args:
            bind: The model's score function for labels (B,), −1 for none.
            labels: (B,) int64.
            conditional: Whether the model knows labels.
            guide: The guiding model or classifier, bound likewise.

        Returns:
            A `ScoreFn` for batches of B, which offers `score_and_fraction` if the model's does.
        """
        guided = self.at(self.scale, bind, labels, conditional=conditional, guide=guide)
        if self.interval is None or self.scale == 1:
            return guided
        plain = self.at(1.0, bind, labels, conditional=conditional, guide=guide)
        return Limited(sde, guided, plain, (self.interval[0], self.interval[1]))

    @abstractmethod
    def at(self, scale: float, bind: Bind, labels: Tensor, *, conditional: bool, guide: Bind | None) -> ScoreFn:
        """`apply` with w = `scale` at all noise levels."""


@dataclass(frozen=True, kw_only=True)
class ClassifierFree(Guidance):
    """The model with the label against itself without: s_1 = s(x, t, y), s_0 = s(x, t, none).

    Needs a model trained with label dropout. Reference: Ho & Salimans 2022, arXiv:2207.12598, eq. 6
    """

    cost: ClassVar[str] = "one call of the network with twice the batch"

    def at(self, scale: float, bind: Bind, labels: Tensor, *, conditional: bool, guide: Bind | None) -> ScoreFn:
        none = torch.full_like(labels, -1)
        if scale in (0, 1):  # one branch is enough
            return bind(labels if scale else none)
        return Doubled(bind(torch.cat([labels, none])), len(labels), scale)


@dataclass(frozen=True, kw_only=True)
class Autoguidance(Guidance):
    """The model against a worse version of itself, such as an earlier checkpoint: s_1 the model's, s_0 the worse one's.

    Both are told the label, if there is one. Reference: Karras et al. 2024b, arXiv:2406.02507, section 3

    Attributes:
        checkpoint: Run or checkpoint file of the worse model.
    """

    scale: float = 2.0
    checkpoint: str = ""

    by_label: ClassVar[bool] = False
    guide: ClassVar[Literal["", "model", "classifier"]] = "model"
    cost: ClassVar[str] = "one call of each network"

    def at(self, scale: float, bind: Bind, labels: Tensor, *, conditional: bool, guide: Bind | None) -> ScoreFn:
        if scale == 1:
            return bind(labels)
        if guide is None:
            raise InputError("autoguidance needs a worse model as `guide`, such as an earlier checkpoint; give one")
        return Extrapolated(guide(labels), bind(labels), scale) if scale else guide(labels)


@dataclass(frozen=True, kw_only=True)
class ClassifierGuidance(Guidance):
    """The gradient of a noise-aware classifier, s_1 − s_0 = ∇ log p(y | x_t).

    s = s(x, t) + w ∇ log p(y | x_t), or, of a conditional model, s(x, t, y) + (w − 1) ∇ log p(y | x_t): by Bayes' rule
    the same. Reference: Dhariwal & Nichol 2021, arXiv:2105.05233, section 4

    Attributes:
        checkpoint: Run or checkpoint file of the classifier.
    """

    checkpoint: str = ""

    guide: ClassVar[Literal["", "model", "classifier"]] = "classifier"
    cost: ClassVar[str] = "one call of the network, and the classifier forwards and backwards"

    def active(self, *, conditional: bool) -> bool:
        """With w = 1 the classifier still makes a model without labels one of the class."""
        return self.scale != 1 or not conditional

    def at(self, scale: float, bind: Bind, labels: Tensor, *, conditional: bool, guide: Bind | None) -> ScoreFn:
        base = bind(labels if conditional else torch.full_like(labels, -1))
        gain = scale - 1 if conditional else scale
        if gain == 0:
            return base
        if guide is None:
            raise InputError("classifier guidance needs a classifier of noisy data as `guide`; give one")
        return Pulled(base, guide(labels), gain)


GUIDANCES: dict[str, type[Guidance]] = {
    "classifier_free": ClassifierFree,
    "autoguidance": Autoguidance,
    "classifier": ClassifierGuidance,
}


class _Guided(ABC):
    """A score function that gives score and reverse variance in one evaluation, and each sample's share of a batch."""

    @abstractmethod
    def evaluate(self, x: Tensor, t: Tensor, *, fraction: bool) -> list[Tensor]:
        """The score, followed by v if `fraction`, each (B, *D)."""

    @abstractmethod
    def select(self, rows: Tensor) -> "_Guided":
        """The same for the samples `rows` (n,) of the batch."""

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self.evaluate(x, t, fraction=False)[0]

    def score_and_fraction(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The guided score and v, each (B, *D); v, which no reference guides, is that of s_1, or at w = 0 of s_0."""
        score, v = self.evaluate(x, t, fraction=True)
        return score, v


def _evaluate(score_fn: ScoreFn, x: Tensor, t: Tensor, *, fraction: bool) -> list[Tensor]:
    return list(score_and_fraction(score_fn, x, t)) if fraction else [score_fn(x, t)]


@dataclass(frozen=True, eq=False)
class Doubled(_Guided):
    """s_0 + w (s_1 − s_0) by one call for a batch of 2B.

    Attributes:
        both: For 2B samples: the first B give s_1, the others s_0.
        count: B.
        scale: w.
    """

    both: ScoreFn
    count: int
    scale: float

    def evaluate(self, x: Tensor, t: Tensor, *, fraction: bool) -> list[Tensor]:
        found = _evaluate(self.both, torch.cat([x, x]), torch.cat([t, t]), fraction=fraction)
        wanted, other = found[0].chunk(2)
        return [torch.lerp(other, wanted, self.scale), *(v[: len(x)] for v in found[1:])]

    def select(self, rows: Tensor) -> "Doubled":
        return Doubled(select(self.both, torch.cat([rows, rows + self.count])), len(rows), self.scale)


@dataclass(frozen=True, eq=False)
class Extrapolated(_Guided):
    """s_0 + w (s_1 − s_0) of two score functions."""

    weak: ScoreFn
    strong: ScoreFn
    scale: float

    def evaluate(self, x: Tensor, t: Tensor, *, fraction: bool) -> list[Tensor]:
        score, *v = _evaluate(self.strong, x, t, fraction=fraction)
        return [torch.lerp(self.weak(x, t), score, self.scale), *v]

    def select(self, rows: Tensor) -> "Extrapolated":
        return Extrapolated(select(self.weak, rows), select(self.strong, rows), self.scale)


@dataclass(frozen=True, eq=False)
class Pulled(_Guided):
    """s + gain ∇_x log p(y | x_t), the gradient by autograd, whatever the mode around it.

    Attributes:
        base: The score function s.
        log_prob: (x (B, *D), t (B,)) -> log p(y | x_t), (B,), each sample's of its own x alone.
        gain: Weight of the gradient.
    """

    base: ScoreFn
    log_prob: Callable[[Tensor, Tensor], Tensor]
    gain: float

    def evaluate(self, x: Tensor, t: Tensor, *, fraction: bool) -> list[Tensor]:
        score, *v = _evaluate(self.base, x, t, fraction=fraction)
        return [score + self.gain * self.slope(x, t), *v]

    def slope(self, x: Tensor, t: Tensor) -> Tensor:
        """∇_x log p(y | x_t), (B, *D); differentiable where gradients of x or t are being recorded."""
        again = torch.is_grad_enabled() and (x.requires_grad or t.requires_grad)
        with torch.enable_grad():
            at = x if again and x.requires_grad else x.detach().requires_grad_()
            return torch.autograd.grad(self.log_prob(at, t).sum(), at, create_graph=again)[0]

    def select(self, rows: Tensor) -> "Pulled":
        return Pulled(select(self.base, rows), select(self.log_prob, rows), self.gain)


@dataclass(frozen=True, eq=False)
class Limited(_Guided):
    """`guided` at noise levels low < σ/a ≤ high and `plain` elsewhere, for every sample by its own time.

    A batch at one time costs what the one or the other does; samples on both sides are evaluated in two calls. The
    score jumps at the ends of the interval: an adaptive solver takes a few more steps there, and no solver has its
    order across them. Waits for the device.

    Reference: Kynkäänniemi et al. 2024, arXiv:2404.07724, eq. 5.
    """

    sde: SDE
    guided: ScoreFn
    plain: ScoreFn
    interval: tuple[float, float]

    def evaluate(self, x: Tensor, t: Tensor, *, fraction: bool) -> list[Tensor]:
        low, high = self.interval
        level = (-self.sde.half_log_snr(t.double())).exp()
        inside = (low < level) & (level <= high)
        if inside.all() or not inside.any():
            return _evaluate(self.guided if inside.any() else self.plain, x, t, fraction=fraction)
        sides = [(~inside).nonzero()[:, 0], inside.nonzero()[:, 0]]
        parts = [
            _evaluate(select(score_fn, rows), x[rows], t[rows], fraction=fraction)
            for score_fn, rows in zip((self.plain, self.guided), sides, strict=True)
        ]
        back = torch.cat(sides).argsort()
        return [torch.cat(pair)[back] for pair in zip(*parts, strict=True)]

    def select(self, rows: Tensor) -> "Limited":
        return Limited(self.sde, select(self.guided, rows), select(self.plain, rows), self.interval)
