"""Writing files so that nothing is lost."""

import contextlib
import os
from pathlib import Path

from sde_diffusion.errors import InputError, shown_type


def as_path(name: str, value: str | os.PathLike[str]) -> Path:
    """`value` as a path.

    Raises:
        InputError: It is neither text nor a path; `name` is what the message calls it.
    """
    if not isinstance(value, str | os.PathLike):
        raise InputError(f"`{name}` must be a path, as text or pathlib.Path, got {shown_type(value)}")
    return Path(value)


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
