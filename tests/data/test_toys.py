"""Points in the plane: they lie where the formulas say."""

import math

import pytest
import torch

from sde_diffusion.data.sources.toys import Checkerboard, EightGaussians, Rings, SwissRoll, Toy, TwoMoons
from sde_diffusion.errors import InputError
from tests.conftest import assert_mean

TOYS = [TwoMoons, SwissRoll, Checkerboard, EightGaussians, Rings]


@pytest.mark.parametrize("toy", TOYS)
def test_model_coordinates_are_standardised(toy: type[Toy]) -> None:
    train = toy().read("train")
    x = train.spec.to_model(train.values)
    assert abs(float(x.mean())) < 1e-3
    assert float(x.std()) == pytest.approx(1, abs=1e-3)
    assert (len(train), len(toy().read("test"))) == (50_000, 10_000)


@pytest.mark.parametrize("toy", TOYS)
def test_a_seed_is_a_data_set(toy: type[Toy]) -> None:
    a, b, c = (toy(train=50, test=10, seed=seed).read("train").values for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert not torch.equal(a[:10], toy(train=50, test=10, seed=1).read("test").values)


def test_the_checkerboard_is_uniform_on_the_dark_squares() -> None:
    points = Checkerboard().read("train").values
    squares = points.floor().long() + 2
    assert (squares.sum(1) % 2 == 0).all()
    counts = (4 * squares[:, 0] + squares[:, 1]).bincount(minlength=16)
    dark = counts[counts > 0].double() / len(points)
    assert len(dark) == 8
    assert ((dark - 1 / 8).abs() < 4 * math.sqrt(7 / 64 / len(points))).all()


def test_eight_gaussians_have_their_means_and_variance() -> None:
    train = EightGaussians().read("train")
    assert train.labels is not None
    for k in range(8):
        points = train.values[train.labels == k]
        mean = 2 * torch.tensor([math.cos(k * math.pi / 4), math.sin(k * math.pi / 4)])
        for axis in range(2):
            assert_mean(points[:, axis], float(mean[axis]), f"component {k}")
        assert_mean((points - mean).square().flatten(), 0.04, f"variance of component {k}")


def test_rings_and_moons_lie_around_their_circles() -> None:
    """|k e + 0.1 z|² has mean k² + 0.02."""
    rings = Rings().read("train")
    moons = TwoMoons().read("train")
    assert rings.labels is not None
    assert moons.labels is not None
    for k in range(3):
        assert_mean(rings.values[rings.labels == k].square().sum(1), (k + 1) ** 2 + 0.02, f"ring {k}")
    centres = torch.tensor([[0.0, 0.0], [1.0, 0.5]])[moons.labels]
    assert_mean((moons.values - centres).square().sum(1), 1.02, "moons")
    height = (moons.values - centres)[:, 1] * (1 - 2 * moons.labels)
    assert_mean(height, 2 / math.pi, "moons")


def test_the_swiss_roll_has_the_radius_of_its_formula() -> None:
    """E r²/25 + 0.02 with r uniform on 3π/2 … 9π/2: (r₁² + r₁r₂ + r₂²)/3 = 13 (3π/2)²/3."""
    points = SwissRoll().read("train").values
    assert_mean(points.square().sum(1), 13 / 3 * (1.5 * math.pi) ** 2 / 25 + 0.02, "swiss roll")


@pytest.mark.parametrize(
    ("options", "message"),
    [({"train": 1}, "`data.train` must be ≥ 2, got 1"), ({"test": 0}, "`data.test` must be > 0, got 0")],
)
def test_impossible_sizes_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TwoMoons(**options).load("train")
