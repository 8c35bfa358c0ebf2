"""TensorBoard, where it is installed."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


class Board:
    """Writes the numbers of a run for TensorBoard; does nothing where that is not installed or cannot write.

    Args:
        path: The run's folder; None to write nothing.
        step: Where the run stands; what an earlier process wrote beyond it is dropped.
    """

    def __init__(self, path: Path | None, step: int) -> None:
        self._writer: Any = None
        if path is None:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(path / "tensorboard"), purge_step=step)
        except ImportError:
            pass
        except OSError as error:
            self._give_up(error)

    def write(self, rows: Mapping[str, Any], step: int) -> None:
        """Add the numbers among `rows`, and those in lists one by one, as scalars."""
        if self._writer is None:
            return
        try:
            for name, value in rows.items():
                for key, number in _numbers(name, value).items():
                    self._writer.add_scalar(key, number, step)
            self._writer.flush()
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        """Write what is left."""
        if self._writer is not None:
            self._writer.close()

    def _give_up(self, error: OSError) -> None:
        logger.warning("no more numbers for TensorBoard: %s; metrics.jsonl has them all", error.strerror or error)
        self._writer = None


def _numbers(name: str, value: Any) -> dict[str, float]:
    if isinstance(value, list):
        return {f"{name}/{i}": item for i, item in enumerate(value) if isinstance(item, float)}
    return {name: value} if isinstance(value, float) else {}
