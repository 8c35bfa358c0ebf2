"""How OpenMP's threads should wait between two pieces of work: training speed alone and beside one busy process.

Threads that wait for work spin for a while before they sleep. Alone that saves the time of waking them; beside another
busy process it takes the core from the thread that everybody waits for. Each row trains the 8×8 digits in a process of
its own with the environment of the row, alone and beside a process that does nothing but count, in turn within each
round; images per second, medians with quartiles, and ratios of the same round to `default`.

    python benchmarks/openmp_waiting.py [--rounds 5] [--seconds 8] [--page]
"""

import argparse
import json
import os
import subprocess
import sys
from typing import Any

from common import RESULTS, ROOT, Spread, describe, fill_marks, machine_facts, table, write_results

CHOSEN = "chosen by the command line"
WAITS: dict[str, dict[str, str]] = {
    "default": {},
    CHOSEN: {},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "10,000 spins": {"GOMP_SPINCOUNT": "10000"},
    "1,000 spins": {"GOMP_SPINCOUNT": "1000"},
}
LOADS = ("alone", "beside one")
OWN = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_NUM_THREADS")
BUSY = "while True: pass"


def measure(wait: str, load: str, seconds: float) -> float:
    """One process of one row."""
    environment = {key: value for key, value in os.environ.items() if key not in OWN} | WAITS[wait]
    environment["PYTHONPATH"] = str(ROOT)
    busy = subprocess.Popen([sys.executable, "-c", BUSY]) if load == "beside one" else None
    try:
        line = [
            sys.executable,
            str(ROOT / "benchmarks" / "openmp_child.py"),
            str(seconds),
            *(["--choose"] if wait == CHOSEN else []),
        ]
        done = subprocess.run(line, env=environment, cwd=ROOT, check=True, capture_output=True, text=True)
    finally:
        if busy is not None:
            busy.kill()
            busy.wait()
    return float(done.stdout.split()[-1])


def as_rows(found: dict[str, dict[str, list[float]]]) -> list[list[str]]:
    """The table: images per second and the ratio to `default`, alone and beside one."""
    rows = []
    for wait in found:
        cells = [wait]
        for load in LOADS:
            own, base = found[wait][load], found["default"][load]
            ratio = Spread.of([a / b for a, b in zip(own, base, strict=True)])
            cells += [f"{Spread.of(own).median:.0f}", f"{ratio.median:.2f} ({ratio.low:.2f} … {ratio.high:.2f})"]
        rows.append(cells)
    return rows


HEADERS = ("waiting", "alone, img/s", "× default", "beside one, img/s", "× default")


def main() -> None:
    """Parse, measure in rounds, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8.0, help="of training in each process")
    parser.add_argument("--page", action="store_true", help="measure nothing; write docs/performance.md anew")
    options = parser.parse_args()
    path = RESULTS / "openmp_waiting.json"
    if options.page:
        result: dict[str, Any] = json.loads(path.read_text())
        page = ROOT / "docs" / "performance.md"
        contents = {"waiting": table(HEADERS, as_rows(result["images_per_second"]))}
        page.write_text(fill_marks(page.read_text(), "openmp", contents))
        return
    found: dict[str, dict[str, list[float]]] = {wait: {load: [] for load in LOADS} for wait in WAITS}
    for _ in range(options.rounds):
        for load in LOADS:
            for wait in WAITS:
                found[wait][load].append(measure(wait, load, options.seconds))
                print(f"{load:11} {wait:15} {found[wait][load][-1]:7.1f}", flush=True)
    facts = machine_facts()
    print(describe(facts))
    print(table(HEADERS, as_rows(found)))
    write_results(path, {"facts": facts, "seconds": options.seconds, "images_per_second": found})


if __name__ == "__main__":
    main()
