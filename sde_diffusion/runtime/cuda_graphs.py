"""CUDA graphs: a network's kernels recorded once for each shape of its inputs and then launched as one.

What a recording reads and writes stays where it was in memory: inputs are copied there, and the output is overwritten
by the next call, so it must be used up before. The first calls of a shape run as always, for an adaptive solver changes
the shape at every few steps, and a recording pays where the calls are many.

Reference: PyTorch's notes on CUDA semantics, section "CUDA Graphs".
"""

import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.tensors import transformed

Network = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(x: (B, *D), c_noise: (B,), label: (B,) or None) -> (B, …)."""

Capture = Callable[[Callable[[], Tensor]], tuple[Callable[[], None], Tensor]]
"""Records a function -> what runs it again, and its result, which every run overwrites."""

BEFORE = 2  # calls of a shape before it is recorded
MOST = 8  # shapes
WARM_UP = 3

log = logging.getLogger(__name__)
_eager = 0


@contextlib.contextmanager
def eager() -> Iterator[None]:
    """No recording is made or used inside, e.g. where forward-mode derivatives go through the network."""
    global _eager
    _eager += 1
    try:
        yield
    finally:
        _eager -= 1


def capture(run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """Record `run` on the current CUDA device, after a warm-up on a stream of its own."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()
    return graph.replay, out


@dataclass(frozen=True, eq=False)
class _Recording:
    inputs: tuple[Tensor, ...]
    replay: Callable[[], None]
    out: Tensor

    def __call__(self, given: tuple[Tensor, ...]) -> Tensor:
        for held, new in zip(self.inputs, given, strict=True):
            held.copy_(new)
        self.replay()
        return self.out


class Graphed:
    """A network by recordings: one for each shape, dtype and presence of labels, under no_grad alone.

    Where one fails, everything runs as it would without, and a warning says so once.

    Args:
        network: In evaluation, with weights that stay where they are.
        capture: How to record.
    """

    def __init__(self, network: Network, *, capture: Capture = capture) -> None:
        self.network = network
        self._capture = capture
        self._calls: Counter[tuple[Any, ...]] = Counter()
        self._recordings: dict[tuple[Any, ...], _Recording] = {}
        self._failed = False

    def __call__(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        """The network's output, (B, …); a recording overwrites it at its next call."""
        if self._failed or _eager or torch.is_grad_enabled() or transformed(x):
            return self.network(x, c_noise, label)
        given = (x, c_noise) if label is None else (x, c_noise, label)
        key = (*((tuple(one.shape), one.dtype, one.device) for one in given), _autocast(x))
        known = self._recordings.get(key)
        if known is None:
            self._calls[key] += 1
            if self._calls[key] > BEFORE and len(self._recordings) < MOST:
                known = self._record(key, given)
        return self.network(x, c_noise, label) if known is None else known(given)

    def _record(self, key: tuple[Any, ...], given: tuple[Tensor, ...]) -> _Recording | None:
        inputs = tuple(one.clone(memory_format=torch.contiguous_format) for one in given)
        label = inputs[2] if len(inputs) == 3 else None
        try:
            with _current(inputs[0].device):
                replay, out = self._capture(lambda: self.network(inputs[0], inputs[1], label))
        except RuntimeError as error:
            self._failed = True
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            log.warning("the network cannot be recorded as a CUDA graph (%s); it runs without", reason)
            return None
        self._recordings[key] = recording = _Recording(inputs, replay, out)
        return recording


def _current(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """`device` as the current one, whose streams a recording listens to; on another it would record nothing."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def _autocast(x: Tensor) -> torch.dtype | None:
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
