"""Batches follow from (seed, k) alone: resumed, streamed, read by workers or in another batch size."""

from collections.abc import Iterator
from itertools import islice

import pytest
import torch
from torch import Tensor

from sde_diffusion.data import Batch, Dataset, DataSpec, TensorDataset, sweep, training_batches
from sde_diffusion.errors import InputError

N = 23
IMAGES = DataSpec("images", (1, 2, 3), levels=256, classes=tuple("ab"))
VECTORS = DataSpec("vectors", (2,), levels=None)


def images() -> TensorDataset:
    values = torch.arange(N * 6, dtype=torch.uint8).reshape(N, 1, 2, 3)
    return TensorDataset(IMAGES, values, torch.arange(N) % 2)


class Streamed(Dataset):
    """Another set, as if it lay on the disk; example `broken` cannot be read."""

    def __init__(self, base: TensorDataset, broken: int = -1) -> None:
        self.spec, self.base, self.broken = base.spec, base, broken

    def __len__(self) -> int:
        return len(self.base)

    def fetch(self, indices: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.broken in indices.tolist():
            raise InputError(f"cannot read image {self.broken}.png")
        return self.base.fetch(indices)


def same(a: Batch, b: Batch) -> bool:
    assert a.label is not None
    assert b.label is not None
    return torch.equal(a.x, b.x) and torch.equal(a.label, b.label)


def take(count: int, batches: Iterator[Batch]) -> list[Batch]:
    return list(islice(batches, count))


@pytest.mark.parametrize("stream", [False, True])
def test_processes_that_part_the_rows_see_together_what_one_sees(stream: bool) -> None:
    dataset: Dataset = Streamed(images()) if stream else images()
    whole = take(4, training_batches(dataset, batch=6, seed=3, flip=True))
    parts = [take(4, training_batches(dataset, batch=6, seed=3, flip=True, rows=r)) for r in (range(2), range(2, 6))]
    for batch, *shares in zip(whole, *parts, strict=True):
        assert torch.equal(batch.x, torch.cat([share.x for share in shares]))
        assert batch.label is not None
        assert torch.equal(batch.label, torch.cat([share.label for share in shares if share.label is not None]))


@pytest.mark.parametrize("batch", [5, 23, 60])
@pytest.mark.parametrize("start", [1, 4, 11])
def test_a_resumed_run_sees_what_the_first_run_saw(batch: int, start: int) -> None:
    whole = take(start + 6, training_batches(images(), batch=batch, seed=3, flip=True))
    rest = take(6, training_batches(images(), batch=batch, seed=3, flip=True, start=start))
    assert all(same(a, b) for a, b in zip(whole[start:], rest, strict=True))
    assert {len(b.x) for b in whole} == {batch}


def test_another_seed_gives_other_batches() -> None:
    a, b = (take(1, training_batches(images(), batch=8, seed=seed))[0] for seed in (0, 1))
    assert not same(a, b)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 2])
def test_streaming_gives_the_same_batches(workers: int) -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    memory = take(7, training_batches(images(), batch=5, seed=3, flip=True, start=2))
    stream = take(7, training_batches(Streamed(images()), batch=5, seed=3, flip=True, start=2, workers=workers))
    assert all(same(a, b) for a, b in zip(memory, stream, strict=True))
    assert torch.equal(torch.get_rng_state(), state), "the global generator was used"


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_file_is_one_clear_line(workers: int) -> None:
    batches = training_batches(Streamed(images(), broken=7), batch=5, seed=0, workers=workers)
    with pytest.raises(InputError, match=r"^cannot read image 7\.png$"):
        take(5, batches)


def test_flips_mirror_whole_images_half_the_time() -> None:
    dataset = images()
    batch = take(1, training_batches(dataset, batch=40 * N, seed=0, flip=True, dequantise=False))[0]
    plain = take(1, training_batches(dataset, batch=40 * N, seed=0, dequantise=False))[0]
    flipped = (batch.x == plain.x.flip(-1)).flatten(1).all(1)
    assert ((batch.x == plain.x).flatten(1).all(1) ^ flipped).all()
    assert abs(flipped.double().mean() - 0.5) < 4 * 0.5 / (40 * N) ** 0.5


def test_dequantisation_is_uniform_within_the_bin() -> None:
    dataset = images()
    batch = take(1, training_batches(dataset, batch=40 * N, seed=0))[0]
    centre = take(1, training_batches(dataset, batch=40 * N, seed=0, dequantise=False))[0]
    u = (batch.x - centre.x).double().flatten() * 128  # in bins
    assert u.abs().max() <= 0.5 + 1e-5
    assert abs(u.mean()) < 4 * 12**-0.5 / len(u) ** 0.5
    assert abs(u.square().mean() - 1 / 12) < 4 * 180**-0.5 / len(u) ** 0.5  # var u² = 1/180


def test_every_batch_and_seed_has_its_own_noise() -> None:
    """Many equal examples: what differs between batches is the noise alone."""
    dataset = TensorDataset(DataSpec("grey", (1, 4, 4), levels=256), torch.full((8, 1, 4, 4), 7, dtype=torch.uint8))
    batches = take(2, training_batches(dataset, batch=8, seed=0)) + take(1, training_batches(dataset, batch=8, seed=1))
    batches += [batch for seed in (0, 1) for _, batch in sweep(dataset, batch=8, seed=seed)]
    examples = torch.cat([batch.x for batch in batches]).flatten(1)
    assert len(examples.unique(dim=0)) == len(examples) == 40


def test_continuous_data_is_left_alone() -> None:
    y = torch.randn(N, 2, generator=torch.Generator().manual_seed(0))
    dataset = TensorDataset(VECTORS, y)
    assert torch.equal(torch.cat([b.x for _, b in sweep(dataset, batch=4, seed=0)]), y)
    batch = take(1, training_batches(dataset, batch=N, seed=0))[0]
    assert batch.label is None
    assert torch.equal(batch.x.sort(0).values, y.sort(0).values)


def swept(dataset: Dataset, batch: int, limit: int | None = None, start: int = 0) -> Batch:
    parts = list(sweep(dataset, batch=batch, seed=5, limit=limit, start=start))
    position = start
    for first, part in parts:
        assert first == position
        position += len(part.x)
    return Batch(torch.cat([b.x for _, b in parts]), torch.cat([b.label for _, b in parts if b.label is not None]))


@pytest.mark.parametrize("batch", [1, 7, 23, 100])
def test_a_sweep_covers_everything_once_whatever_the_batch(batch: int) -> None:
    dataset = images()
    found, expected = swept(dataset, batch), swept(dataset, 4)
    assert same(found, expected)
    assert torch.equal(IMAGES.from_model(found.x), dataset.values)
    assert same(swept(Streamed(dataset), batch), expected)


def test_a_sweep_can_start_and_stop_anywhere() -> None:
    whole = swept(images(), 4)
    assert whole.label is not None
    assert same(swept(images(), 3, limit=8, start=9), Batch(whole.x[9:17], whole.label[9:17]))
    assert same(swept(images(), 3, limit=99, start=20), Batch(whole.x[20:], whole.label[20:]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "`batch` must be > 0, got 0"),
        ({"batch": 4, "start": -1}, "`start` must be ≥ 0, got -1"),
        ({"batch": 4, "workers": -1}, "`workers` must be ≥ 0, got -1"),
    ],
)
def test_impossible_batches_are_refused_at_once(options: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        training_batches(images(), seed=0, **options)  # type: ignore[arg-type]


def test_only_images_are_flipped() -> None:
    dataset = TensorDataset(VECTORS, torch.zeros(N, 2))
    with pytest.raises(InputError, match=r"`flip` must be false for vectors: it mirrors images .*, got shape \(2,\)"):
        training_batches(dataset, batch=4, seed=0, flip=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "`batch` must be > 0, got 0"),
        ({"batch": 4, "limit": 0}, "`limit` must be > 0, got 0"),
        ({"batch": 4, "start": N}, "`start` must be from 0 to 22, got 23"),
    ],
)
def test_impossible_sweeps_are_refused_at_once(options: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        sweep(images(), seed=0, **options)  # type: ignore[arg-type]
