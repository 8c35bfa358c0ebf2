"""Everything that wants a CUDA device, in pieces of at most nine minutes: what `make gpu` runs.

A piece is a command: the tests marked `gpu`, `verify`, each part of the benchmarks, the training of the reference
models. One call runs the pieces that are left, as many as fit into --minutes; what it kept in the output folder tells
the next call where to go on. A piece that fails does not stop the others, and is tried once more in another call; one
that ends with exit code 75, or that another piece had left too little time, is called again.

In the output folder, flat and small enough to be carried away:

    results.json    what every piece wrote as JSON, by name
    log.txt         what they printed, the end of each
    state.json      what is done
    *.safetensors, *.png    weights and pictures of the reference models

Nothing is installed; packages that are missing are named before anything runs. Working files lie in --work.

    python benchmarks/gpu.py --out DIR [--device cuda] [--minutes 9] [--quick] [--only NAME …] [--list]

Exit code 0: all is done; 75: call again; 1: all is done, and a piece failed; 2: this machine cannot run it.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
AGAIN, LATE = 75, 124  # exit codes: of work that goes on in the next call (EX_TEMPFAIL), and of what was stopped
TRIES = 2  # of a piece that fails
GRACE = 20  # seconds that a piece is given to end by itself
MARGIN = 0.75  # minutes that a piece which keeps to a time itself is told less, to save and stop
LOG, FILE, FILES = 200_000, 16 << 20, 8  # bytes of each log kept, most bytes and number of the files kept
NEEDED = (
    *("torch", "torchvision", "numpy", "scipy", "sklearn", "matplotlib", "PIL", "click", "yaml", "tqdm"),
    *("safetensors", "einops", "torchdiffeq"),
)
WANTED = {"pytest": "the tests", "hypothesis": "some tests", "threadpoolctl": "the benchmarks"}
PEERS = ("diffusers", "denoising_diffusion_pytorch", "k_diffusion")
KEPT = (".safetensors", ".png")


@dataclass(frozen=True)
class Piece:
    """One command.

    Attributes:
        command: After the Python interpreter; `{minutes}` in it becomes what is left of the call.
        minutes: That it will take: it is not begun with less left, unless nothing else was begun.
        needs: The file without which there is no such piece.
    """

    name: str
    command: tuple[str, ...]
    minutes: float
    needs: str = ""


@dataclass
class State:
    """What became of a piece: its status (done, again, failed), its last exit code, its tries and seconds in all."""

    status: str
    code: int
    failures: int
    seconds: float

    @property
    def over(self) -> bool:
        return self.status == "done" or self.failures >= TRIES


@dataclass(frozen=True)
class Folders:
    """Results to be carried away, working files, and the kind of device they are of."""

    out: Path
    work: Path
    kind: str


def pieces(device: str, work: Path, *, quick: bool) -> list[Piece]:
    """What is run, in order: short and telling things first."""
    own = ("--device", device, *(("--quick",) if quick else ()))

    def script(name: str, minutes: float, *options: str, label: str = "") -> Piece:
        file = f"benchmarks/{name}.py"
        label = label or name
        return Piece(label, (file, *own, *(options or ("--out", str(work / f"{label}.json")))), minutes, file)

    tests = ("-m", "pytest", "tests/test_gpu.py", "-m", "gpu", "-p", "no:cacheprovider", "-p", "no:xdist")
    verify = ("cli.py", "verify", "--device", device, "--out", str(work / "verify"))
    reference = ("--out", str(work / "reference"), "--minutes", "{minutes}")
    parts = throughput_parts(device, quick=quick)
    shared = str(work / "throughput.json")
    return [
        Piece("tests", tests, 2),
        Piece("verify", (*verify, *(("--only", "sde") if quick else ())), 2),
        *(script("throughput", 3, "--part", one, "--out", shared, label=f"throughput-{one}") for one in parts),
        script("divergence", 2),
        script("likelihood_speed", 4),
        script("overhead", 2),
        script("train_reference", 5, *reference),
    ]


def throughput_parts(device: str, *, quick: bool) -> list[str]:
    """The names of the parts of throughput.py, by its own word."""
    import throughput
    import torch

    return list(throughput.parts_of(torch.device(device), quick=quick))


# ------------------------------------------------------------------------------------------------------------ running


def read_states(folders: Folders) -> dict[str, State]:
    """What earlier calls did."""
    found = json.loads(_text(folders.out / "state.json") or '{"pieces": {}}')["pieces"]
    return {name: State(**state) for name, state in found.items()}


def write_states(folders: Folders, states: dict[str, State]) -> None:
    pieces = {name: asdict(state) for name, state in states.items()}
    text = json.dumps({"kind": folders.kind, "pieces": pieces}, indent=1) + "\n"
    temporary = folders.out / ".state.json.tmp"
    temporary.write_text(text)
    temporary.replace(folders.out / "state.json")


def run_piece(piece: Piece, folders: Folders, seconds: float) -> int:
    """Run one command for at most so many seconds, and append what it prints to its log; its exit code, 124 for time.

    At the limit it and its children are asked to end (SIGTERM), and killed a little later.
    """
    own = max(0.1, seconds / 60 - MARGIN)
    command = [part.replace("{minutes}", f"{own:.2f}") for part in piece.command]
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    with (folders.work / f"{piece.name}.log").open("a") as log:
        log.write(f"$ python {' '.join(command)}\n")
        log.flush()
        child = subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": paths},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            return child.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGTERM)
            log.write(f"\nstopped after {seconds:.0f} s\n")
            with contextlib.suppress(subprocess.TimeoutExpired):
                return AGAIN if child.wait(GRACE) == AGAIN else LATE
            return LATE
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def run_all(todo: Sequence[Piece], folders: Folders, minutes: float) -> dict[str, State]:
    """Run what is left of the pieces, as many as fit; what was done is told after each.

    A piece that took all the time of a call has failed; one that was stopped after others had run is called again.
    """
    states, deadline = read_states(folders), time.monotonic() + 60 * minutes
    begun = False
    for piece in sorted(todo, key=lambda one: states[one.name].failures if one.name in states else 0):
        state = states.get(piece.name, State("again", 0, 0, 0.0))
        while not state.over:
            left = deadline - time.monotonic()
            if left <= 0 or (begun and left < 60 * piece.minutes):
                break
            first, begun, clock = not begun, True, time.monotonic()
            print(f"{piece.name} …", flush=True)
            code = run_piece(piece, folders, left)
            status = {0: "done", AGAIN: "again"}.get(code, "failed")
            status = "again" if code == LATE and not first else status
            failures = state.failures + (status == "failed")
            state = State(status, code, failures, state.seconds + time.monotonic() - clock)
            states[piece.name] = state
            write_states(folders, states)
            print(f"  {status} ({code}) after {time.monotonic() - clock:.0f} s", flush=True)
            if status == "failed":
                break
    return states


# ------------------------------------------------------------------------------------------------------------ packing


def pack(folders: Folders, states: dict[str, State]) -> None:
    """Put all results into the output folder: JSON into one file, logs into one, weights and pictures beside them."""
    results: dict[str, Any] = json.loads(_text(folders.out / "results.json") or "{}")
    for file in sorted(folders.work.glob("*.json")) + sorted(folders.work.glob("*/*.json")):
        if file.stat().st_size <= FILE // 4:
            with contextlib.suppress(ValueError):  # what was killed as it wrote is written anew
                results[str(file.relative_to(folders.work).with_suffix(""))] = json.loads(file.read_text())
    (folders.out / "results.json").write_text(json.dumps(results, ensure_ascii=False) + "\n")
    logs = {file.stem: file.read_text(errors="replace")[-LOG:] for file in sorted(folders.work.glob("*.log"))}
    if logs:
        parts = [
            f"===== {name}: {states[name].status if name in states else '?'}\n{text}" for name, text in logs.items()
        ]
        with (folders.out / "log.txt").open("a") as out:
            out.write("\n".join(parts) + "\n")
        for file in folders.work.glob("*.log"):
            file.unlink()
    room = FILES - 3
    for file in sorted(one for one in folders.work.glob("*/*") if one.suffix in KEPT):
        if room and file.stat().st_size <= FILE:
            shutil.copy2(file, folders.out / file.name)
            room -= 1
        else:
            print(f"left in {folders.work}: {file.relative_to(folders.work)}")


def _text(file: Path) -> str:
    return file.read_text() if file.exists() else ""


def missing_packages() -> Iterator[tuple[str, bool]]:
    """Names of packages that are not installed, and whether nothing works without them."""
    for names, needed in ((NEEDED, True), (WANTED, False), (PEERS, False)):
        for name in names:
            if importlib.util.find_spec(name) is None:
                yield name, needed


def options_of(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the results, and of what is done")
    parser.add_argument("--work", type=Path, help="folder of working files (default runs/gpu_DEVICE)")
    parser.add_argument("--device", default="cuda", help="cuda (default), or cpu to see that it works")
    parser.add_argument("--minutes", type=float, default=9.0, help="of this call (default 9)")
    parser.add_argument("--quick", action="store_true", help="the smallest form of everything")
    parser.add_argument("--only", action="append", default=[], help="this piece; may be repeated")
    parser.add_argument("--list", action="store_true", help="tell what is done and what is left")
    return parser.parse_args(arguments)


def check_machine(device: str) -> None:
    """Say what is missing here; stop if that is needed."""
    absent = list(missing_packages())
    for name, needed in absent:
        why = "nothing runs without it" if needed else f"{WANTED.get(name, 'rows of this peer')} will be missing"
        print(f"not installed: {name}: {why}", flush=True)
    if any(needed for _, needed in absent):
        raise SystemExit(2)
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        print("error: PyTorch sees no CUDA device; use --device cpu --quick to see that it works", file=sys.stderr)
        raise SystemExit(2)
    if device.startswith("cuda"):
        print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, Python {sys.version.split()[0]}", flush=True)


def _check_kind(folders: Folders) -> None:
    """Refuse a folder that holds what was done on another kind of device."""
    found = json.loads(_text(folders.out / "state.json") or "{}").get("kind", folders.kind)
    if found != folders.kind:
        print(f"error: {folders.out} holds results of {found}, not of {folders.kind}; choose another", file=sys.stderr)
        raise SystemExit(2)


def exit_code(todo: Sequence[Piece], states: dict[str, State]) -> int:
    """0 when all is done, 75 when something is left, 1 when what is left has failed."""
    found = [states.get(piece.name) for piece in todo]
    if any(state is None or not state.over for state in found):
        return AGAIN
    return int(any(state is not None and state.status != "done" for state in found))


def main(arguments: Sequence[str] | None = None, todo: Sequence[Piece] | None = None) -> int:
    """One call: run, pack, tell."""
    options = options_of(arguments)
    kind = options.device.partition(":")[0] + ("_quick" if options.quick else "")
    folders = Folders(options.out.resolve(), (options.work or ROOT / "runs" / f"gpu_{kind}").resolve(), kind)
    for folder in (folders.out, folders.work):
        folder.mkdir(parents=True, exist_ok=True)
    _check_kind(folders)
    if todo is None:
        check_machine(options.device)
        found = pieces(options.device, folders.work, quick=options.quick)
        for piece in found:
            if piece.needs and not (ROOT / piece.needs).exists():
                print(f"no {piece.needs}: left out")
        todo = [piece for piece in found if not piece.needs or (ROOT / piece.needs).exists()]
    todo = [piece for piece in todo if not options.only or piece.name in options.only]
    states = read_states(folders)
    if not options.list:
        states = run_all(todo, folders, options.minutes)
        pack(folders, states)
    for piece in todo:
        state = states.get(piece.name)
        print(f"{piece.name:40} " + (f"{state.status}, {state.seconds:.0f} s" if state else "to do"))
    code = exit_code(todo, states)
    print({0: "all is done", AGAIN: "call again to go on", 1: "done, with failures: see log.txt"}[code])
    return code


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
