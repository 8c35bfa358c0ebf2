"""Several processes on one task, as `torchrun` starts them: who is who, and what they tell each other.

A process is a *rank*. Without torchrun there is one, `ALONE`, for which everything here is free. The ranks meet by
gloo on the CPU and by NCCL on CUDA (with gloo beside it for what lies on the CPU). All collectives must be called by
every rank, in the same order.
"""

import os
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from sde_diffusion.errors import InputError, RunError, ToldError, require, require_positive

TIMEOUT = 1800.0  # seconds that a rank waits for the others
LOST = ("gloo", "nccl", "connection closed by peer", "connection reset by peer", "broken pipe", "timed out")

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """The place of this process among all.

    Attributes:
        rank: Its number, from 0.
        size: Number of processes.
        local: Its number on this machine: which of the machine's GPUs is its own.
    """

    rank: int
    size: int
    local: int

    @property
    def main(self) -> bool:
        """Whether this is the one that writes files and speaks to the user."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        """Whether there is no other."""
        return self.size == 1

    def device(self, device: torch.device) -> torch.device:
        """The device of this rank, where the user asked for `device`: of several GPUs its own."""
        return torch.device("cuda", self.local) if device.type == "cuda" and not self.alone else device

    def rows(self, total: int) -> range:
        """The rows of a batch of `total` that are this rank's; `total` is a multiple of `size`."""
        count = total // self.size
        return range(self.rank * count, (self.rank + 1) * count)

    def barrier(self) -> None:
        """Wait for all."""
        self.highest(0)

    def share(self, value: T) -> T:
        """The value that rank 0 gives, on every rank; what the others give is not looked at."""
        if self.alone:
            return value
        held: list[Any] = [value if self.main else None]
        with told_of_loss():
            dist.broadcast_object_list(held, src=0)
        shared: T = held[0]
        return shared

    def collect(self, value: T) -> list[T]:
        """The values of all ranks, in their order, on every rank."""
        if self.alone:
            return [value]
        held: list[Any] = [None] * self.size
        with told_of_loss():
            dist.all_gather_object(held, value)
        return held

    def gather(self, rows: Tensor) -> Tensor:
        """The rows (B, *D) of all ranks as one tensor (size · B, *D), in their order, on every rank; no gradient."""
        if self.alone:
            return rows
        rows = rows.detach().contiguous()
        parts = [torch.empty_like(rows) for _ in range(self.size)]
        with told_of_loss():
            dist.all_gather(parts, rows)
        return torch.cat(parts)

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all ranks, of the shape of `value`, on every rank; no gradient."""
        if self.alone:
            return value
        total = value.detach().clone()
        with told_of_loss():
            dist.all_reduce(total)
        return total

    def highest(self, value: int) -> int:
        """The largest of the ranks' integers, on every rank: how they agree on whether any of them has something."""
        if self.alone:
            return value
        found = torch.tensor(value)
        with told_of_loss():
            dist.all_reduce(found, op=dist.ReduceOp.MAX)
        return int(found)

    def together(self, items: Iterable[T]) -> Iterator[T]:
        """The items of this rank, of which every rank has as many; what fails as one makes an item ends all."""
        rest = iter(items)
        while True:
            with self.agreed():
                item = next(rest, None)
            if item is None:
                return
            yield item

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """What fails on one rank in the body ends all, and the user is told once, by rank 0.

        The body holds no collectives: a rank that fails leaves it before the others.

        Raises:
            InputError, RunError: On rank 0: what failed there or, of another rank, its message.
            ToldError: On the other ranks, with the exit code that goes with it.
        """
        error: Exception | None = None
        try:
            yield
        except Exception as failed:
            if self.alone:
                raise
            error = failed
        if self.alone:
            return
        if not self.highest(int(error is not None)):
            return
        failures = self.collect(None if error is None else (isinstance(error, InputError), _message(error)))
        rank, bad_input, message = next((i, *failure) for i, failure in enumerate(failures) if failure is not None)
        if error is not None and not isinstance(error, InputError | RunError):
            raise error  # unforeseen: with its own traceback
        if not self.main:
            raise ToldError(2 if bad_input else 1)
        where = "" if rank == 0 else f"rank {rank}: "
        raise (InputError if bad_input else RunError)(where + message) from None


ALONE = Ranks(0, 1, 0)


def ranks_of(environment: Mapping[str, str]) -> Ranks:
    """The place that torchrun gave a process; `ALONE` where there was none.

    Raises:
        InputError: Only a part of what it sets is there, or it is inconsistent.
    """
    if "WORLD_SIZE" not in environment:
        return ALONE
    numbers = []
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        text = environment.get(name, "")
        require(
            text.isdecimal(),
            f"the environment variable {name} must be a number where WORLD_SIZE is set, got {text!r}; start several "
            f"processes by torchrun, which sets it, or unset WORLD_SIZE for one",
        )
        numbers.append(int(text))
    rank, size, local = numbers
    require(
        0 <= rank < size,
        f"the environment variable RANK must be below WORLD_SIZE = {size}, got {rank}; start the processes by torchrun",
    )
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        require(
            size == 1 or bool(environment.get(name)),
            f"the environment variable {name} must say where {size} processes meet, and is not set; start them by "
            f"torchrun",
        )
    return Ranks(rank, size, local)


@contextmanager
def joined(device: torch.device, *, timeout: float = TIMEOUT) -> Iterator[Ranks]:
    """Meet the other ranks, by torchrun's environment, and part from them at the end; without it: `ALONE`.

    Args:
        device: Where the tensors that are told will be: gloo for the CPU, NCCL for CUDA.
        timeout: Seconds after which a rank that waits for another gives up.

    Raises:
        InputError: The environment is broken, a GPU lacks, or the others cannot be reached.
    """
    require_positive(timeout=timeout)
    ranks = ranks_of(os.environ)
    if ranks.alone:
        yield ranks
        return
    if device.type == "cuda":
        _require_own_gpu(ranks, device)
        torch.cuda.set_device(ranks.local)
    try:
        _meet(ranks, "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timedelta(seconds=timeout))
    except (RuntimeError, ValueError) as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise InputError(
            f"cannot meet the other ranks, {ranks.size} with this, at {where}: {_message(error)}; is every process "
            f"running, and the address within reach?"
        ) from None
    try:
        yield ranks
    except BaseException:
        if device.type != "cuda":  # NCCL would wait for what the others do not do any more; the process ends now
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def _meet(ranks: Ranks, backend: str, timeout: timedelta) -> None:
    store, _, _ = next(rendezvous("env://", ranks.rank, ranks.size, timeout=timeout))
    store.set_timeout(timeout)
    start = _welcome(store, ranks, time.monotonic() + timeout.total_seconds())
    own = dist.PrefixStore(start, store)  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=own, rank=ranks.rank, world_size=ranks.size, timeout=timeout)


def _welcome(store: Any, ranks: Ranks, until: float) -> str:
    """A name that the ranks of this start agree on.

    Where torchrun restarts its processes the store lives on, and in it what those that died have written: the addresses
    of nobody. So each rank says hello by a name of its own and waits to be welcomed by it, which nobody was before.
    """
    name = uuid.uuid4().hex
    if not ranks.main:
        store.set(f"hello/{ranks.rank}", name)
        start: str = store.get(f"welcome/{name}").decode()
        store.set(f"here/{start}/{ranks.rank}", "")
        return start
    away, welcomed = set(range(1, ranks.size)), set()
    while away:
        for rank in tuple(away):
            if store.check([f"hello/{rank}"]) and (guest := store.get(f"hello/{rank}").decode()) not in welcomed:
                store.set(f"welcome/{guest}", name)
                welcomed.add(guest)
            if store.check([f"here/{name}/{rank}"]):
                away.discard(rank)
        if time.monotonic() > until:
            raise RuntimeError(f"{len(away)} did not come, the first of them rank {min(away)}")
        time.sleep(0.005)
    return name


def _require_own_gpu(ranks: Ranks, device: torch.device) -> None:
    count = torch.cuda.device_count()
    require(
        device.index is None,
        f"`device` must be cuda where {ranks.size} ranks run, of which each takes its own GPU, got {device}",
    )
    require(
        ranks.local < count,
        f"each rank on a machine takes a GPU, and there are {count} here for rank {ranks.local} of those from 0; use "
        f"--nproc-per-node {count}, or --device cpu",
    )


@contextmanager
def told_of_loss() -> Iterator[None]:
    """Say clearly where a collective fails because another rank is gone.

    Raises:
        RunError: It did.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error).lower()
        if isinstance(error, RunError) or not any(sign in text for sign in LOST):
            raise
        raise RunError(
            f"the other ranks are lost: one of them died, or did not answer in time ({_message(error)}). "
            f"What was saved is sound; the same command goes on from there (torchrun --max-restarts 3 does it unasked)"
        ) from None


def _message(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
