"""The objectives of a learned variance: unbiased estimates of the chain's bound, and whom their gradients reach."""

import math
import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from sde_diffusion.bin_mass import log_bin_mass
from sde_diffusion.data import DataSpec
from sde_diffusion.errors import InputError
from sde_diffusion.likelihood import Levels, Points, Target, chain_bound
from sde_diffusion.losses import (
    OBJECTIVES,
    VLB,
    Denoising,
    DiscreteTime,
    Hybrid,
    ImportanceTime,
    Objective,
    SimpleWeighting,
    UniformTime,
    dsm_loss,
    vlb_term,
)
from sde_diffusion.model import ScoreModel
from sde_diffusion.networks import MLP
from sde_diffusion.oracle import GaussianMixture
from sde_diffusion.rng import generator
from sde_diffusion.score import ScoreFn
from sde_diffusion.sde import DDPM, VPSDE, CosineBetas
from sde_diffusion.sde.chain import DiscreteChain
from sde_diffusion.verify.problems import MEAN, STD, KnownVariance
from tests.conftest import assert_mean, f64

SDE_10 = DDPM(steps=10, beta=CosineBetas())
DRAWS = 20_000
OPTIONS: dict[str, Any] = {"weighting": SimpleWeighting(), "time_sampler": DiscreteTime()}


class Tilted:
    """A score that is `factor` of the right one, and the right fraction of the variance plus `tilt`."""

    def __init__(self, *, factor: float = 1.0, tilt: float = 0.0) -> None:
        self.known = KnownVariance(SDE_10, f64(DiscreteChain.of_levels(SDE_10).times[1:]))
        self.factor, self.tilt = factor, tilt

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self.factor * self.known(x, t)

    def score_and_fraction(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        score, fraction = self.known.score_and_fraction(x, t)
        return self.factor * score, fraction + self.tilt


def data(count: int = DRAWS) -> Tensor:
    return MEAN + STD * torch.randn(count, 2, generator=generator(1), dtype=torch.float64)


def loss(objective: Objective, score_fn: ScoreFn, **options: Any) -> Tensor:
    return objective(score_fn, SDE_10, data(), generator=generator(2), **OPTIONS | options).loss


@pytest.mark.parametrize("levels", [None, 8])
def test_the_vlb_is_the_chains_bound_in_bits_per_dimension(levels: int | None) -> None:
    """Its mean over the levels against L_0 + Σ L_{k−1} of all levels of the same examples, decoder and all."""
    x0, spec = data(4000) / 2, DataSpec("arrays", (2,), levels=levels)
    target: Target = Points(x0)
    if levels is not None:
        values = spec.from_model(x0)
        x0, target = spec.to_model(values).double(), Levels(spec, values)
    score_fn = Tilted(factor=0.9, tilt=0.1)
    bound = chain_bound(score_fn, DiscreteChain.of_levels(SDE_10), target, variance="learned", seed=3)
    exact = (bound.diffusion + bound.reconstruction) / (2 * math.log(2))
    terms = []
    for k in range(1, 11):
        t = torch.full((len(x0),), k / 10, dtype=torch.float64)
        eps = torch.randn(x0.shape, generator=generator(k), dtype=torch.float64)
        score, fraction = score_fn.score_and_fraction(SDE_10.perturb(x0, t, eps), t)
        residual = SDE_10.std(t)[:, None] * score + eps
        terms.append(vlb_term(SDE_10, x0, t, residual, fraction, levels=levels))
    assert_mean(torch.stack(terms).mean(0) - exact, 0.0)


def test_random_levels_estimate_the_same() -> None:
    every = [float(vlb_at(k / 10, Tilted()).mean()) for k in range(1, 11)]
    assert_mean(loss(VLB(), Tilted()), sum(every) / 10)


def vlb_at(t: float, score_fn: Tilted) -> Tensor:
    x0, times = data(200_000), torch.full((200_000,), t, dtype=torch.float64)
    eps = torch.randn(x0.shape, generator=generator(3), dtype=torch.float64)
    score, fraction = score_fn.score_and_fraction(SDE_10.perturb(x0, times, eps), times)
    return vlb_term(SDE_10, x0, times, SDE_10.std(times)[:, None] * score + eps, fraction)


def test_bins_are_coded_wherever_in_them_the_data_lie() -> None:
    """Dequantised data n + u have the same code length of n; only their noise is centred elsewhere."""
    n, t = torch.tensor([[0, 3], [7, 5]]), f64([0.1, 0.1])
    residual, fraction = torch.zeros(2, 2, dtype=torch.float64), torch.full((2, 2), 0.3, dtype=torch.float64)
    std = DiscreteChain.of_levels(SDE_10).decoder_std(fraction)
    for u in (0.0, 0.5, 0.99):
        x0 = 2 * (n + u) / 8 - 1
        found = vlb_term(SDE_10, x0.double(), t, residual, fraction, levels=8)
        exact = -10 * log_bin_mass(n, 8, x0.double(), std).sum(1) / (2 * math.log(2))
        torch.testing.assert_close(found, exact, rtol=1e-10, atol=0)


@pytest.mark.parametrize("objective", [VLB(), Hybrid(vlb_weight=1.0)])
def test_the_right_variance_is_stationary(objective: Objective) -> None:
    """But for L_0, whose decoder has a variance of its own: the slope in v is 0 at the right one, and not beside it."""

    def slope(tilt: float) -> Tensor:
        up, down = (loss(objective, Tilted(tilt=tilt + step)) for step in (1e-3, -1e-3))
        t = DiscreteTime()(SDE_10, SimpleWeighting(), DRAWS, generator=generator(2))[0]
        return ((up - down) / 2e-3)[t > 0.15]

    assert_mean(slope(0.0), 0.0)
    for tilt in (0.2, -0.2):
        values = slope(tilt)
        assert float(values.mean()) * math.copysign(1, tilt) > 4 * float(values.std()) / math.sqrt(len(values))


def gradients(objective: Objective, **options: Any) -> tuple[Tensor, Tensor]:
    """Of the last layer's weights for the score and for the variance, the rest being the same for both."""
    torch.manual_seed(0)
    net = MLP((2,), width=8, heads=2)
    torch.nn.init.normal_(net.output.weight)
    model = ScoreModel(net, SDE_10, learned_variance=True).double()
    found = objective(model, SDE_10, data(64), generator=generator(2), **OPTIONS | options)
    found.loss.mean().backward()
    gradient = net.output.weight.grad
    assert gradient is not None
    mean, variance = gradient.chunk(2)
    return mean, variance


def test_in_the_hybrid_loss_the_mean_does_not_feel_the_bound() -> None:
    mean, variance = gradients(Hybrid())
    simple, nothing = gradients(Hybrid(vlb_weight=1e-300))
    bound_mean, bound_variance = gradients(VLB())
    torch.testing.assert_close(mean, simple, rtol=1e-10, atol=0)
    torch.testing.assert_close(variance, 0.001 * bound_variance, rtol=1e-10, atol=1e-14)
    assert nothing.abs().max() < 1e-200
    assert bound_mean.abs().min() > 0


def test_the_hybrid_loss_is_both_and_huber_reaches_the_error_alone() -> None:
    simple = {
        distance: dsm_loss(Tilted(factor=0.8), SDE_10, data(), generator=generator(2), distance=distance, **OPTIONS)
        for distance in ("l2", "huber")
    }
    for distance, part in simple.items():
        whole = Hybrid()(Tilted(factor=0.8), SDE_10, data(), generator=generator(2), distance=distance, **OPTIONS)
        bound = loss(VLB(), Tilted(factor=0.8))
        torch.testing.assert_close(whole.loss, part.loss + 0.001 * bound, rtol=1e-10, atol=1e-12)
        assert torch.equal(whole.error, part.error)
    denoising = Denoising()(Tilted(), SDE_10, data(), generator=generator(2), **OPTIONS)
    assert torch.equal(denoising.loss, dsm_loss(Tilted(), SDE_10, data(), generator=generator(2), **OPTIONS).loss)


def test_gradients_are_finite_where_the_prediction_is_far_off() -> None:
    """A new network: x̂0 far outside the data, and outer bins, whose edges are at infinity."""
    residual = torch.tensor([[1e4, -1e4], [30.0, -30.0], [0.0, 0.0]], dtype=torch.float32, requires_grad=True)
    fraction = torch.tensor([[3.0, -3.0], [0.0, 1.0], [0.5, 0.5]], requires_grad=True)
    for low, high in ((-0.99, 0.99), (0.99, -0.99), (0.1, -0.1)):
        x0 = torch.tensor([[low, high]]).expand(3, 2)
        for t in (0.1, 0.2, 1.0):
            term = vlb_term(SDE_10, x0, torch.full((3,), t), residual, fraction, levels=256)
            assert term.isfinite().all()
            for gradient in torch.autograd.grad(term.sum(), (residual, fraction)):
                assert gradient.isfinite().all()


@pytest.mark.parametrize(
    ("objective", "sde", "sampler", "learned", "message"),
    [
        (Hybrid(), SDE_10, DiscreteTime(), False, "but the model has one head; set model.learned_variance = true"),
        (VLB(), VPSDE(), UniformTime(), True, "is a bound of a chain, and the process has no levels; take sde = ddpm"),
        (Hybrid(), SDE_10, ImportanceTime(), True, r"`loss\.time_sampler` must draw the levels of the chain"),
        (
            Denoising(),
            SDE_10,
            DiscreteTime(),
            True,
            r"`model\.learned_variance` must be false for loss",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused(
    objective: Objective, sde: Any, sampler: Any, learned: bool, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        objective.check(sde, sampler, learned_variance=learned)


def test_a_score_alone_has_no_variance_to_train() -> None:
    oracle = GaussianMixture.gaussian(SDE_10, f64([0.0, 0.0]), 1.0)
    with pytest.raises(InputError, match="a learned variance needs a model of two heads"):
        loss(VLB(), oracle.score)
    with pytest.raises(InputError, match=r"`vlb_weight` must be > 0, got 0"):
        Hybrid(vlb_weight=0)


@pytest.mark.parametrize("objective", [cls() for cls in OBJECTIVES.values()], ids=list(OBJECTIVES))
def test_is_a_value(objective: Objective) -> None:
    assert pickle.loads(pickle.dumps(objective)) == objective
    assert {objective: 1}[replace(objective)] == 1
    assert type(objective).__name__ in repr(objective)
