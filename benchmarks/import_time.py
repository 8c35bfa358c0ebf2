"""What importing the package adds to `import torch`, which it cannot do without: wanted is at most a quarter.

Each import runs in a fresh interpreter, in turn within each round and backwards in every other one. A child reports the
seconds of its own import statement, by the clock and on the CPU, so the start of the interpreter does not count. The
first round fills the file cache, lets Python keep the compiled modules as it does for an installed package, and is
dropped. Medians with quartiles; the ratio is of the same round.

    python benchmarks/import_time.py [--rounds 11]
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from common import RESULTS, ROOT, Spread, describe, machine_facts, short, table, write_results

MODULES = ("torch", "sde_diffusion")
MAX_ADDED = 0.25  # of the time of `import torch`
CHILD = """
import time
wall, cpu = time.perf_counter(), time.process_time()
import {module}
print(time.perf_counter() - wall, time.process_time() - cpu)
"""


def import_seconds(module: str) -> tuple[float, float]:
    """Seconds by the clock and on the CPU of one import in a fresh interpreter."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(
        [sys.executable, "-c", CHILD.format(module=module)], env=environment, capture_output=True, text=True, check=True
    )
    wall, cpu = map(float, done.stdout.split())
    return wall, cpu


def main() -> None:
    """Measure in alternating rounds, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--out", type=Path, default=RESULTS / "import_time.json")
    options = parser.parse_args()

    found: dict[str, list[tuple[float, float]]] = {module: [] for module in MODULES}
    for number in range(-1, max(2, options.rounds)):
        for module in MODULES[:: -1 if number % 2 else 1]:
            seconds = import_seconds(module)
            if number >= 0:
                found[module].append(seconds)

    rows, added = [], {}
    for column, clock in enumerate(("wall", "cpu")):
        theirs, ours = ([seconds[column] for seconds in found[module]] for module in MODULES)
        added[clock] = Spread.of([b / a - 1 for a, b in zip(theirs, ours, strict=True)])
        spreads = (Spread.of(theirs), Spread.of(ours), added[clock])
        rows.append([clock, *(f"{short(s.median)} ({short(s.low)}–{short(s.high)})" for s in spreads)])
    facts = machine_facts()
    print(describe(facts))
    print(table(("seconds", *(f"import {module}" for module in MODULES), "added"), rows))
    print(f"wanted: at most {MAX_ADDED:.2f} added; met: {'yes' if added['cpu'].median <= MAX_ADDED else 'no'}")
    write_results(
        options.out,
        {"facts": facts, "wanted": MAX_ADDED, "added": {k: v.as_dict() for k, v in added.items()}, "seconds": found},
    )


if __name__ == "__main__":
    main()
