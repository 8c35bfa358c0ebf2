"""Results that grow on the disk batch by batch, so that long work can be killed, taken up again and shared.

The batches of a piece of work are a list of spans (first row, number of rows) that follows from the options alone. Each
is a file in a folder beside the result, named by its first row. So it does not matter who made which batch, or when:
several processes that share a folder give the arrays that one gives, and what a killed run left is taken up by any
number of others, gaps and all.
"""

import contextlib
import hashlib
import json
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from sde_diffusion.errors import RunError
from sde_diffusion.runtime.atomic_write import write_atomically
from sde_diffusion.runtime.ranks import ALONE, Ranks

Span = tuple[int, int]
Rows = dict[str, NDArray[Any]]
Compute = Callable[[int, int], Rows]

FAILED = "failed"  # the file by which a process tells the others to stop
POLL, PATIENCE = 0.2, 120.0  # seconds: a network's file system may take as long to show what others have written


def spans(start: int, stop: int, size: int) -> list[Span]:
    """The rows from `start` to before `stop` in batches of `size`, the last as small as need be."""
    return [(first, min(size, stop - first)) for first in range(start, stop, size)]


class GrowingArrays:
    """Arrays with one row per example that grow batch by batch on the disk.

    At the end the batches become one .npz file, in the order of their first rows, and their folder goes.

    Args:
        path: The file, written at the end.
        facts: What the rows depend on; rows of other facts are not taken up.
        ranks: The processes that share the work. All of them call `fill` and `finish` alike.
    """

    def __init__(self, path: Path, facts: dict[str, Any], ranks: Ranks = ALONE) -> None:
        self._path, self._ranks = path, ranks
        self._parts = path.with_suffix(".partial")
        self._key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        self._spans: dict[int, int] = {}  # rows by first row, of all that has been worked on
        self._batches: dict[int, Rows] = {}  # those of them that this process has read or made

    def fill(self, wanted: Sequence[Span], compute: Compute, bar: "tqdm[Any]", *, unit: int = 1) -> None:
        """See to it that the batches `wanted` are there: of what the disk lacks every process computes each n-th.

        Args:
            wanted: The same for all processes.
            compute: (first row, number of rows) -> the arrays of a batch.
            bar: Shows what all of them have done.
            unit: Rows that move it by one.

        Raises:
            InputError, RunError: What `compute` raises, in any of the processes, or a file that cannot be written.
        """
        ranks = self._ranks
        self._spans |= dict(wanted)
        with ranks.agreed():
            found = {span for span in wanted if ranks.main and self._load(span, mend=True)}
            if ranks.main:
                (self._parts / FAILED).unlink(missing_ok=True)
        lacking: list[Span] = ranks.share([span for span in wanted if span not in found])
        _start_from(bar, sum(count for _, count in found) // unit)
        pending = dict(lacking)
        with ranks.agreed(), self._telling():
            for first, count in lacking[ranks.rank :: ranks.size]:
                if (self._parts / FAILED).exists():
                    break  # what another process could not do ends the work of all
                self.put(first, **compute(first, count))
                self._look(pending, bar, unit)
        self._look(pending, bar, unit)

    def put(self, first: int, **rows: NDArray[Any]) -> None:
        """Write the batch whose first row is `first`."""
        _write_npz(self._part(first), rows | {"key": np.array(self._key)})
        self._batches[first] = rows

    def rows(self, wanted: Sequence[Span]) -> Rows:
        """The rows of some batches that are there, in the order given.

        Raises:
            RunError: One that another process has written cannot be seen.
        """
        deadline = time.monotonic() + PATIENCE
        for span in wanted:
            while not self._load(span):
                if time.monotonic() > deadline:
                    raise RunError(
                        f"{self._part(span[0])} was written by another process, but is not to be seen here; name an "
                        "--out that all of them share"
                    )
                time.sleep(POLL)
        batches = [self._batches[first] for first, _ in wanted]
        return {name: np.concatenate([batch[name] for batch in batches]) for name in (batches[0] if batches else ())}

    @property
    def arrays(self) -> Rows:
        """All rows worked on, in their order."""
        return self.rows(sorted(self._spans.items()))

    def finish(self, *, without: tuple[str, ...] = ()) -> None:
        """Write the complete file, all arrays but `without`, once all processes are here."""
        self._ranks.barrier()
        if self._ranks.main:
            _write_npz(self._path, {name: rows for name, rows in self.arrays.items() if name not in without})
            shutil.rmtree(self._parts, ignore_errors=True)

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Let the other processes see that this one failed, so that they stop after the batch in hand."""
        try:
            yield
        except Exception:
            if not self._ranks.alone:
                with contextlib.suppress(OSError):  # such as a full disk, which may be why
                    (self._parts / FAILED).touch()
            raise

    def _look(self, pending: dict[int, int], bar: "tqdm[Any]", unit: int) -> None:
        """Take up what has been finished of `pending`; the main process does so for all."""
        if self._ranks.main:
            for span in list(pending.items()):
                if self._load(span):
                    bar.update(pending.pop(span[0]) // unit)

    def _load(self, span: Span, *, mend: bool = False) -> bool:
        """Whether a batch is there; if it is, it has been read. `mend` removes what is in its place but is another."""
        first, count = span
        if first not in self._batches:
            part = self._part(first)
            rows = self._read(part)
            if rows is None or any(len(values) != count for values in rows.values()):
                if mend:
                    part.unlink(missing_ok=True)
                return False
            self._batches[first] = rows
        return True

    def _part(self, first: int) -> Path:
        return self._parts / f"{first:09d}.npz"

    def _read(self, part: Path) -> Rows | None:
        """The rows of a file; None if it is not there, not ours, or damaged."""
        try:
            with np.load(BytesIO(part.read_bytes()), allow_pickle=False) as stored:
                rows = {name: stored[name] for name in stored.files}
        except (OSError, ValueError, EOFError, KeyError, BadZipFile, zlib.error):
            return None
        return rows if str(rows.pop("key", "")) == self._key and rows else None


def _start_from(bar: "tqdm[Any]", done: int) -> None:
    """Count what an earlier process did, but not towards the speed."""
    if not bar.disable and done:
        bar.initial += done
        bar.n += done
        bar.last_print_n += done
        bar.refresh()


def _write_npz(path: Path, arrays: Rows) -> None:
    buffer = BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    write_atomically(path, buffer.getvalue())
