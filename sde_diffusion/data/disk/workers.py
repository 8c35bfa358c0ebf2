"""Processes that read ahead what is on the disk. They draw no random numbers, so their number changes no batch."""

import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from sde_diffusion.data.dataset import Dataset, Raw
from sde_diffusion.errors import InputError, RunError

MOST = 8  # workers that are started unasked


def choose_workers(workers: int | None) -> int:
    """As many as asked for; or this rank's share of the cores, less one for itself, 1 to 8."""
    if workers is not None:
        return workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    here = os.environ.get("LOCAL_WORLD_SIZE", "1")  # processes that torchrun started on this machine
    return max(1, min(MOST, cores // max(1, int(here) if here.isdecimal() else 1) - 1))


def read_ahead(dataset: Dataset, order: Iterator[Tensor], workers: int, *, pin: bool) -> Iterator[Raw]:
    """The examples at each of the indices, read by so many workers, two batches ahead each; 0 for this process itself.

    The workers live as long as the iterator. They leave Ctrl-C to this process, and end with it.

    Raises:
        InputError: A file is broken; the message names it.
        RunError: A worker was killed.
    """
    loader: DataLoader[Raw | InputError] = DataLoader(
        _Reader(dataset),
        batch_size=None,  # the sampler's items are whole batches
        sampler=order,
        num_workers=workers,
        collate_fn=_unchanged,
        pin_memory=pin,
        generator=torch.Generator(),  # or the loader draws from the global one
        worker_init_fn=_start,
    )
    batches: Iterator[Raw | InputError] | None = None
    while True:
        try:
            if batches is None:
                batches = _started(loader)
            item = next(batches)
        except StopIteration:
            return
        except (RuntimeError, OSError, EOFError) as error:
            if workers == 0 or not _tells_of_a_death(error):
                raise
            raise RunError(
                f"a process that reads the data was killed ({' '.join(str(error).split())}); memory, or shared memory "
                f"in /dev/shm, may have run out: lower training.workers, 0 for none, and resume the run"
            ) from error
        if isinstance(item, InputError):
            raise item
        yield item


def _started(loader: "DataLoader[Raw | InputError]") -> Iterator[Raw | InputError]:
    """Its batches, without the handler by which torch tells of a worker's death: it raises wherever that finds us, in
    the midst of a step or where nobody hears. Without it torch sees the death as we wait for a batch, within 5 s."""
    before = signal.getsignal(signal.SIGCHLD)
    batches = iter(loader)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)
    return batches


def _tells_of_a_death(error: RuntimeError | OSError | EOFError) -> bool:
    """Whether torch, or the connection to a worker, says that it is gone; not what a living worker raised."""
    text = str(error)
    if text.startswith("Caught "):
        return False
    return not isinstance(error, RuntimeError) or "DataLoader worker" in text or "Pin memory thread" in text


class _Reader(TorchDataset[Raw | InputError]):
    """Reads a whole batch at a time in a worker, and hands an error back as a value: torch would bury its message."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset

    def __getitem__(self, indices: Tensor) -> Raw | InputError:
        try:
            return self._dataset.raw(indices)
        except InputError as error:
            return error


def _unchanged(item: Any) -> Any:
    return item


def _start(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # sent to all by a terminal: the run ends with the step in hand
    torch.set_num_threads(1)
