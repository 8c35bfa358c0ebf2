"""Writing files so that nothing is lost."""

import contextlib
import os
from pathlib import Path

from sde_diffusion.errors import InputError


def write_atomically(path: Path, content: bytes) -> None:
    """Replace `path` by `content` in one step: a crash or a full disk leaves the old file as it was.

    Raises:
        InputError: The file cannot be written; says why.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the rename itself
        finally:
            os.close(folder)
    except OSError as error:
        with contextlib.suppress(OSError):  # the folder may be out of reach, which is reported below
            temporary.unlink(missing_ok=True)
        raise InputError(
            f"cannot write {path}: {error.strerror or error}; free space or choose another --out"
        ) from None
