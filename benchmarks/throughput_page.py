"""The tables of docs/performance.md about training, inference and sampling, from what throughput.py wrote."""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from common import RESULTS, ROOT, Spread, describe, fill_marks, short, table
from throughput_cases import DIFFUSERS, OURS

PAGE = ROOT / "docs" / "performance.md"
PHASES = {"train": "Training step", "infer": "Inference", "sample": "Sampling", "memory": "Memory of a training step"}
NOT_MEASURED = "Not measured yet."
EAGER = "throughput_eager_"  # how the files of `throughput.py --eager` begin

Result = Mapping[str, Any]


# ----------------------------------------------------------------------------------------------------------- one part


def name_of(case: Result) -> str:
    """As in tables."""
    return f"{case['tool']}, {case['mode']}"


def case_of(result: Result, tool: str, mode: str) -> Result | None:
    """The case of a part, if it was measured."""
    found = (one for one in result["cases"] if (one["tool"], one["mode"]) == (tool, mode))
    return next(found, None)


def seconds(case: Result) -> float:
    return statistics.median(case["seconds"])


def images_per_second(result: Result, case: Result) -> float:
    return float(result["batch"] / seconds(case))


def machine_rate(result: Result) -> float:
    """FLOPs per second of the fastest matrix product."""
    return max(2 * int(name.split()[-1]) ** 3 / statistics.median(found) for name, found in result["products"].items())


def share(result: Result, case: Result) -> float:
    """Of the machine's rate, at three forward passes for a step of training."""
    passes = 3 if result["phase"] == "train" else result["steps"]
    return float(passes * case["forward_flops"] * result["batch"] / seconds(case) / machine_rate(result))


def ratio(other: Result, ours: Result) -> Spread:
    """How many times as long `other` takes, round by round."""
    return Spread.of([theirs / own for theirs, own in zip(other["seconds"], ours["seconds"], strict=True)])


def fastest(cases: Iterable[Result | None]) -> Result | None:
    """The case with the shortest median."""
    return min((case for case in cases if case), key=seconds, default=None)


def of_tool(result: Result, ours: bool) -> list[Result]:
    """Our cases but the bare network, or the peers'."""
    return [one for one in result["cases"] if (one["tool"] == OURS) == ours and one["mode"] != "bare network"]


def compiled(result: Result, case: Result) -> tuple[float, float] | None:
    """Seconds that compiling took, and the calls until it has paid; None for what was not compiled, or before."""
    if not result.get("cold", True):
        return None
    plain = case_of(result, case["tool"], "default" if case["tool"] == OURS else "eager")
    plain = case_of(result, case["tool"], "eager") if case["mode"] == "default" else plain
    if plain is None or plain is case or case["mode"] not in ("compiled", "default"):
        return None
    cost, gain = case["first_call"] - plain["first_call"], seconds(plain) - seconds(case)
    return cost, cost / gain if gain > 0 else float("inf")


def report(result: Result) -> str:
    """The table of one part."""
    if result["phase"] == "memory":
        rows = [[name_of(one), f"{one['bytes'] / 2**20:.0f}"] for one in result["cases"]]
        return _with_skipped(table([PHASES["memory"], "MiB"], rows), result)
    ours = case_of(result, OURS, "default")
    assert ours is not None
    rows = []
    for one in result["cases"]:
        spread, against = Spread.of(one["seconds"]), ratio(one, ours)
        cost = compiled(result, one)
        rows.append(
            [
                name_of(one),
                short(images_per_second(result, one)),
                short(1e3 * spread.median),
                f"{short(1e3 * spread.low)} … {short(1e3 * spread.high)}",
                f"{against.median:.2f}",
                f"{100 * share(result, one):.0f} %",
                "" if cost is None else f"{cost[0]:.0f}",
                "" if cost is None else "never" if cost[1] == float("inf") else f"{cost[1]:,.0f}",
            ]
        )
    headers = ["", "images/s", "ms", "quartiles", "time × ours", "share of matmul", "compiling [s]", "pays after"]
    return _with_skipped(table(headers, rows), result)


def _with_skipped(text: str, result: Result) -> str:
    return "\n".join([text, *(f"\nskipped {name}: {reason}" for name, reason in result["skipped"].items())])


# -------------------------------------------------------------------------------------------------------------- goals


class Goal(NamedTuple):
    """A row of the table of goals."""

    what: str
    goal: str
    measured: str
    met: bool


def at_least(what: str, wanted: float, found: Spread | float | None, unit: str = "×") -> list[Goal]:
    """A goal that wants a large number; nothing where it was not measured."""
    return _goal(what, f"≥ {wanted:g}{unit}", found, unit, lambda value: value >= wanted)


def at_most(what: str, wanted: float, found: Spread | float | None, unit: str = "×") -> list[Goal]:
    """A goal that wants a small number."""
    return _goal(what, f"≤ {wanted:g}{unit}", found, unit, lambda value: value <= wanted)


def _goal(what: str, goal: str, found: Spread | float | None, unit: str, good: Any) -> list[Goal]:
    if found is None:
        return []
    if isinstance(found, Spread):
        text = f"{found.median:.2f}{unit} ({found.low:.2f} … {found.high:.2f})"
        return [Goal(what, goal, text, good(found.median))]
    return [Goal(what, goal, f"{found:.3g}{unit}", good(found))]


def against(result: Result, theirs: Result | None, ours: Result | None) -> Spread | None:
    """How many times as fast ours is, if both were measured."""
    return ratio(theirs, ours) if theirs and ours else None


CPU_FACTORS = {
    ("train", "float32"): 1.7,
    ("train", "bfloat16"): 2.4,
    ("infer", "float32"): 1.8,
    ("infer", "bfloat16"): 2.2,
}
CPU_SHARES = {"train": 50, "infer": 65}


def cpu_goals(parts: Mapping[str, Result]) -> list[Goal]:
    """Of the parts measured on a CPU."""
    rows: list[Goal] = []
    for result in parts.values():
        phase, precision = result["phase"], result["precision"]
        if (phase, precision) not in CPU_FACTORS:
            continue
        where = f"{PHASES[phase].lower()}, {result['problem']}, {precision}"
        default, best = case_of(result, OURS, "default"), fastest(of_tool(result, ours=True))
        eager = against(result, case_of(result, DIFFUSERS, "eager"), default)
        peer = fastest(one for one in of_tool(result, ours=False) if one["mode"] == "compiled")
        rows += at_least(f"{where}: default against diffusers eager", CPU_FACTORS[phase, precision], eager)
        rows += at_least(f"{where}: best against the better peer compiled", 1.3, against(result, peer, best))
        assert best is not None
        rows += at_least(f"{where}: share of matmul, best", CPU_SHARES[phase], 100 * share(result, best), " %")
    return rows + memory_goals(parts)


def cuda_goals(parts: Mapping[str, Result]) -> list[Goal]:
    """Of the parts measured on CUDA."""
    rows: list[Goal] = []
    for result in parts.values():
        default = case_of(result, OURS, "default") if result["phase"] != "memory" else None
        if default is None:
            continue
        where = f"{PHASES[result['phase']].lower()}, {result['problem']}, {result['precision']}"
        eager, peer = (against(result, case_of(result, DIFFUSERS, mode), default) for mode in ("eager", "compiled"))
        if result["phase"] == "train":
            rows += at_least(f"{where}: against diffusers eager", 2, eager)
            rows += at_least(f"{where}: against diffusers compiled", 1.2, peer)
            rows += at_least(f"{where}: model FLOPs utilisation", 40, 100 * share(result, default), " %")
        if result["phase"] == "sample":
            bare = case_of(result, OURS, "bare network")
            rows += at_most(f"{where}: against the bare network", 1.05, against(result, default, bare))
            rows += at_least(f"{where}: against diffusers DDIM", 2, eager)
    return rows + memory_goals(parts)


def memory_goals(parts: Mapping[str, Result]) -> list[Goal]:
    """Memory of a training step against the better peer."""
    rows: list[Goal] = []
    for result in parts.values():
        if result["phase"] == "memory":
            ours = case_of(result, OURS, "default")
            peer = min((one["bytes"] for one in of_tool(result, ours=False)), default=None)
            what = f"memory of a training step, {result['problem']}, {result['precision']}: against the better peer"
            rows += at_most(what, 0.9, None if peer is None or ours is None else ours["bytes"] / peer)
    return rows


def goal_table(rows: Sequence[Goal]) -> str:
    """Measured beside wanted."""
    return table(["goal", "wanted", "measured", "met"], [[*row[:3], "yes" if row.met else "no"] for row in rows])


# --------------------------------------------------------------------------------------------------------------- page


def side_by_side(parts: Sequence[Result]) -> str:
    """One phase: images per second (MiB for memory) of every competitor, one column a problem and precision."""
    names = list(dict.fromkeys(name_of(one) for result in parts for one in result["cases"]))
    headers = [PHASES[parts[0]["phase"]], *(f"{one['problem']} {one['precision']}" for one in parts)]

    def cell(result: Result, name: str) -> str:
        case = next((one for one in result["cases"] if name_of(one) == name), None)
        if case is None:
            return "–"
        if result["phase"] == "memory":
            return f"{case['bytes'] / 2**20:,.0f} MiB"
        text = f"{short(images_per_second(result, case))}/s, {100 * share(result, case):.0f} %"
        cost = compiled(result, case)
        return text if cost is None else f"{text}, {cost[0]:.0f} s"

    return table(headers, [[name, *(cell(result, name) for result in parts)] for name in names])


def section(results: Mapping[str, Any] | None) -> str:
    """All tables of one device."""
    if not results or not results["parts"]:
        return NOT_MEASURED
    parts = results["parts"]
    tables = []
    for phase in PHASES:
        chosen = [result for result in parts.values() if result["phase"] == phase]
        if chosen:
            tables.append(side_by_side(chosen))
    missing = {name: reason for result in parts.values() for name, reason in result["skipped"].items()}
    notes = [f"Not measured: {name} ({reason})." for name, reason in missing.items()]
    commits = sorted({result["commit"][:12] for result in parts.values()})
    told = describe(results["machine"]).replace("\n", "; ").rpartition("; commit")[0]
    device = f"{results['machine']['device']}, " if "device" in results["machine"] else ""
    notes.append(f"Measured on {device}{told}; commits {', '.join(commits)}.")
    return "\n\n".join([*tables, *notes])


def goal_section(results: Mapping[str, Any] | None, goals: Any) -> str:
    """What was measured on one device beside what was wanted."""
    return goal_table(goals(results["parts"])) if results and results["parts"] else NOT_MEASURED


def read_results() -> tuple[dict[str, Any] | None, dict[str, Any] | None, list[dict[str, Any]]]:
    """Of the CPU, of the CUDA device whose file is there (the last by name), and of `--eager` by kind of CPU."""
    found: dict[bool, dict[str, Any]] = {}
    kinds = []
    for path in sorted(RESULTS.glob("throughput_*.json")):
        if path.stem.startswith(EAGER):
            kinds.append(json.loads(path.read_text()))
        elif not path.stem.endswith("_quick"):
            found[path.stem == "throughput_cpu"] = json.loads(path.read_text())
    return found.get(True), found.get(False), kinds


def kinds_of_cpu(found: Iterable[Mapping[str, Any]]) -> str:
    """Our default against diffusers eager on each kind of CPU, a row each."""
    phases = {(phase, precision): f"{phase}, {precision}" for phase, precision in CPU_FACTORS}
    rows = []
    for one in found:
        row = {(part["phase"], part["precision"]): part for part in one["parts"].values()}
        cells = []
        for key in phases:
            part = row.get(key)
            ours = part and case_of(part, OURS, "default")
            peer = part and case_of(part, DIFFUSERS, "eager")
            if not part or not ours or not peer:
                cells.append("–")
                continue
            spread = ratio(peer, ours)
            text = f"{spread.median:.2f}× ({spread.low:.2f} … {spread.high:.2f})"
            cells.append(f"{text}, {short(images_per_second(part, ours))}/s, {100 * share(part, ours):.0f} %")
        machine = one["machine"]
        rows.append([f"{machine['instructions']}: {machine['cpu']}, {machine['threads']} threads", *cells])
    return table(["28×28×1, against diffusers eager", *phases.values()], rows) if rows else NOT_MEASURED


def with_tables(
    text: str, cpu: Mapping[str, Any] | None, cuda: Mapping[str, Any] | None, kinds: Iterable[Mapping[str, Any]]
) -> str:
    """`text` with what stands between each pair of marks written anew."""
    contents = {"cpu": section(cpu), "kinds": kinds_of_cpu(kinds), "cuda": section(cuda)}
    contents |= {"goals_cpu": goal_section(cpu, cpu_goals), "goals_cuda": goal_section(cuda, cuda_goals)}
    return fill_marks(text, "throughput", contents)


def write(page: Path = PAGE) -> None:
    """Write the page."""
    page.write_text(with_tables(page.read_text(), *read_results()))
    print(f"wrote {page.relative_to(ROOT)}")
