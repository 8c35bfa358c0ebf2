"""What the benchmarks share: timing in alternating rounds, facts about the machine, tables and result files.

Competitors are timed in turn within each round, so a change of the machine's pace hits all of them alike; a result is
the median over the rounds with its quartiles. Time of one thread on the CPU and time by the clock are kept both: on a
free core they agree, on a busy machine the first still tells what the work takes.
"""

import gc
import importlib
import importlib.util
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from threadpoolctl import threadpool_limits

from sde_diffusion.runtime.cpu import instruction_set

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


class Spread(NamedTuple):
    """Median and quartiles of repeated measurements."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of at least two values."""
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(low, median, high)

    def as_dict(self) -> dict[str, float]:
        """Plain JSON values."""
        return {"median": self.median, "q1": self.low, "q3": self.high}


@dataclass(frozen=True)
class Timing:
    """One timed call.

    Attributes:
        wall, cpu: Seconds by the clock, and seconds of this thread on the CPU.
        result: What the call returned.
    """

    wall: float
    cpu: float
    result: Any


def use_one_thread() -> None:
    """One thread for PyTorch and for NumPy's BLAS, for the rest of the process: tools are compared, not pools."""
    torch.set_num_threads(1)
    threadpool_limits(1)


def timed(run: Callable[[], Any]) -> Timing:
    """Time one call with the garbage collector off."""
    gc.disable()
    try:
        wall, cpu = time.perf_counter(), time.thread_time()
        result = run()
        return Timing(time.perf_counter() - wall, time.thread_time() - cpu, result)
    finally:
        gc.enable()


def alternate(runs: Mapping[str, Callable[[], Any]], rounds: int, *, warm_up: int = 2) -> dict[str, list[Timing]]:
    """Time every run once a round; odd rounds go through them backwards. The first `warm_up` rounds are not kept."""
    timings: dict[str, list[Timing]] = {name: [] for name in runs}
    gc.collect()
    for number in range(-warm_up, rounds):
        for name in list(runs)[:: -1 if number % 2 else 1]:
            timing = timed(runs[name])
            if number >= 0:
                timings[name].append(timing)
    return timings


def machine_facts(packages: Sequence[str] = ()) -> dict[str, Any]:
    """What a reader must know of the machine and the software: names and versions, nothing personal.

    Args:
        packages: Distributions whose versions matter besides this package's; absent ones are None.
    """
    return {
        "cpu": _cpu_name(),
        "instructions": instruction_set(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in ("sde-diffusion", "torch", *packages)},
        "commit": _git("rev-parse", "HEAD"),
        "modified": [line[3:] for line in _git("status", "--porcelain", "--", "sde_diffusion").splitlines()],
    }


def describe(facts: Mapping[str, Any]) -> str:
    """The facts in two lines."""
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items() if version)
    changed = f" with changes in {', '.join(facts['modified'])}" if facts["modified"] else ""
    instructions = f" ({facts['instructions']})" if "instructions" in facts else ""
    return (
        f"{facts['cpu']}{instructions}, {facts['cores']} cores, {facts['threads']} thread(s), "
        f"load {facts['load_average']}, Python {facts['python']}\n"
        f"{versions}; commit {facts['commit'][:12] or 'unknown'}{changed}"
    )


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str:
    try:
        answer = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return answer.stdout.rstrip()


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table that also reads well in a terminal: first column left, the others right."""
    widths = [max(len(row[i]) for row in [headers, *rows]) for i in range(len(headers))]

    def line(cells: Sequence[str]) -> str:
        padded = [cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(cells, widths, strict=True))]
        return "| " + " | ".join(padded) + " |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([line(headers), line(rule), *map(line, rows)])


def fill_marks(text: str, page: str, contents: Mapping[str, str]) -> str:
    """`text` with what stands between each `<!-- page: key -->` and `<!-- end -->` written anew."""
    for key, content in contents.items():
        begin, end = f"<!-- {page}: {key} -->", "<!-- end -->"
        head, found, rest = text.partition(begin)
        assert found, f"the page has no table {key}"
        text = f"{head}{begin}\n{content}\n{end}{rest.partition(end)[2]}"
    return text


def short(value: float, digits: int = 3) -> str:
    """A number with `digits` significant digits and no exponent below a million."""
    if not math.isfinite(value) or value == 0 or abs(value) >= 1e6:
        return f"{value:.{digits}g}"
    return f"{value:.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"


def submodule(package: str, name: str) -> ModuleType:
    """A module of a package whose `__init__` may not import: then without running it.

    k-diffusion's imports its training dependencies, which its samplers do not need.
    """
    try:
        return importlib.import_module(f"{package}.{name}")
    except ImportError:
        spec = importlib.util.find_spec(package)
        if spec is None:
            raise
        sys.modules[package] = importlib.util.module_from_spec(spec)
        return importlib.import_module(f"{package}.{name}")


def write_results(path: Path, facts: Mapping[str, Any]) -> None:
    """Write a result file as JSON and say where."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
    print(f"wrote {path.resolve().relative_to(ROOT) if path.resolve().is_relative_to(ROOT) else path}")
