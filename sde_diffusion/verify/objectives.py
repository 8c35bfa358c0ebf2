"""Objectives of a learned variance: the chain's bound by random levels, and whom its gradient reaches."""

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.likelihood import Points, chain_bound
from sde_diffusion.losses import VLB, Denoising, DiscreteTime, Hybrid, Objective, SimpleWeighting
from sde_diffusion.sde import DDPM, CosineBetas
from sde_diffusion.sde.chain import DiscreteChain
from sde_diffusion.verify.check import Check, Measured, Setting, mean_off
from sde_diffusion.verify.problems import MEAN, STD, KnownVariance

OPTIONS: dict[str, Any] = {"weighting": SimpleWeighting(), "time_sampler": DiscreteTime()}


def checks(setting: Setting) -> Iterator[Check]:
    """The checks of this part of the area `losses`."""
    yield Check("the chain's bound, level by level, is that of likelihoods", "vlb", partial(_vlb, setting))
    for reaches, label in ((True, "vlb"), (False, "hybrid")):
        yield Check("the bound's gradient reaches the mean, or not", label, partial(_reaches, setting, reaches))


def _chain_of(setting: Setting) -> tuple[DDPM, KnownVariance, Tensor]:
    """A chain of 8 levels, the score and the variance of Gaussian data under it, and such data."""
    sde = DDPM(steps=8, beta=CosineBetas(cap=0.9))
    times = torch.arange(1, 9, dtype=torch.float64) / 8
    return sde, KnownVariance(sde, times), MEAN + STD * setting.normal(4000, 2)


def _vlb(setting: Setting) -> Measured:
    """T L_k of random levels, in bits/dim, against all levels of `chain_bound` on the same examples."""
    sde, score_fn, x0 = _chain_of(setting)
    chain = DiscreteChain.of_levels(sde)
    bound = chain_bound(score_fn, chain, Points(x0), variance="learned")
    exact = (bound.diffusion + bound.reconstruction) / (x0[0].numel() * math.log(2))
    found = VLB()(score_fn, sde, x0, generator=setting.generator(2), **OPTIONS)
    return mean_off(found.loss.double() - exact, 0.0)


def _reaches(setting: Setting, reaches: bool) -> Measured:
    """Of a factor of the score: its gradient is that of the error of ε alone, or not."""
    sde, right, x0 = _chain_of(setting)
    gradients = []
    pair: tuple[Objective, ...] = (VLB() if reaches else Hybrid(vlb_weight=1.0), Denoising())
    for objective in pair:
        factor = setting.tensor(0.7).requires_grad_()
        loss = objective(_Scaled(right, factor), sde, x0, generator=setting.generator(2), **OPTIONS).loss.mean()
        gradients.append(float(torch.autograd.grad(loss, factor)[0]))
    off = abs(gradients[0] / gradients[1] - 1)
    return Measured(float(off < 0.1), 0.0) if reaches else Measured(off, 1e3 * setting.eps)


class _Scaled:
    """A factor of a score, and its fraction."""

    def __init__(self, right: KnownVariance, factor: Tensor) -> None:
        self._right, self._factor = right, factor

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self._factor * self._right(x, t)

    def score_and_fraction(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        score, fraction = self._right.score_and_fraction(x, t)
        return self._factor * score, fraction
