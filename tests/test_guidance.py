"""Guided scores against closed forms: mixtures whose components are the classes."""

import math
import re
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from sde_diffusion.errors import InputError
from sde_diffusion.grids import LogSNRGrid
from sde_diffusion.guidance import GUIDANCES, Autoguidance, Bind, ClassifierFree, Guidance
from sde_diffusion.oracle import GaussianMixture
from sde_diffusion.rng import generator
from sde_diffusion.sampling import sample
from sde_diffusion.score import ScoreFn, score_and_fraction
from sde_diffusion.sde import SDE, VPSDE
from sde_diffusion.solvers import DDIM, EulerMaruyama, PerSampleODE, SeededNoise
from sde_diffusion.tensors import select
from sde_diffusion.verify.guidance import GUIDES, Labelled, exact_model, part
from tests.conftest import assert_mean, f64

MEANS, SHARES, STD = f64([[-1.0, 0.5], [1.0, 0.0], [0.3, 1.5]]), f64([0.5, 0.2, 0.3]), 0.4


def classes(sde: SDE) -> GaussianMixture:
    """p(x), whose parts are the classes."""
    return GaussianMixture(sde, SHARES, MEANS, torch.full_like(SHARES, STD))


@dataclass(frozen=True, eq=False)
class Counted:
    """A score function that notes the sizes of its batches."""

    inner: Labelled
    calls: list[int]

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls.append(len(x))
        return self.inner(x, t)

    def select(self, rows: Tensor) -> "Counted":
        return Counted(self.inner.select(rows), self.calls)


def counted(sde: SDE, calls: list[int]) -> Bind:
    return lambda labels: Counted(exact_model(classes(sde))(labels), calls)  # type: ignore[arg-type]


def guided(name: str, sde: SDE, labels: Tensor, *, conditional: bool = True, **options: Any) -> ScoreFn:
    guide = GUIDES[name](classes(sde))
    return GUIDANCES[name](**options).apply(
        exact_model(classes(sde)), labels, sde, conditional=conditional, guide=guide
    )


def states(count: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """x, t and labels."""
    x = torch.randn(count, 2, generator=generator(3), dtype=torch.float64)
    return x, torch.linspace(0.02, 0.9, count, dtype=torch.float64), torch.arange(count) % 3


@pytest.fixture(params=GUIDANCES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("scale", [-0.5, 0.0, 0.3, 1.0, 2.5])
def test_the_guided_score_is_that_of_the_tilted_density(name: str, sde: SDE, scale: float) -> None:
    """Of p_t(x|y)^w p_t(x)^{1−w}, by autograd; so all three kinds agree, up to what the classifier's gradient is."""
    x, t, labels = states()
    x.requires_grad_()
    tilted = sum(
        scale * part(classes(sde), k).log_prob(x[i : i + 1], t[i : i + 1])
        + (1 - scale) * classes(sde).log_prob(x[i : i + 1], t[i : i + 1])
        for i, k in enumerate(labels.tolist())
    )
    expected = torch.autograd.grad(tilted.sum(), x)[0]  # type: ignore[union-attr]
    found = guided(name, sde, labels, scale=scale)(x.detach(), t)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10 * float(expected.abs().max()))


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
def test_a_classifier_guides_a_model_without_classes_alike(sde: SDE, scale: float) -> None:
    x, t, labels = states()
    found = guided("classifier", sde, labels, conditional=False, scale=scale)(x, t)
    expected = guided("classifier_free", sde, labels, scale=scale)(x, t)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10 * float(expected.abs().max()))


def test_weight_one_is_the_model_with_its_label_bit_for_bit_and_zero_is_what_it_is_told_from(name: str) -> None:
    sde = VPSDE()
    x, t, labels = states()
    assert torch.equal(guided(name, sde, labels, scale=1.0)(x, t), exact_model(classes(sde))(labels)(x, t))
    none = exact_model(classes(sde))(torch.full_like(labels, -1))(x, t)
    if name == "classifier":
        assert torch.equal(guided(name, sde, labels, scale=0.0, conditional=False)(x, t), none)
    else:
        assert torch.equal(guided(name, sde, labels, scale=0.0)(x, t), none)


def test_outside_the_interval_there_is_no_guidance_and_inside_there_is(name: str) -> None:
    sde = VPSDE()
    x, t, labels = states(9)
    level = (-sde.half_log_snr(t)).exp()
    ends = (float(level[2]), float(level[5]))  # the upper end belongs to it
    found = guided(name, sde, labels, scale=3.0, interval=ends)(x, t)
    free, all_over = (guided(name, sde, labels, scale=scale)(x, t) for scale in (1.0, 3.0))
    inside = torch.tensor([3, 4, 5])
    outside = torch.tensor([0, 1, 2, 6, 7, 8])
    torch.testing.assert_close(found[inside], all_over[inside], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found[outside], free[outside], rtol=1e-12, atol=1e-12)
    assert (free - all_over).abs().amax(1)[1:].min() > 1e-3
    for time, expected in ((t[4], 3.0), (t[8], 1.0)):  # a batch at one time, bit for bit
        whole = guided(name, sde, labels, scale=3.0, interval=ends)(x, time.expand(9))
        assert torch.equal(whole, guided(name, sde, labels, scale=expected)(x, time.expand(9)))


def test_float32_times_are_on_the_side_that_they_say() -> None:
    sde = VPSDE()
    x, _, labels = states(2)
    t = torch.tensor([0.5, torch.nextafter(torch.tensor(0.5), torch.tensor(1.0))], dtype=torch.float32)
    level = math.exp(-float(sde.half_log_snr(f64(0.5))))
    found = guided("classifier_free", sde, labels, scale=3.0, interval=(0.1, level))(x.float(), t)
    free, all_over = (guided("classifier_free", sde, labels, scale=scale)(x.float(), t) for scale in (1.0, 3.0))
    assert torch.equal(found[0], all_over[0])
    assert torch.equal(found[1], free[1])


def test_what_an_evaluation_costs() -> None:
    sde, calls = VPSDE(), list[int]()
    x, t, labels = states(6)
    level = (-sde.half_log_snr(t)).exp()
    ends = (float(level[1]), float(level[3]))
    for options, expected in (
        ({"scale": 2.0}, [12]),
        ({"scale": 1.0}, [6]),
        ({"scale": 0.0}, [6]),
        ({"scale": 2.0, "interval": ends}, [4, 4]),  # four outside, two inside
        ({"scale": 1.0, "interval": ends}, [6]),
    ):
        calls.clear()
        ClassifierFree(**options).apply(counted(sde, calls), labels, sde, conditional=True)(x, t)  # type: ignore[arg-type]
        assert calls == expected, options


@pytest.mark.parametrize("interval", [None, (0.2, 2.0)])
def test_the_variance_is_that_of_what_is_wanted(name: str, interval: tuple[float, float] | None) -> None:
    sde = VPSDE()
    x, t, labels = states()
    score_fn = guided(name, sde, labels, scale=2.0, interval=interval)
    score, v = score_and_fraction(score_fn, x, t)
    assert torch.equal(score, score_fn(x, t))
    assert torch.equal(v, labels.double()[:, None].expand_as(x))
    none = guided("classifier_free", sde, labels, scale=0.0)
    assert (score_and_fraction(none, x, t)[1] == -1).all()
    alone = ClassifierFree(scale=2.0).apply(counted(sde, []), labels, sde, conditional=True)
    with pytest.raises(InputError, match="this score function gives the score alone"):
        score_and_fraction(alone, x, t)


@pytest.mark.parametrize("interval", [None, (0.2, 2.0)])
def test_selected_samples_keep_their_labels(name: str, interval: tuple[float, float] | None) -> None:
    sde = VPSDE()
    x, t, labels = states(9)
    whole = guided(name, sde, labels, scale=2.0, interval=interval)
    rows = torch.tensor([7, 0, 4])
    part = select(whole, rows)
    torch.testing.assert_close(part(x[rows], t[rows]), whole(x, t)[rows], rtol=1e-12, atol=1e-12)
    again = torch.tensor([2, 1])
    torch.testing.assert_close(
        select(part, again)(x[rows[again]], t[rows[again]]), whole(x, t)[rows[again]], rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("solver", [PerSampleODE(rtol=1e-4, atol=1e-4), EulerMaruyama(steps=10, grid=LogSNRGrid())])
@pytest.mark.parametrize("interval", [None, (0.2, 2.0)])
def test_sample_i_does_not_depend_on_its_batch(
    name: str, solver: PerSampleODE | EulerMaruyama, interval: tuple[float, float] | None
) -> None:
    sde, labels = VPSDE(), torch.tensor([0, 2, 1, 1, 0])

    def drawn(start: int, count: int) -> Tensor:
        score_fn = guided(name, sde, labels[start : start + count], scale=2.0, interval=interval)
        noise = SeededNoise(5, start=start, dtype=torch.float64)
        return sample(score_fn, sde, solver, (count, 2), noise=noise).x

    whole = drawn(0, 5)
    torch.testing.assert_close(torch.cat([drawn(0, 2), drawn(2, 3)]), whole, rtol=1e-9, atol=1e-9)
    assert torch.pdist(whole).min() > 1e-3


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_samples_of_two_gaussians_have_the_moments_of_the_third(sde: SDE, scale: float) -> None:
    """Of equal covariance: N(μ_1, s²)^w N(μ_0, s²)^{1−w} ∝ N(μ_0 + w (μ_1 − μ_0), s²), and so at every t."""
    low, high = f64([-0.3, 0.2]), f64([0.4, -0.1])
    ends = [GaussianMixture.gaussian(sde, mean, STD).score for mean in (low, high)]
    wanted = GaussianMixture.gaussian(sde, low + scale * (high - low), STD)
    score_fn = Autoguidance(scale=scale).apply(
        lambda _: ends[1], torch.full((4000,), -1), sde, conditional=False, guide=lambda _: ends[0]
    )
    x, t = torch.randn(4, 2, generator=generator(1), dtype=torch.float64), f64([1e-3, 0.1, 0.5, 1.0])
    torch.testing.assert_close(score_fn(x, t), wanted.score(x, t), rtol=1e-10, atol=1e-9)
    start = wanted.sample(4000, f64(1.0), generator=generator(2))
    noise = SeededNoise(4, dtype=torch.float64)
    solver = PerSampleODE(rtol=1e-5, atol=1e-5)
    x = sample(score_fn, sde, solver, (4000, 2), noise=noise, x_init=start, denoise=False).x
    for d in range(2):
        assert_mean(x[:, d], float(wanted.means[0, d]), f"mean {d}")
        assert_mean((x[:, d] - wanted.means[0, d]) ** 2, STD**2, f"variance {d}")


def test_guidance_strengthens_the_class() -> None:
    """With w = 4 more of the samples are nearest to their own mean."""
    sde, count = VPSDE(), 300
    labels = torch.arange(count) % 3
    shares = []
    for scale in (0.0, 1.0, 4.0):
        score_fn = guided("classifier_free", sde, labels, scale=scale)
        noise = SeededNoise(0, dtype=torch.float64)
        x = sample(score_fn, sde, DDIM(steps=30, grid=LogSNRGrid()), (count, 2), noise=noise).x
        shares.append(float((torch.cdist(x, MEANS).argmin(1) == labels).double().mean()))
    assert shares[0] < 0.6 < 0.85 < shares[1] <= shares[2]
    assert shares[2] > 0.99


def test_gradients_flow_through_a_classifier() -> None:
    """Where they are recorded, as for a divergence; inside `no_grad` nothing is."""
    sde = VPSDE()
    x, t, labels = states(3)
    score_fn = guided("classifier", sde, labels, scale=2.0)
    with torch.no_grad():
        assert not score_fn(x, t).requires_grad
    at = x.clone().requires_grad_()
    twin = x.clone().requires_grad_()
    for point, fn in ((at, score_fn), (twin, guided("classifier_free", sde, labels, scale=2.0))):
        fn(point, t).square().sum().backward()
    assert at.grad is not None
    assert twin.grad is not None
    torch.testing.assert_close(at.grad, twin.grad, rtol=1e-9, atol=1e-9 * float(twin.grad.abs().max()))
    assert not x.requires_grad


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": math.inf}, "`scale` must be a finite number, got inf"),
        ({"scale": math.nan}, "`scale` must be a finite number, got nan"),
        ({"interval": (2.0, 0.1)}, "`interval` must be two noise levels 0 ≤ low < high of σ/a, got [2.0, 0.1]"),
        ({"interval": (-1.0, 0.1)}, "got [-1.0, 0.1]"),
        ({"interval": (1.0,)}, "got [1.0]"),
        ({"interval": ()}, "got []"),
    ],
)
def test_bad_options_are_errors(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        GUIDANCES[name](**options)


def test_rows_say_what_they_need() -> None:
    for row in GUIDANCES.values():
        assert issubclass(row, Guidance)
        assert row.cost
        assert bool(row.guide) == hasattr(row(), "checkpoint")
