"""The order of training: a permutation at every size, and as uniform as permutations drawn at random."""

import math
import tracemalloc
from itertools import islice

import numpy as np
import pytest
import torch

from sde_diffusion.data.order import MAX_LENGTH, TrainingOrder, training_order
from sde_diffusion.errors import InputError


def epochs(length: int, count: int, *, seed: int = 0) -> torch.Tensor:
    """The first `count` epochs, (count, length)."""
    return TrainingOrder(length, seed=seed).rows(torch.arange(length * count).reshape(count, length))


def assert_uniform(counts: torch.Tensor) -> None:
    """Counts of equally probable cells: Σ(n − m)²/m has mean K − 1 and, of many draws, variance 2 (K − 1)."""
    mean, freedom = counts.double().mean(), counts.numel() - 1
    assert mean >= 5, "enough draws for the variance"
    chi2 = (counts - mean).square().sum() / mean
    assert abs(chi2 - freedom) < 4 * math.sqrt(2 * freedom + freedom / mean)


def test_every_epoch_of_every_small_length_is_a_permutation() -> None:
    for length in range(1, 131):
        assert torch.equal(epochs(length, 3).sort(-1).values, torch.arange(length).expand(3, -1)), length


@pytest.mark.parametrize("length", [4095, 4096, 4097, 99_991, 2**18 + 1])
def test_large_lengths_are_permuted(length: int) -> None:
    assert torch.equal(epochs(length, 1)[0].sort().values, torch.arange(length))


@pytest.mark.parametrize("length", [3, 4, 5, 6])
def test_all_orders_of_a_few_examples_are_equally_frequent(length: int) -> None:
    """Pair order, fixed points and parity included."""
    found = epochs(length, 60 * math.factorial(length) if length < 5 else 40_000)
    codes = (found * length ** torch.arange(length)).sum(1)
    counts = codes.unique(return_counts=True)[1]
    assert len(counts) == math.factorial(length)
    assert_uniform(counts)


def test_odd_permutations_of_an_odd_square_come_as_often_as_even_ones() -> None:
    found, count = epochs(9, 2000), 2000
    i, j = torch.triu_indices(9, 9, 1)
    odd = (found[:, i] > found[:, j]).sum(1) % 2
    assert abs(int(odd.sum()) - count / 2) < 4 * math.sqrt(count) / 2


@pytest.mark.parametrize("length", [10, 30, 49])
@pytest.mark.parametrize("places", [(0, 1), (0, -1), (3, 4)])
def test_pairs_of_places_hold_all_pairs_of_examples_equally(length: int, places: tuple[int, int]) -> None:
    count = 20_000
    at = torch.tensor([place % length for place in places])
    first, second = TrainingOrder(length, seed=2).rows(torch.arange(count)[:, None] * length + at).T
    table = torch.zeros(length, length).index_put_((first, second), torch.ones(count), accumulate=True)
    assert table.diagonal().sum() == 0
    assert_uniform(table[~torch.eye(length, dtype=torch.bool)])


@pytest.mark.parametrize("length", [1000, 65_537])
def test_an_order_looks_like_a_random_one(length: int) -> None:
    """Fixed points are Poisson of mean 1; the correlations of N ranks have variance 1/(N − 1), or 1/N at a lag."""
    count = 400_000 // length
    found = epochs(length, count)
    fixed = (found == torch.arange(length)).sum()
    assert abs(fixed - count) < 4 * math.sqrt(count)
    ranks = (found.double() - (length - 1) / 2) / math.sqrt((length**2 - 1) / 12)
    places = (torch.arange(length) - (length - 1) / 2) / math.sqrt((length**2 - 1) / 12)
    error = 4 / math.sqrt(count * (length - 1))
    assert abs((ranks * places).mean()) < error
    assert abs((ranks[:, 1:] * ranks[:, :-1]).mean() + 1 / length) < error
    assert abs((ranks[:-1] * ranks[1:]).mean()) < error * math.sqrt(count / (count - 1)), "from epoch to epoch"
    rises = (found[:, 1:] > found[:, :-1]).sum(1).double()
    assert abs(rises.mean() - (length - 1) / 2) < 4 * math.sqrt((length + 1) / 12 / count)  # Eulerian numbers


def test_an_order_follows_from_seed_and_epoch() -> None:
    a, b = epochs(50, 2, seed=1), epochs(50, 2, seed=2)
    assert torch.equal(a, epochs(50, 2, seed=1))
    assert not torch.equal(a[0], a[1])
    assert not torch.equal(a[0], b[0])


@pytest.mark.parametrize("batch", [1, 5, 23, 60])
@pytest.mark.parametrize("start", [0, 1, 4, 11])
def test_batches_are_consecutive_pieces_of_the_epochs(batch: int, start: int) -> None:
    found = torch.cat(list(islice(training_order(23, batch=batch, seed=0, start=start), 9)))
    whole = epochs(23, 60).flatten()
    assert torch.equal(found, whole[start * batch : (start + 9) * batch])


def test_parts_of_batches_make_the_batches() -> None:
    whole = islice(training_order(23, batch=7, seed=0, start=3), 2000)
    parts = [islice(training_order(23, batch=7, seed=0, start=3, rows=p), 2000) for p in (range(3), range(3, 7))]
    assert all(torch.equal(torch.cat(pair), batch) for *pair, batch in zip(*parts, whole, strict=True))


def test_a_thousand_million_examples_cost_no_memory_anywhere() -> None:
    length = 1_000_000_000
    order = TrainingOrder(length, seed=0)
    tracemalloc.start()
    found = torch.cat([order.rows(torch.arange(at, at + 4096)) for at in (0, length - 2048, 7 * length + 5)])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 32 * 4096 * 8
    assert len(found[:6144].unique()) == 6144, "an epoch repeats nothing"
    assert 0 <= int(found.min()) <= int(found.max()) < length
    counts = torch.from_numpy(np.bincount((found // (length // 64)).clamp(max=63).numpy(), minlength=64))
    assert_uniform(counts)


@pytest.mark.parametrize("length", [0, MAX_LENGTH + 1])
def test_impossible_lengths_are_refused(length: int) -> None:
    with pytest.raises(InputError, match=f"`length` must be from 1 to {MAX_LENGTH}, got {length}"):
        TrainingOrder(length, seed=0)
