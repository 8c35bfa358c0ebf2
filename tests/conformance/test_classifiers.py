"""What every classifier network must satisfy, and what the noise-aware classifier makes of it."""

import pytest
import torch
from torch import Tensor, nn

from sde_diffusion.classifier import NoisyClassifier, cross_entropy
from sde_diffusion.errors import InputError
from sde_diffusion.networks import CLASSIFIERS
from sde_diffusion.oracle import GaussianMixture
from sde_diffusion.rng import generator
from sde_diffusion.sde import SDE
from sde_diffusion.tensors import select
from tests.conformance.test_networks import awake
from tests.conftest import f64

SHAPE, CLASSES = (2, 9, 6), 3
SMALL = {"encoder": {"channels": 8, "multipliers": (1, 2)}, "mlp": {"width": 16}}


@pytest.fixture(params=CLASSIFIERS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def build(name: str, **options: object) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return CLASSIFIERS[name](SHAPE, classes=CLASSES, **SMALL.get(name, {}) | options).eval()


def batch(count: int = 4) -> tuple[Tensor, Tensor]:
    x = torch.randn(count, *SHAPE, generator=generator(2), dtype=torch.float64)
    return x, torch.linspace(0.01, 0.9, count, dtype=torch.float64)


def test_all_classes_are_alike_at_the_start(name: str, sde: SDE) -> None:
    x, t = batch()
    found = NoisyClassifier(build(name), sde)(x.float(), t.float())
    torch.testing.assert_close(found, torch.full((4, CLASSES), 1 / CLASSES).log())


def test_every_sample_has_probabilities_of_its_own(name: str, sde: SDE) -> None:
    """They sum to 1, in double too; they depend on x and noise level, and on no batch mate."""
    classifier = NoisyClassifier(awake(build(name)), sde)
    x, t = batch()
    whole = classifier(x, t)
    assert whole.dtype == torch.float64
    torch.testing.assert_close(whole.exp().sum(1), torch.ones(4, dtype=torch.float64), rtol=1e-10, atol=0)
    torch.testing.assert_close(torch.cat([classifier(x[i : i + 1], t[i]) for i in range(4)]), whole)
    for other in (classifier(x + 1, t), classifier(x, t.flip(0))):
        assert (whole - other).abs().amax(1).min() > 1e-4
    labels = torch.tensor([2, 0, 1, 1])
    bound = classifier.bind(labels)
    assert torch.equal(bound(x, t), whole[torch.arange(4), labels])
    rows = torch.tensor([3, 0])
    torch.testing.assert_close(select(bound, rows)(x[rows], t[rows]), whole[rows, labels[rows]])


@pytest.mark.parametrize("shape", [(1, 8), (2, 5, 7, 3)])
def test_series_and_volumes_are_classified(name: str, shape: tuple[int, ...]) -> None:
    net = CLASSIFIERS[name](shape, classes=CLASSES, **SMALL[name])
    assert net(torch.ones(2, *shape), torch.ones(2)).shape == (2, CLASSES)


@pytest.mark.parametrize("wrong", [[0, 3], [-1, 2]])
def test_a_label_that_is_no_class_is_an_error(name: str, sde: SDE, wrong: list[int]) -> None:
    bad = 3 if 3 in wrong else -1
    with pytest.raises(InputError, match=f"`label` must be from 0 to 2 for the classifier, got {bad}"):
        NoisyClassifier(build(name), sde).bind(torch.tensor(wrong))


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("encoder", {"channels": 3}, "`channels` must be even and ≥ 4, got 3"),
        ("encoder", {"multipliers": ()}, "`multipliers` must be numbers > 0"),
        ("encoder", {"dropout": 1.0}, r"`dropout` must be in \[0, 1\), got 1.0"),
        ("mlp", {"width": 5}, "`width` must be even and ≥ 4, got 5"),
        ("mlp", {"depth": 0}, "`depth` must be > 0, got 0"),
    ],
)
def test_bad_options_are_errors(kind: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(kind, **options)
    with pytest.raises(InputError, match="`classes` must be ≥ 2 to tell apart, got 1"):
        CLASSIFIERS[kind](SHAPE, classes=1)


def test_the_truth_has_the_least_cross_entropy(sde: SDE) -> None:
    """Of all classifiers Bayes' rule is the best at each t: any other is worse by a Kullback–Leibler divergence ≥ 0."""
    means, shares = f64([[-0.3], [0.2]]), f64([0.4, 0.6])
    density = GaussianMixture(sde, shares, means, f64([0.3, 0.3]))
    parts = [GaussianMixture.gaussian(sde, mean, 0.3) for mean in means]

    class Bayes(nn.Module):
        def __init__(self, tilt: float) -> None:
            super().__init__()
            self.tilt = tilt

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            joint = torch.stack([part.log_prob(x, t) + w.log() for part, w in zip(parts, shares, strict=True)], 1)
            return (joint + self.tilt * f64([0.0, 1.0])).log_softmax(1)

    draws = generator(1)
    label = torch.multinomial(shares, 4000, replacement=True, generator=draws)
    x0 = means[label] + 0.3 * torch.randn(4000, 1, generator=draws, dtype=torch.float64)
    eps = torch.randn(4000, 1, generator=draws, dtype=torch.float64)
    for time in (0.05, 0.4):
        t = torch.full((4000,), time, dtype=torch.float64)
        best, low, high = (cross_entropy(Bayes(tilt), sde, x0, label, t, eps) for tilt in (0.0, -1.0, 1.0))
        for other in (low, high):
            worse = other - best
            assert worse.mean() > 4 * worse.std() / 4000**0.5
        exact = density.log_prob(sde.perturb(x0, t, eps), t)
        joint = torch.stack([parts[k].log_prob(sde.perturb(x0, t, eps), t) + shares[k].log() for k in range(2)], 1)
        expected = exact - joint[torch.arange(4000), label]
        torch.testing.assert_close(best, expected, rtol=1e-10, atol=1e-10)
