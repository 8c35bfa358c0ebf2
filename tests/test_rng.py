"""Random numbers as a function of keys."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from sde_diffusion.rng import BLOCK, SampleStream, derive_seed, draws_of, generator
from tests.conftest import assert_mean

DRAWS = ["normal", "uniform", "rademacher"]


def draw(kind: str, *keys: int, start: int, count: int, shape: tuple[int, ...] = (3,), times: int = 1) -> Tensor:
    """The last of `times` successive draws."""
    stream = SampleStream(*keys, start=start, count=count)
    return [getattr(stream, kind)(shape) for _ in range(times)][-1]


@pytest.mark.parametrize("kind", DRAWS)
@pytest.mark.parametrize("shape", [(), (3,), (2, 4, 3)])
@pytest.mark.parametrize(("start", "count"), [(0, 1), (5, 3), (BLOCK - 1, 2), (BLOCK, BLOCK), (10, 3 * BLOCK + 1)])
def test_a_sample_does_not_depend_on_its_batch(kind: str, shape: tuple[int, ...], start: int, count: int) -> None:
    whole = draw(kind, 7, start=0, count=5 * BLOCK, shape=shape, times=2)
    part = draw(kind, 7, start=start, count=count, shape=shape, times=2)
    assert part.shape == (count, *shape)
    assert torch.equal(part, whole[start : start + count])


def test_draws_are_some_rows_of_a_batch_or_by_a_generator_all_of_one() -> None:
    stream = SampleStream(1, start=5, count=3, total=20)
    assert draws_of(stream, 3) is stream
    assert (stream.start, stream.count, stream.total) == (5, 3, 20)
    assert SampleStream(1, start=5, count=3).total == 8
    whole = draws_of(generator(1), 4)
    assert (whole.start, whole.count, whole.total) == (0, 4, 4)
    rng = generator(1)
    assert torch.equal(whole.uniform((), torch.float64), torch.rand(4, generator=rng, dtype=torch.float64))
    assert torch.equal(whole.normal((2, 3)), torch.randn(4, 2, 3, generator=rng))


@pytest.mark.parametrize("kind", DRAWS)
def test_keys_samples_and_draws_differ(kind: str) -> None:
    many = {"start": 0, "count": 2 * BLOCK, "shape": (50,)}
    first = draw(kind, 1, 2, **many)
    for other in (
        draw(kind, 1, 3, **many),
        draw(kind, 2, 1, **many),
        draw(kind, 1, **many),
        draw(kind, 1, 2, times=2, **many),
    ):
        assert (first != other).any(1).all()
    assert len(first.unique(dim=0)) == 2 * BLOCK


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("kind", "expected"),
    [("normal", [0, 1, 0, 3]), ("uniform", [1 / 2, 1 / 3, 1 / 4, 1 / 5]), ("rademacher", [0, 1, 0, 1])],
)
def test_moments(kind: str, expected: list[float], dtype: torch.dtype) -> None:
    x = getattr(SampleStream(0, start=3, count=200), kind)((100,), dtype).flatten()
    assert x.dtype == dtype
    for power, moment in enumerate(expected, 1):
        if kind == "rademacher" and power % 2 == 0:
            assert (x**power == moment).all()
        else:
            assert_mean(x**power, moment, f"moment {power}")


def test_neighbouring_samples_are_uncorrelated() -> None:
    x = SampleStream(0, start=0, count=3 * BLOCK).normal((200,))
    for lag in (1, BLOCK):
        assert_mean((x[:-lag] * x[lag:]).flatten(), 0.0, f"lag {lag}")


def test_seeds_rarely_collide_in_the_bits_that_torch_keeps() -> None:
    """n keys in 32 bits collide n²/2³³ times, Poisson; here 9 ± 3."""
    side = 530
    seeds = {derive_seed(i, j) & 0xFFFFFFFF for i, j in itertools.product(range(side), repeat=2)}
    mean = side**4 / 2**33
    assert abs(side**2 - len(seeds) - mean) < 4 * math.sqrt(mean)


def test_a_seed_is_of_63_bits_and_ordered_in_its_keys() -> None:
    seeds = [derive_seed(*keys) for keys in [(), (0,), (0, 0), (1,), (0, 1), (1, 0), (-1,), (2**64 - 2,)]]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(2**64 + 5) == derive_seed(5)  # keys count modulo 2⁶⁴


def test_a_change_of_one_bit_changes_half_the_seed() -> None:
    flips = [
        torch.tensor([(derive_seed(3, key) ^ derive_seed(3, key ^ (1 << bit))) >> k & 1 for k in range(63)])
        for key in range(20)
        for bit in range(64)
    ]
    assert_mean(torch.stack(flips).double().mean(1), 0.5)


def test_published_seeds_stay() -> None:
    """Runs are reproduced from their seeds: a change here changes every published sample."""
    assert derive_seed(0) == 7070836380309218710
    assert SampleStream(0, start=0, count=1).normal((2,))[0].tolist() == pytest.approx(
        [-1.7542675733566284, -1.4218946695327759], rel=1e-6
    )


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    for kind in DRAWS:
        draw(kind, 0, start=0, count=3)
    torch.rand(3, generator=generator(1))
    assert torch.equal(torch.get_rng_state(), before)


def test_generators_are_fresh_and_keyed() -> None:
    first, again, other = (torch.rand(3, generator=generator(*keys)) for keys in [(1, 2), (1, 2), (2, 1)])
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
