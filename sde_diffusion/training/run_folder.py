"""The folder of a training run: resolved config, checkpoints, metrics, samples, and the lock that guards it.

config.yaml   checkpoints/step_00001000.safetensors   metrics.jsonl   samples/step_00001000.png   lock
ema/step_00000100.safetensors: snapshots of averages
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from sde_diffusion.errors import InputError
from sde_diffusion.runtime.atomic_write import as_path, write_atomically
from sde_diffusion.training.checkpoint import SUFFIX, Checkpoint, save_checkpoint

LOCK = "lock"
_held: set[int] = set()  # locks of this process


def _drop_locks() -> None:
    """Close them in a child: workers that read data outlive a kill of their parent, the lock must not."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_drop_locks)


class RunFolder:
    """Paths and files of one run.

    Args:
        path: The folder; made when first written to.
        holds: The folder within it that has the checkpoints; that of a classifier's run is another.
    """

    def __init__(self, path: str | Path, holds: str = "checkpoints") -> None:
        self.path = as_path("folder", path)
        self._holds, self.metrics_path = self.path / holds, self.path / "metrics.jsonl"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run: a second process is refused as long as this one lives, however it ends.

        A folder that has nothing in it at the end goes again, if it was made for this.

        Raises:
            InputError: Another process holds the run, or the folder cannot be written.
        """
        made = [path for path in (self.path / LOCK, self.path, *self.path.parents) if not path.exists()]
        handle = self._open_lock()
        _held.add(handle)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(handle).st_nlink == 0:  # the other process was refused, and has just removed the folder
                    raise BlockingIOError
            except BlockingIOError:
                holder = os.pread(handle, 32, 0).decode(errors="replace").strip() or "unknown"
                raise InputError(
                    f"the run {self.path} is being trained by another process (pid {holder}); wait for it, stop it, or "
                    f"choose another --out"
                ) from None
            except OSError as error:
                raise InputError(
                    f"cannot lock the run folder {self.path}: {error.strerror}; choose an --out on a local disk"
                ) from None
            with contextlib.suppress(OSError):  # a full disk: the name of the holder is a courtesy
                os.ftruncate(handle, 0)
                os.pwrite(handle, str(os.getpid()).encode(), 0)
            try:
                yield
            finally:
                self._remove_empty(made)
        finally:
            _held.discard(handle)
            os.close(handle)

    def _remove_empty(self, made: list[Path]) -> None:
        """Remove a lock and folders, innermost first, that were made for this run and have nothing else in them."""
        with contextlib.suppress(OSError):  # a folder above has other files by now, or is gone
            if made and os.listdir(self.path) == [LOCK]:
                made[0].unlink()
                for folder in made[1:]:
                    folder.rmdir()

    def _open_lock(self) -> int:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            return os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            reason = "it is no folder" if isinstance(error, FileExistsError) else error.strerror
            raise InputError(f"cannot write to the run folder {self.path}: {reason}; choose another --out") from None

    def checkpoints(self) -> list[Path]:
        """The checkpoints, oldest first."""
        return _by_step(self._holds)

    def latest(self) -> Path | None:
        """The newest checkpoint, or None."""
        found = self.checkpoints()
        return found[-1] if found else None

    def save(self, checkpoint: Checkpoint, *, keep: int) -> Path:
        """Write the checkpoint of `checkpoint.meta["step"]`, then drop all but the `keep` newest."""
        path = _write(self._holds, checkpoint)
        for old in self.checkpoints()[:-keep]:
            if old != path:  # what a folder of another run may have is no reason to lose what was just written
                old.unlink(missing_ok=True)
        return path

    def snapshots(self) -> list[Path]:
        """The snapshots of averages, oldest first."""
        return _by_step(self.path / "ema")

    def save_snapshot(self, snapshot: Checkpoint) -> Path:
        """Write the averages of step `snapshot.meta["step"]`; all snapshots are kept."""
        return _write(self.path / "ema", snapshot)

    def write_config(self, config: dict[str, Any]) -> None:
        """Write the resolved config."""
        text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
        write_atomically(self.path / "config.yaml", text.encode())

    def sample_path(self, step: int) -> Path:
        """Where the picture of samples after `step` steps goes."""
        return self.path / "samples" / f"step_{step:08d}.png"

    def log(self, row: dict[str, Any]) -> None:
        """Append one line to the metrics."""
        try:
            with self.metrics_path.open("a") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise InputError(f"cannot write {self.metrics_path}: {error.strerror}; free space") from None

    def metrics(self) -> list[dict[str, Any]]:
        """The rows logged so far."""
        if not self.metrics_path.exists():
            return []
        rows = []
        for line in self.metrics_path.read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                continue  # cut short by a kill
        return rows

    def rewind(self, step: int) -> None:
        """Forget the metrics and snapshots after `step`, which a resumed run writes again."""
        kept = [row for row in self.metrics() if row["step"] <= step]
        if self.metrics_path.exists():
            write_atomically(self.metrics_path, "".join(json.dumps(row) + "\n" for row in kept).encode())
        for snapshot in self.snapshots():
            if step_of(snapshot) > step:
                snapshot.unlink(missing_ok=True)


def step_of(path: Path) -> int:
    """The step in the name of a checkpoint or snapshot."""
    return int(path.stem.removeprefix("step_"))


def _by_step(folder: Path) -> list[Path]:
    return sorted((path for path in folder.glob(f"step_*{SUFFIX}") if path.stem[5:].isdecimal()), key=step_of)


def _write(folder: Path, checkpoint: Checkpoint) -> Path:
    path = folder / f"step_{checkpoint.meta['step']:08d}{SUFFIX}"
    for left_over in folder.glob(f".step_*{SUFFIX}.*.tmp"):  # of a process that was killed as it wrote
        left_over.unlink(missing_ok=True)
    save_checkpoint(path, checkpoint)
    return path


CLASSIFIERS = "classifiers"  # what `holds` is for a classifier's run


def newest_run(root: Path) -> RunFolder | None:
    """The run below `root` whose newest checkpoint is the newest of all, or None."""
    runs = [RunFolder(path.parent) for path in root.glob("**/checkpoints") if path.is_dir()]
    dated = [(checkpoint.stat().st_mtime, run) for run in runs if (checkpoint := run.latest()) is not None]
    return max(dated, key=lambda pair: pair[0])[1] if dated else None
