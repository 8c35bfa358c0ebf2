"""How fast a run trains."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Speed:
    """Images per second of training alone, without validation, pictures and checkpoints."""

    def __init__(self, step: int, batch: int) -> None:
        self._step, self._batch, self._start = step, batch, time.perf_counter()

    def rate(self, step: int) -> float:
        """Images per second since the last call, `step` being the steps done."""
        now = time.perf_counter()
        images, seconds = (step - self._step) * self._batch, now - self._start
        self._step, self._start = step, now
        return images / seconds

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out the time spent inside."""
        start = time.perf_counter()
        yield
        self._start += time.perf_counter() - start
