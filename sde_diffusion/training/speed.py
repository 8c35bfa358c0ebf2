"""How fast a run trains."""

import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 30.0


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


class Progress:
    """How a run gets on: beside the bar in a terminal, else in lines for a log such as that of `nohup`.

    Args:
        bar: Over all steps.
        batch: Examples in a step.
        lines: Whether this process writes lines where no bar is seen.
    """

    def __init__(self, bar: "tqdm[Any]", batch: int, *, lines: bool) -> None:
        self._bar, self._batch, self._lines, self._last = bar, batch, lines and bar.disable, -math.inf

    def show(self, step: int, loss: float, rate: float) -> None:
        """Show loss and speed [examples per second]; a line also shows the time left, and comes every 30 s at most."""
        now, steps = time.monotonic(), int(self._bar.total or 0)
        self._bar.set_postfix_str(f"loss {loss:.4g}, {rate:.0f} examples/s")
        if self._lines and now - self._last >= SECONDS_BETWEEN_LINES:
            self._last = now
            left = tqdm.format_interval((steps - step) * self._batch / rate)
            logger.info("step %d of %d: loss %.4g, %.0f examples/s, %s left", step, steps, loss, rate, left)
