"""Which small faults do `verify` and the fast tests notice?

    python benchmarks/mutants.py                     # all faults; takes up again where it was stopped
    python benchmarks/mutants.py --only vp-exp --only c-in
    python benchmarks/mutants.py --list

Each fault of `faults.txt` is made in a copy of the repository. There `verify --fail-fast` runs, nearest area first, and
the fast tests nearest to the fault; all others only if neither notices, or with `--full`. Tests that themselves run
`verify` are left out, so the two answers are independent. The copy is first run as it is, and must pass. Results are
kept in `results/mutants.json` by a hash of the file and the fault, and written after every fault; what has survived is
judged anew in the next run.
"""

import argparse
import hashlib
import importlib
import json
import multiprocessing
import os
import runpy
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from common import RESULTS, ROOT, machine_facts, table
from faults import FAULTS, Fault

PACKAGE = "sde_diffusion"
COPIED = (PACKAGE, "tests", "benchmarks", "configs", "cli.py", "pyproject.toml", "README.md", "CONTRIBUTING.md", "docs")
LEFT_OUT = ("tests/verify", "tests/test_faults.py", "tests/test_readme.py", "tests/test_gpu.py")
LIMIT = 1800  # seconds for one command; a fault that makes it hang is caught
NEAREST_PASS = "nearest pass"  # the others were not run
AREAS = ("sde", "score", "losses", "solvers", "likelihood", "training")
LOADED = (
    "torch",
    "torch._dynamo",
    "scipy.integrate",
    "sklearn.datasets",
    "torchdiffeq",
    "torchvision",
    "pytest",
    "click",
    "tqdm",
)
OUTPUT = RESULTS / "mutants.json"


def copy_repository(target: Path) -> None:
    """The files that `verify` and the tests need."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
        elif source.exists():
            shutil.copy(source, target / name)


def key_of(fault: Fault) -> str:
    """What a stored result is good for: this fault in this very file, as long as no check is taken away."""
    text = (ROOT / PACKAGE / fault.file).read_text()
    return hashlib.sha256(json.dumps([text, fault.file, fault.old, fault.new]).encode()).hexdigest()[:16]


def applied(text: str, fault: Fault) -> str:
    """The text of the fault's file with the fault in it.

    Raises:
        ValueError: Its old text does not stand there exactly once: the source has changed, mend the entry.
    """
    found = text.count(fault.old)
    if found != 1:
        raise ValueError(f"the fault {fault.name!r} finds its text {found} times in {fault.file}, not once")
    return text.replace(fault.old, fault.new)


def command(folder: Path, program: str, *arguments: str) -> tuple[str, str, float]:
    """(passed, caught or hung; what was said first of what failed; seconds) of a Python program in a copy.

    It runs in a fork of this process, which has loaded what takes long and does not change.
    """
    start, log = time.perf_counter(), folder / "said.txt"
    child = multiprocessing.get_context("fork").Process(target=_become, args=(folder, log, program, arguments))
    child.start()
    child.join(LIMIT)
    hung = child.is_alive()
    if hung:
        child.kill()
        child.join()
    said = next((line for line in log.read_text(errors="replace").splitlines() if _telling(line)), "")
    status = "hung" if hung else "passed" if child.exitcode == 0 else "caught"
    if status == "caught" and not said:  # a crash, not a verdict
        status, said = "crashed", f"exit code {child.exitcode}: {log.read_text(errors='replace').strip()[-200:]}"
    return status, said[:300], time.perf_counter() - start


def _become(folder: Path, log: Path, program: str, arguments: tuple[str, ...]) -> None:
    """Turn this process into `python program arguments…` in the copy; a module is named without .py."""
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        signal.signal(number, handler)  # a shell lets what it starts in the background ignore them, which tests notice
    os.chdir(folder)
    os.environ |= {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(folder))
    sys.argv = [program, *arguments]
    code = 0
    try:
        if program.endswith(".py"):
            runpy.run_path(program, run_name="__main__")
        else:
            runpy.run_module(program, run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # the usual way out of a fork that a thread has made ends with 1


def _telling(line: str) -> bool:
    return line.startswith(("error:", "FAILED", "ERROR"))


def run_verify(folder: Path, areas: str) -> tuple[str, str, float]:
    """`verify`, the named areas first."""
    first = [area for area in areas.split(",") if area]
    order = [*first, *(area for area in AREAS if area not in first)]
    return command(folder, "cli.py", "verify", "--fail-fast", *(word for area in order for word in ("--only", area)))


def run_tests(folder: Path, nearest: str, *, everything: bool) -> tuple[str, str, float]:
    """The fast tests, the named ones first and, if `everything`, then all."""
    options = ("-x", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", "--no-header", "--tb=no")
    left_out = [word for path in LEFT_OUT for word in ("--ignore", path)]
    near = [f"tests/{path}" for path in nearest.split(",") if path]
    seconds = 0.0
    for paths in ([near] if near else []) + ([["tests"]] if everything else []):
        status, said, more = command(folder, "pytest", *options, *left_out, *paths)
        seconds += more
        if status != "passed":
            return status, said, seconds
    return "passed" if everything else NEAREST_PASS, "", seconds


def _survived(row: dict[str, Any] | None) -> bool:
    return row is not None and not {row["verify"], row["tests"]} & {"caught", "hung"}


def judge(fault: Fault | None, *, full: bool = True, verify_only: bool = False) -> dict[str, Any]:
    """Whether `verify` and the tests notice a fault, or None, and what they say first.

    Without `full`, what `verify` has noticed is held to the nearest tests alone, or with `verify_only` to none.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy_repository(folder)
        if fault:
            path = folder / PACKAGE / fault.file
            path.write_text(applied(path.read_text(), fault))
        by_verify = run_verify(folder, fault.area if fault else "")
        everything = full or by_verify[0] == "passed"
        by_tests = ("not run", "", 0.0)
        if not verify_only or everything:
            by_tests = run_tests(folder, fault.tests if fault else "", everything=everything)
    return {
        "verify": by_verify[0],
        "verify_said": by_verify[1],
        "verify_seconds": round(by_verify[2], 1),
        "tests": by_tests[0],
        "tests_said": by_tests[1],
        "tests_seconds": round(by_tests[2], 1),
    }


def report(faults: Sequence[Fault], results: dict[str, dict[str, Any]]) -> str:
    """A Markdown table and the counts."""
    judged = [(fault, results[fault.name]) for fault in faults if fault.name in results]
    rows = [[fault.name, fault.breaks, r["verify"], r["tests"]] for fault, r in judged]
    noticed = ("caught", "hung")
    counts = {by: sum(r[by] in noticed for _, r in judged) for by in ("verify", "tests")}
    tested = sum(r["tests"] != "not run" for _, r in judged)
    either = sum(r["verify"] in noticed or r["tests"] in noticed for _, r in judged)
    share = f" ({100 * either / len(judged):.0f} %)" if judged else ""
    rows_text = table(["fault", "what it breaks", "verify", "tests"], rows)
    return (
        f"{rows_text}\n\n{len(judged)} faults: {counts['verify']} caught by verify, {counts['tests']} by the tests "
        f"of {tested} that these were run on, {either}{share} by either"
    )


def stored(keys: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Results of earlier runs that still hold, by key."""
    if not OUTPUT.exists():
        return {}
    known = set(keys)
    return {row["key"]: row for row in json.loads(OUTPUT.read_text())["results"] if row["key"] in known}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", metavar="NAME", help="this fault; may be repeated")
    parser.add_argument("--jobs", type=int, default=1, help="faults judged at once")
    parser.add_argument("--list", action="store_true", help="name the faults and stop")
    parser.add_argument("--again", action="store_true", help="judge anew what was caught: after a check was weakened")
    parser.add_argument("--full", action="store_true", help="all tests, also for what verify has caught")
    parser.add_argument("--verify-only", action="store_true", help="no tests on what verify has caught")
    parser.add_argument("--no-baseline", action="store_true", help="do not first run the copy without a fault")
    arguments = parser.parse_args()
    faults = [fault for fault in FAULTS if not arguments.only or fault.name in arguments.only]
    if unknown := set(arguments.only or ()) - {fault.name for fault in FAULTS}:
        parser.error(f"unknown fault {', '.join(sorted(unknown))}; see --list")
    for fault in FAULTS:
        applied((ROOT / PACKAGE / fault.file).read_text(), fault)
    if arguments.list:
        print("\n".join(f"{fault.name:24} {fault.file:32} {fault.breaks}" for fault in FAULTS))
        return
    known = stored(key_of(fault) for fault in FAULTS)
    again = set(faults) if arguments.again else {f for f in faults if _survived(known.get(key_of(f)))}
    left = [fault for fault in faults if fault in again or key_of(fault) not in known]
    for module in LOADED:
        importlib.import_module(module)
    if left and not arguments.no_baseline:
        sound = judge(None)
        if sound["verify"] != "passed" or sound["tests"] != "passed":
            sys.exit(f"error: the source without a fault does not pass: {sound}")
    facts = machine_facts(("torchdiffeq",))

    def judge_and_store(fault: Fault) -> None:
        row = known[key_of(fault)] = (
            {"key": key_of(fault)} | vars(fault) | judge(fault, full=arguments.full, verify_only=arguments.verify_only)
        )
        rows = [known[key] for key in map(key_of, FAULTS) if key in known]
        OUTPUT.write_text(json.dumps({"machine": facts, "results": rows}, indent=1, ensure_ascii=False) + "\n")
        said = row["verify_said"] or row["tests_said"]
        print(f"{fault.name:24} verify {row['verify']:7} tests {row['tests']:7} {said[:150]}", flush=True)

    with ThreadPoolExecutor(arguments.jobs) as pool:
        list(pool.map(judge_and_store, left))
    print(report(FAULTS, {row["name"]: row for row in known.values()}))


if __name__ == "__main__":
    main()
