"""The page about solvers from `results/solvers.json` and `solvers_budget.json`: its tables and its pictures.

    python benchmarks/solvers_page.py

writes what stands between the marks of docs/solvers.md anew, and docs/pictures/solvers_*.png.
"""

import json
import math
import statistics
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from common import RESULTS, ROOT, fill_marks, short, table
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter, ScalarFormatter
from solvers import comparable, label
from solvers_budget import report

from sde_diffusion.grids import GRIDS
from sde_diffusion.solvers.budget import DETERMINISTIC, STOCHASTIC, Choice

PAGE = ROOT / "docs" / "solvers.md"
PICTURES = ROOT / "docs" / "pictures"
TARGETS = ("mixture, 2-D", "mixture, 64-D", "digits, 64-D")
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito's
Curve = dict[str, Any]


def points(found: Curve, key: str = "error") -> list[tuple[int, float]]:
    """(nfe, error) where there is an error."""
    return [(nfe, error) for nfe, error in zip(found["nfe"], found[key], strict=True) if error is not None]


def at(found: Curve, nfe: int) -> float | None:
    """The error at a number of evaluations; for adaptive solvers at the most below it."""
    fitting = [error for n, error in points(found) if n == nfe]
    if found["grid"] == "adaptive":
        fitting = [error for n, error in sorted(points(found)) if n <= nfe][-1:]
    return fitting[0] if fitting else None


def mean_error(found: list[Curve], nfe: int) -> float | None:
    """The geometric mean over targets, if all have a value."""
    errors = [at(one, nfe) for one in found]
    if not errors or any(error is None for error in errors):
        return None
    return math.exp(sum(math.log(error) for error in errors if error is not None) / len(errors))


def by_method(curves: list[Curve]) -> dict[tuple[str, str], list[Curve]]:
    """Curves of the same method and grid, one for each target."""
    groups: dict[tuple[str, str], list[Curve]] = {}
    for found in curves:
        groups.setdefault((found["method"], found["grid"]), []).append(found)
    return groups


# --- tables


def best_table(curves: list[Curve], processes: tuple[str, ...], nfes: tuple[int, ...]) -> str:
    """The three best of all solvers and grids at each number of evaluations."""
    rows = []
    for nfe in nfes:
        row = [str(nfe)]
        for process in processes:
            groups = by_method([found for found in curves if found["process"] == process])
            ranked = sorted((e, key) for key, found in groups.items() if (e := mean_error(found, nfe)) is not None)
            row.append("; ".join(f"`{m}` on {g} {e:.1e}" for e, (m, g) in ranked[:2]))
        rows.append(row)
    return table(["NFE", *processes], rows)


def budget_table() -> str:
    """What `for_budget` takes."""
    rows, above = [], 1
    for kind, choices in (("deterministic", DETERMINISTIC), ("stochastic", STOCHASTIC)):
        above = 1
        for choice in choices:
            span = f"{above}–{choice.up_to}" if choice.up_to else f"{above} or more"
            rows.append([span, kind, f"`{_solver(choice)}`", f"`{_grid(choice)}`", f"{choice.level or 't_min'}"])
            above = (choice.up_to or 0) + 1
    return table(["score evaluations", "kind", "solver", "grid", "σ/a at which denoising takes over"], rows)


def _solver(choice: Choice) -> str:
    return label(choice.solver)


def _grid(choice: Choice) -> str:
    return next(name for name, kind in GRIDS.items() if type(choice.solver.grid) is kind)


def ratio_table(pairs: list[Curve]) -> str:
    """Ours over the peer's error, its extremes over targets and grids."""
    rows = []
    for peer in dict.fromkeys(pair["peer"] for pair in pairs if pair["same"]):
        own = [pair for pair in pairs if pair["peer"] == peer]
        found = []
        for pair in own:
            found += [(ours / theirs, n) for n, ours, theirs in comparable(pair) if ours and theirs]
        few, many = ([r for r, n in found if low <= n <= high] for low, high in ((1, 14), (15, 100)))
        grids = ", ".join(dict.fromkeys(pair["grid"] for pair in own))
        rows.append([peer, f"`{own[0]['ours']}`", grids, *(f"{min(r):.4f} … {max(r):.4f}" for r in (few, many))])
    return table(["peer", "ours", "grids", "ours / peer, NFE < 15", "NFE ≥ 15"], rows)


def defaults_table(pairs: list[Curve], curves: list[Curve]) -> str:
    """Our solvers with their defaults over peers whose own defaults differ, at equal times."""
    own = {(c["target"], c["grid"], c["method"]): dict(points(c)) for c in curves if c["process"] == "VP"}
    rows = []
    for peer in dict.fromkeys(pair["peer"] for pair in pairs if pair["same"] and "," in pair["ours"]):
        method = next(pair["ours"] for pair in pairs if pair["peer"] == peer).partition(",")[0]
        found = [
            own[key][nfe] / error
            for pair in pairs
            if pair["peer"] == peer and (key := (pair["target"], pair["grid"], method)) in own
            for nfe, error in points(pair, "peer_error")
            if nfe in own[key] and error
        ]
        if found:
            low, middle, high = min(found), statistics.median(found), max(found)
            worse = sum(ratio > 1.01 for ratio in found)
            rows.append([peer, f"`{method}`", f"{worse} of {len(found)}", *(short(r) for r in (low, middle, high))])
    return table(["peer", "ours by default", "ours worse by > 1 %", "least", "median", "most"], rows)


def stochastic_table(parts: list[dict[str, Any]]) -> str:
    """The distances of the stochastic solvers, on the grid that suits each best."""
    rows, nfes = [], (5, 10, 20, 50, 100)
    for part in parts:
        low, high = part["floor"]
        rows.append([f"*{part['target']}*, floor {low:.3f} … {high:.3f}", "", *("" for _ in nfes)])
        ours = [found for found in part["curves"] if "peer" not in found]
        for method in dict.fromkeys(found["method"] for found in ours):
            grids = [found for found in ours if found["method"] == method and found["grid"] != "adaptive"]
            if grids:
                best = min(grids, key=lambda found: sum(math.log(error) for _, error in points(found)))
                values = dict(points(best))
                cells = [short(values[n]) if n in values else "" for n in nfes]
                rows.append([f"`{method}`", f"`{best['grid']}`", *cells])
    return table(["solver", "its best grid", *map(str, nfes)], rows)


def chain_table(rows: list[dict[str, Any]]) -> str:
    """DDIM on a chain that its steps may not fit, over ours."""
    steps = list(dict.fromkeys(row["steps"] for row in rows))
    lines: dict[str, list[str]] = {}
    for row in rows:
        lines.setdefault(row["peer"], []).append(short(row["peer_error"] / row["error"], 2))
    return table(["peer / ours", *map(str, steps)], [[peer, *cells] for peer, cells in lines.items()])


# --- pictures


def style(axes: Axes, title: str) -> None:
    """Both axes logarithmic, with plain numbers of evaluations."""
    axes.set(xscale="log", yscale="log", xlabel="score evaluations", title=title)
    axes.set_xticks([5, 10, 20, 50, 100])
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(True, which="major", color="0.9")
    axes.spines[["top", "right"]].set_visible(False)


def draw_methods(result: dict[str, Any], path: Path) -> None:
    """Our solvers on the grid uniform in λ, the same methods of peers dashed on top of them, VP."""
    lines = {  # method: its peer
        "ddim": "k-diffusion euler",
        "heun": "diffusers Heun",
        "dpmpp_2m": "diffusers DPM-Solver++ 2M",
        "unipc, lower_final=always, p=3": "diffusers UniPC 3",
        "deis": "diffusers DEIS 3",
    }
    figure, panels = plt.subplots(1, 3, figsize=(13, 4.4), sharey=True, layout="constrained")
    for axes, target in zip(panels, TARGETS, strict=True):
        style(axes, target)
        for colour, (method, peer) in zip(COLOURS, lines.items(), strict=False):
            for one in result["deterministic"]:
                if (one["target"], one["process"], one["method"], one["grid"]) == (target, "VP", method, "log_snr"):
                    axes.plot(*zip(*points(one), strict=True), color=colour, lw=3.5, alpha=0.55, label=method)
            for one in result["pairs"]:
                if (one["target"], one["peer"], one["grid"]) == (target, peer, "log_snr"):
                    axes.plot(*zip(*points(one, "peer_error"), strict=True), color=colour, lw=1.3, ls="--", label=peer)
        for one in result["pairs"]:
            if (one["target"], one["peer"], one["grid"]) == (target, "k-diffusion lms", "log_snr"):
                axes.plot(
                    *zip(*points(one, "peer_error"), strict=True), color="0.45", lw=1.3, ls=":", label=one["peer"]
                )
        for one in result["deterministic"]:
            if (one["target"], one["process"], one["grid"], one["method"]) == (
                target,
                "VP",
                "adaptive",
                adaptive(result),
            ):
                shown = [(n, error) for n, error in points(one) if n <= 130]
                axes.plot(*zip(*shown, strict=True), "k^", ms=5, label=f"{one['method']} by tolerance")
    panels[0].set_ylabel("RMS distance from the exact flow")
    finish(figure, panels[0], path)


def adaptive(result: dict[str, Any]) -> str:
    """The first adaptive solver in the file: the default one."""
    return str(next(one["method"] for one in result["deterministic"] if one["grid"] == "adaptive"))


def draw_grids(result: dict[str, Any], path: Path) -> None:
    """One method on every grid, VP."""
    method = "unipc, lower_final=always, p=3"
    figure, panels = plt.subplots(1, 3, figsize=(13, 4.0), sharey=True, layout="constrained")
    for axes, target in zip(panels, TARGETS, strict=True):
        style(axes, target)
        found = [
            one
            for one in result["deterministic"]
            if (one["target"], one["process"], one["method"]) == (target, "VP", method)
        ]
        for colour, one in zip(COLOURS, found, strict=False):
            axes.plot(*zip(*points(one), strict=True), color=colour, lw=2, marker="o", ms=3.5, label=one["grid"])
    panels[0].set_ylabel("RMS distance from the exact flow")
    finish(figure, panels[0], path)


def draw_stochastic(result: dict[str, Any], path: Path) -> None:
    """Distances of stochastic solvers with the floor of Monte Carlo, peers dashed, VP."""
    lines = {
        "em": ("uniform", None),
        "ancestral": ("log_snr", "k-diffusion euler_ancestral"),
        "dpmpp_sde_2m": ("log_snr", "diffusers SDE-DPM-Solver++ 2M"),
        "pc, corrector=AnnealedLangevin": ("log_snr", None),
        "heun, s_churn=10.0": ("karras", None),
    }
    parts = result["stochastic"]
    figure, panels = plt.subplots(1, len(parts), figsize=(4.6 * len(parts), 4.2), squeeze=False, layout="constrained")
    for axes, part in zip(panels[0], parts, strict=True):
        style(axes, f"{part['target']}, {part['count']} samples")
        axes.axhspan(*part["floor"], color="0.85", label="two exact sets")
        for colour, (method, (grid, peer)) in zip(COLOURS, lines.items(), strict=False):
            for one in part["curves"]:
                if one["grid"] == grid and one["method"] == method and "peer" not in one:
                    name = f"{method}, {grid}"
                    axes.plot(*zip(*points(one), strict=True), color=colour, lw=3.5, alpha=0.55, label=name)
                if one["grid"] == grid and one.get("peer") == peer and peer:
                    axes.plot(*zip(*points(one, "peer_error"), strict=True), color=colour, lw=1.3, ls="--", label=peer)
    panels[0][0].set_ylabel("sliced Wasserstein distance from exact samples")
    finish(figure, panels[0][0], path)


def finish(figure: Any, axes: Axes, path: Path) -> None:
    """One legend for all panels, at their right."""
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def tables(result: dict[str, Any], budget: dict[str, Any]) -> dict[str, str]:
    """The page's tables by their marks."""
    return {
        "budget": budget_table(),
        "what it gives": report(budget["rows"]),
        "best": best_table(result["deterministic"], ("VP",), (5, 6, 8, 10, 12, 15, 20, 25, 35, 50, 75, 100)),
        "best, other processes": best_table(result["deterministic"], ("sub-VP", "VE"), (5, 10, 20, 50, 100)),
        "ratios": ratio_table(result["pairs"]),
        "defaults": defaults_table(result["pairs"], result["deterministic"]),
        "chain": chain_table(result["chain"]),
        "stochastic": stochastic_table(result["stochastic"]),
    }


def with_tables(text: str, result: dict[str, Any], budget: dict[str, Any]) -> str:
    """`text` with what stands between each pair of marks written anew."""
    return fill_marks(text, "solvers", tables(result, budget))


def read_results() -> tuple[dict[str, Any], dict[str, Any]]:
    """What solvers.py and solvers_budget.py wrote."""
    result, budget = (json.loads((RESULTS / f"{name}.json").read_text()) for name in ("solvers", "solvers_budget"))
    return result, budget


def main() -> None:
    """Write page and pictures."""
    result, budget = read_results()
    PAGE.write_text(with_tables(PAGE.read_text(), result, budget))
    PICTURES.mkdir(exist_ok=True)
    draw_methods(result, PICTURES / "solvers_methods.png")
    draw_grids(result, PICTURES / "solvers_grids.png")
    draw_stochastic(result, PICTURES / "solvers_stochastic.png")
    print(f"wrote {PAGE.relative_to(ROOT)} and three pictures")


if __name__ == "__main__":
    main()
