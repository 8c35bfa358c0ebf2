"""Memory: how much there is, how much a piece of work takes, and whether an error says that there was too little."""

import gc
import os
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

SHORTAGE = ("DefaultCPUAllocator", "can't allocate memory")  # how torch says so on the CPU, by a RuntimeError
USABLE = {"cuda": 0.9, "cpu": 0.45}  # share of what is free for tensors; on the CPU a step takes 2.1 times theirs
CLEARLY = 1.5
CGROUPS = (  # limit and use of a container
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def is_shortage(error: BaseException) -> bool:
    """Whether an error says that memory did not suffice."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in SHORTAGE)


def free_memory(device: torch.device) -> int:
    """Bytes that new work on `device` can have: of the GPU's memory, or of the machine's or container's."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        return int(torch.cuda.mem_get_info(device)[0])
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")]
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        available = (line.split()[1] for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable"))
        limits = [int(next(available)) * 1024]
    for limit, used in CGROUPS:
        if Path(limit).exists() and Path(limit).read_text().strip().isdecimal():
            limits.append(int(Path(limit).read_text()) - int(Path(used).read_text()))
    return max(0, min(limits))


@dataclass(frozen=True)
class Growth:
    """Bytes that work on n examples takes at its highest: `fixed` + n · `each`."""

    fixed: float
    each: float

    @classmethod
    def measured(cls, device: torch.device, work: Callable[[int], object], *, most: int, first: int = 1) -> "Growth":
        """That of `work` on n and 2n examples, the fewest that take clearly more memory than half as many.

        Args:
            work: Takes the number of examples.
            most: 2n at most.
            first: n at least. Without numbers, on torch's meta device, many examples cost no more than one.
        """

        def peak(count: int) -> int:
            return peak_memory(device, lambda: work(count))

        n, one, two = first, peak(first), peak(2 * first)
        while two < CLEARLY * one and 4 * n <= most:
            n, one, two = 2 * n, two, peak(4 * n)
        each = max(two - one, 1) / n
        return cls(max(0.0, one - n * each), each)

    def at(self, count: int) -> float:
        """Bytes for `count` examples."""
        return self.fixed + count * self.each

    def largest(self, device: torch.device, free: float) -> int:
        """Most examples for which the `free` bytes of a device are enough."""
        return max(0, int((USABLE.get(device.type, USABLE["cpu"]) * free - self.fixed) / self.each))


def peak_memory(device: torch.device, work: Callable[[], object]) -> int:
    """The most bytes that `work` has beyond those there were before, at any moment.

    On CUDA as the allocator counts them; elsewhere those of the tensors that are alive, without what kernels take for
    themselves.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device)) - before
    alive = _Alive()
    with alive:
        work()
    return alive.most


class _Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of tensors that are made while it is on, from their making to their end."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {_storage(leaf)._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._note(_storage(leaf), given)
        return out

    def _note(self, storage: torch.UntypedStorage, given: set[int]) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known or key in given:
            return
        self._known.add(key)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._forget, key, size).atexit = False

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def _storage(tensor: Tensor) -> torch.UntypedStorage:
    return tensor.untyped_storage()


def readable(count: float) -> str:
    """Bytes for people: 1.5 GiB."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.3g} {unit}" if count < 1000 else f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.3g} GiB" if count < 1000 else f"{count:,.0f} GiB"
