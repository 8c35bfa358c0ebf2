"""Batches as index computations: which examples batch k holds, and its noise, follow from (seed, k) alone.

Nothing has to be saved to resume a run, and data held in memory and data streamed by workers give the same batches.
"""

from collections.abc import Iterator

import torch

from sde_diffusion.data.dataset import Batch, Dataset, Raw
from sde_diffusion.data.disk.workers import choose_workers, read_ahead
from sde_diffusion.data.order import training_order
from sde_diffusion.errors import require, require_kind, require_positive
from sde_diffusion.rng import SampleStream

# purposes of random numbers
_FLIP, _NOISE, _SWEEP, _LATENT, _SWEPT_LATENT = 0xDA7A02, 0xDA7A03, 0xDA7A04, 0xDA7A05, 0xDA7A06


def training_batches(
    dataset: Dataset,
    *,
    batch: int,
    seed: int,
    start: int = 0,
    device: torch.device | str = "cpu",
    flip: bool = False,
    dequantise: bool = True,
    workers: int | None = 0,
    rows: range | None = None,
) -> Iterator[Batch]:
    """The batches `start`, `start` + 1, … of training, without end.

    Batch k is a function of (seed, k): a run that starts at k sees what a run from 0 sees from k on. Its row i is one
    of (seed, k, i) and B: processes that part the rows among them see together what one sees.

    Args:
        batch: Examples per batch B.
        flip: Mirror each image left to right with probability ½.
        dequantise: Add uniform noise u to discrete values; otherwise they sit at the centres of their bins.
        workers: Processes that read ahead where the set is on the disk, None for as many as the machine has cores to
            spare; unused for one in memory.
        rows: Which rows of each batch are wanted, one after another; None for all.

    Raises:
        InputError: `batch` ≤ 0, `start` or `workers` < 0, flips of data that is not images; later, a broken file.
    """
    require_kind("dataset", dataset, Dataset, "TensorDataset(Continuous((2,)), points)")
    require_positive(batch=batch)
    require(start >= 0, f"`start` must be ≥ 0, got {start}")
    require(workers is None or workers >= 0, f"`workers` must be ≥ 0, got {workers}")
    spec = dataset.spec
    require(
        not flip or spec.is_image,
        f"`flip` must be false for {spec.name}: it mirrors images (1 or 3, H, W), got shape {spec.shape}",
    )
    rows = range(batch) if rows is None else rows
    order = training_order(len(dataset), batch=batch, seed=seed, start=start, rows=rows)
    on_cuda = torch.device(device).type == "cuda"
    raw: Iterator[Raw]
    if dataset.in_memory:
        raw = map(dataset.to(device).raw, order)
    else:
        raw = read_ahead(dataset, order, choose_workers(workers), pin=on_cuda)
        raw = _copied(raw, torch.device(device)) if on_cuda else raw

    def draws(purpose: int, k: int) -> SampleStream:
        return SampleStream(seed, purpose, k, start=rows.start, count=len(rows), total=batch, device=device)

    def prepare(k: int, stored: Raw) -> Batch:
        values = stored.values.to(device)
        if stored.std is not None:
            values = values + stored.std.to(device) * draws(_LATENT, k).normal(spec.shape)
        if flip:
            coin = draws(_FLIP, k).uniform(()) < 0.5
            values = torch.where(coin.reshape(-1, 1, 1, 1), values.flip(-1), values)
        u = None
        if dequantise and spec.levels is not None:
            u = draws(_NOISE, k).uniform(spec.shape)
        return Batch(spec.to_model(values, u), None if stored.label is None else stored.label.to(device))

    return (prepare(k, stored) for k, stored in enumerate(raw, start))


def _copied(raw: Iterator[Raw], device: torch.device) -> Iterator[Raw]:
    """Pinned examples on a CUDA device, copied beside what the device computes meanwhile; no waiting."""
    beside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    for stored in raw:
        with torch.cuda.stream(beside):
            values, *rest = (None if part is None else part.to(device, non_blocking=True) for part in stored)
        assert values is not None
        moved = Raw(values, *rest)
        current = torch.cuda.current_stream(device)
        current.wait_stream(beside)
        for part in moved:
            if part is not None:
                part.record_stream(current)  # its memory is not to be used anew before the step is through
        yield moved


def sweep(
    dataset: Dataset,
    *,
    batch: int,
    seed: int,
    device: torch.device | str = "cpu",
    dequantise: bool = True,
    limit: int | None = None,
    start: int = 0,
) -> Iterator[tuple[int, Batch]]:
    """Every example once, in order, the last ones in a smaller batch; what example i gets does not depend on `batch`.

    Args:
        batch: Examples per batch, at most.
        dequantise: Add uniform noise u, keyed by (seed, i), to discrete values; otherwise the centres of the bins.
        limit: Number of examples to go through; None for all.
        start: Index of the first.

    Returns:
        Pairs of the index of a batch's first example and the batch.

    Raises:
        InputError: `batch` or `limit` ≤ 0, `start` outside the set; later, a broken file.
    """
    require_kind("dataset", dataset, Dataset, "TensorDataset(Continuous((2,)), points)")
    require_positive(batch=batch, **({} if limit is None else {"limit": limit}))
    require(0 <= start < len(dataset), f"`start` must be from 0 to {len(dataset) - 1}, got {start}")
    stop = len(dataset) if limit is None else min(len(dataset), start + limit)
    spec = dataset.spec

    def read(first: int) -> Batch:
        count = min(batch, stop - first)
        values, label, std = dataset.raw(torch.arange(first, first + count))
        values, u = values.to(device), None
        if std is not None:
            normal = SampleStream(seed, _SWEPT_LATENT, start=first, count=count, device=device).normal(spec.shape)
            values = values + std.to(device) * normal
        if dequantise and spec.levels is not None:
            u = dequantisation_stream(seed, start=first, count=count, device=device).uniform(spec.shape)
        return Batch(spec.to_model(values, u), None if label is None else label.to(device))

    return ((first, read(first)) for first in range(start, stop, batch))


def dequantisation_stream(seed: int, *, start: int, count: int, device: torch.device | str = "cpu") -> SampleStream:
    """Random numbers of the examples `start` … `start` + `count` − 1; their first uniform draw is the u of `sweep`."""
    return SampleStream(seed, _SWEEP, start=start, count=count, device=device)
