"""One piece of work of a command: rows computed batch by batch into a folder that holds the results of one request.

A folder with results of another request is left as it is, and the command refused, unless the user says --overwrite.
Results that are complete and of the same request are not computed again. While they are being made the file
`unfinished.json` says whose they are; a killed command leaves it, and the same command goes on.
"""

import contextlib
import fcntl
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from sde_diffusion.commands.common import Options, make_folder, write_json
from sde_diffusion.commands.fitting import fitting
from sde_diffusion.commands.growing import Compute, GrowingArrays, Rows, Span
from sde_diffusion.commands.session import Session
from sde_diffusion.config.parse import Raw, differences
from sde_diffusion.errors import InputError, require

UNFINISHED = "unfinished.json"
UNIMPORTANT = ("batch", "checkpoint", "file")  # they change no result: batches, and where a file with its hash lies
OPTIONAL = ("file_sha256", "guide_sha256")  # of inputs that not every request has
MODEL_KEYS = ("checkpoint_sha256", "guide_sha256", "step", "torch", "sde_diffusion", "device")


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a command computes, and what it makes of it.

    Attributes:
        files: The results, all of which are there once it is done: the arrays, pictures, and `COMMAND.json`.
        arrays: Which of them holds the rows.
        facts: What the JSON file says of the request.
        request: What the results depend on; by default all of `facts`.
        grows: Dotted key of the request of which a larger value gives more of the same rows.
        spans: The batches.
        compute: Of a batch: (first row, number of rows) -> its arrays.
        finish: Draws pictures, and gives the rest of the JSON file and the lines to print: (rows, seconds) -> both.
        without: Arrays that `finish` needs and the file does not have.
        unit: What a row is, for the progress bar.
    """

    files: tuple[str, ...]
    arrays: str
    facts: Raw
    request: Raw | None = None
    grows: str = ""
    spans: Sequence[Span]
    compute: Compute
    finish: Callable[[Rows, float], tuple[Raw, list[str]]]
    without: tuple[str, ...] = ()
    unit: str = "example"


def run_job(session: Session, folder: Path, job: Job, options: Options) -> None:
    """Compute what the folder lacks, with all processes of the session, then write and print the results.

    Raises:
        InputError: The folder has other results or cannot be written to, or what `compute` raises.
    """
    clock = time.perf_counter()
    wanted = job.facts if job.request is None else job.request
    with results(session, folder, wanted, job.files, options, grows=job.grows) as lacking:
        if not lacking:
            return
        store = GrowingArrays(folder / job.arrays, _without(wanted, job.grows), session.ranks)
        with tqdm(total=sum(count for _, count in job.spans), unit=job.unit, disable=None) as bar:
            store.fill(job.spans, fitting(session, job.compute), bar)
        store.finish(without=job.without)
        if session.ranks.main:
            report, lines = job.finish(store.arrays, time.perf_counter() - clock)
            write_results(folder, job.files, job.facts | report, lines)


def write_results(folder: Path, files: Sequence[str], facts: Raw, lines: Sequence[str]) -> None:
    """Write the JSON file, print the lines and say where everything is."""
    write_json(folder / _json_of(files), facts)
    for line in lines:
        click.echo(line)
    click.echo(f"wrote {', '.join([str(folder / files[0]), *files[1:]])}")


@contextmanager
def results(
    session: Session, folder: Path, request: Raw, files: Sequence[str], options: Options, *, grows: str = ""
) -> Iterator[bool]:
    """Hold `folder` for the results of `request` while the body makes them; gives False if they are there already.

    Raises:
        InputError: It holds those of another request, or cannot be written to.
    """
    wanted: Raw = json.loads(json.dumps(request))  # as it is read back
    with session.ranks.agreed():
        lacking = not session.ranks.main or _lacks(folder, wanted, files, options, grows)
        if session.ranks.main and lacking:
            make_folder(folder)
            write_json(folder / UNFINISHED, wanted)
    if not session.ranks.share(lacking):
        click.echo(f"{folder} already holds these results; --overwrite makes them again")
        yield False
        return
    try:
        with _held(folder / UNFINISHED) if session.ranks.main else nullcontext():
            yield True
    except BaseException:
        if session.ranks.main:
            _leave_no_trace(folder)
        raise
    if session.ranks.main:
        (folder / UNFINISHED).unlink(missing_ok=True)


def _lacks(folder: Path, wanted: Raw, files: Sequence[str], options: Options, grows: str) -> bool:
    """Whether the folder is free for the results of `wanted`, and does not have them.

    Raises:
        InputError: It has other results, or another process is making some.
    """
    if options.overwrite:
        (folder / _json_of(files)).unlink(missing_ok=True)
        return True
    begun = _read(folder / UNFINISHED)
    if begun is not None and (other := _other(begun, wanted, grows)):
        require(
            not _is_held(folder / UNFINISHED),
            f"another process is writing other results to {folder} ({_listed(other)}); choose another --out",
        )
        click.echo(f"dropping what another request has begun in {folder} ({_listed(other)})", err=True)
    there = _read(folder / _json_of(files))
    if there is None:
        strange = [] if begun is not None else [name for name in files if (folder / name).exists()]
        require(
            not strange,
            f"{folder} has {', '.join(strange)}, and no {_json_of(files)} says of what; choose another --out, or add "
            f"--overwrite to replace them",
        )
        return True
    other = _other(there, wanted, grows)
    if other and options.out is None and all(key in MODEL_KEYS for key in other):  # the run has gone on
        click.echo(f"replacing the results in {folder}, which are of another model ({_listed(other)})", err=True)
    elif other:
        raise InputError(
            f"{folder} has results of another request ({_listed(other)}); choose another --out, or add --overwrite to "
            f"replace them"
        )
    complete = begun is None and all((folder / name).exists() for name in files)
    return not complete or bool(other) or _value(there, grows) != _value(wanted, grows)


def _read(path: Path) -> Raw | None:
    """The mapping in a JSON file; None if there is none, and empty if it is damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


@contextmanager
def _held(path: Path) -> Iterator[None]:
    """Let other processes see that this one is at work, until it ends in any way."""
    with path.open() as handle:
        with contextlib.suppress(OSError):  # not every disk has locks
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        yield


def _is_held(path: Path) -> bool:
    with path.open() as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
    return False


def _other(there: Raw, wanted: Raw, grows: str) -> dict[str, tuple[Any, Any]]:
    """Where two requests differ in what both say, and in what one of them may have no word of."""
    there, wanted = ({**dict.fromkeys(OPTIONAL), **raw} for raw in (there, wanted))
    found = differences(_shared(there, wanted), _shared(wanted, there))
    return {
        key: (old, new)
        for key, (old, new) in found.items()
        if key.rpartition(".")[2] not in UNIMPORTANT and not (key == grows and old < new)
    }


def _shared(raw: Mapping[str, Any], other: Mapping[str, Any]) -> Raw:
    """What of `raw` is in `other` too."""
    return {
        key: _shared(value, other[key]) if isinstance(value, Mapping) and isinstance(other[key], Mapping) else value
        for key, value in raw.items()
        if key in other
    }


def _listed(other: Mapping[str, tuple[Any, Any]]) -> str:
    key, (old, new) = next(iter(other.items()))
    return f"`{key}` is {old} there, not {new}"


def _value(raw: Any, key: str) -> Any:
    for part in key.split("."):
        raw = raw.get(part) if isinstance(raw, Mapping) else None
    return raw


def _without(raw: Raw, key: str) -> Raw:
    """`raw` without a dotted key."""
    first, _, rest = key.partition(".")
    return {name: _without(value, rest) if name == first else value for name, value in raw.items() if name != key}


def _json_of(files: Sequence[str]) -> str:
    return next(name for name in files if name.endswith(".json"))


def _leave_no_trace(folder: Path) -> None:
    """Remove the folder if nothing has been computed in it."""
    if not any(folder.rglob("*.npz")):
        (folder / UNFINISHED).unlink(missing_ok=True)
        for inner in (*sorted(folder.rglob("*/"), reverse=True), folder):
            with contextlib.suppress(OSError):
                inner.rmdir()
