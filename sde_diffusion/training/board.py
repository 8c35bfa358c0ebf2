"""TensorBoard, where it is installed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Board:
    """Writes the numbers of a run for TensorBoard; does nothing where that is not installed.

    Args:
        path: The run's folder.
        step: Where the run stands; what an earlier process wrote beyond it is dropped.
    """

    def __init__(self, path: Path, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self._writer: Any = None
        else:
            self._writer = SummaryWriter(str(path / "tensorboard"), purge_step=step)

    def write(self, rows: Mapping[str, Any], step: int) -> None:
        """Add the numbers among `rows` as scalars."""
        if self._writer is None:
            return
        for name, value in rows.items():
            if isinstance(value, float):
                self._writer.add_scalar(name, value, step)
        self._writer.flush()
