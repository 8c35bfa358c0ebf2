"""Seconds of bits/dim of a trained model to the error of the field's usual way: SciPy's RK45 at 1e-5 over the batch.

`usual way` is Song et al. 2021 as it is commonly run (`likelihood.py`): one vector for the whole batch, drift and
divergence each with an evaluation of its own. `SciPy, one graph` shares that evaluation. `ours` is `log_likelihood` by
`ode`, every image in its own steps, at the loosest tolerance of 10^(−k/2) whose error is no larger. The same images,
one probe with the same direction for each, in float32; the error is the root mean square over the images in bits/dim
against a solve at 1e-6 with that direction. Time by the clock, on all threads or on the GPU, in alternating rounds.

    python benchmarks/likelihood_speed.py [--quick] [--device cuda] [--checkpoint RUN_OR_FILE] [--images 16] [--page]
"""

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from adaptive_ode import Counted
from common import RESULTS, ROOT, describe, fill_marks, machine_facts, short, table, write_results
from likelihood import USUAL, USUAL_TOLERANCE, Problem, trained
from torch import Tensor

from sde_diffusion.likelihood.log_likelihood import full_precision
from sde_diffusion.pretrained import pretrained

OURS, SHARED = "ours", "SciPy, one graph"
TOLERANCES = tuple(10 ** (-k / 2) for k in range(2, 11))


def error(problem: Problem, found: Tensor, exact: Tensor) -> float:
    """Root mean square over the images [bits/dim]."""
    return float((problem.bits(found) - exact).square().mean().sqrt())


def loosest(problem: Problem, exact: Tensor, bound: float) -> float:
    """The largest tolerance at which ours errs no more than `bound`."""
    for tol in TOLERANCES:
        if error(problem, problem.contenders()[OURS](problem.score_fn, tol), exact) <= bound:
            return tol
    return TOLERANCES[-1]


def measure(problem: Problem, rounds: int, tol: float = USUAL_TOLERANCE) -> dict[str, Any]:
    """Error, evaluations and seconds of each contender, the usual way at `tol`."""
    exact, scorers = problem.bits(problem.exact()), problem.contenders()
    bound = error(problem, scorers[USUAL](problem.score_fn, tol), exact)
    tolerances = {OURS: loosest(problem, exact, bound), SHARED: tol, USUAL: tol}

    def once(name: str) -> dict[str, float]:
        counted = Counted(problem.score_fn)
        clock = time.perf_counter()
        values = scorers[name](counted, tolerances[name])
        seconds = time.perf_counter() - clock  # the values are on the CPU, so all is done
        off = error(problem, values, exact)
        return {"seconds": seconds, "error": off, "evaluations": counted.images / len(exact)}

    runs: dict[str, list[dict[str, float]]] = {name: [] for name in tolerances}
    for number in range(rounds):
        for name in list(runs)[:: -1 if number % 2 else 1]:
            runs[name].append(once(name))
    ratios = [own["seconds"] / usual["seconds"] for own, usual in zip(runs[OURS], runs[USUAL], strict=True)]
    return {
        "bits_per_dim": float(exact.mean()),
        "contenders": {
            name: own[0] | {"tolerance": tolerances[name], "seconds": statistics.median(row["seconds"] for row in own)}
            for name, own in runs.items()
        },
        "ours_over_usual": statistics.median(ratios),
        "rounds": rounds,
    }


def report(results: dict[str, Any]) -> str:
    """The table of the page."""
    found = results["contenders"]
    rows = [
        [
            name,
            f"{row['tolerance']:.0e}",
            f"{row['error']:.1e}",
            f"{row['evaluations']:.0f}",
            short(row["seconds"], 3),
            short(row["seconds"] / found[USUAL]["seconds"], 2),
        ]
        for name, row in found.items()
    ]
    return table(["contender", "tolerance", "error [bits/dim]", "evaluations", "s", "s / usual way"], rows)


def main() -> None:
    """Measure, print, write; `--page` puts the table of the result file into the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two images at loose tolerances, to see that it works")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--checkpoint", type=Path, help="a run's folder or a file (default: the one of the package)")
    parser.add_argument("--images", type=int, default=16, help="images (default 16)")
    parser.add_argument("--rounds", type=int, default=3, help="alternating rounds (default 3)")
    parser.add_argument("--page", action="store_true", help="write docs/performance.md's table from the result file")
    parser.add_argument("--out", type=Path, help="result file (default results/likelihood_speed_DEVICE.json)")
    options = parser.parse_args()
    out = options.out or RESULTS / f"likelihood_speed_{options.device}.json"
    if options.page:
        page = ROOT / "docs" / "performance.md"
        page.write_text(fill_marks(page.read_text(), "likelihood", {"speed": report(json.loads(out.read_text()))}))
        return
    device = torch.device(options.device)
    facts = machine_facts(("numpy", "scipy"))
    print(describe(facts))
    problem = trained(
        options.checkpoint or pretrained("fashion_mnist_vp"), 2 if options.quick else options.images, options.device
    )
    if options.quick:
        problem = replace(problem, reference=replace(problem.reference, rtol=1e-3, atol=1e-3))
    with full_precision(device):
        results = measure(problem, 1, 1e-1) if options.quick else measure(problem, options.rounds)
    gpu = {"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}
    results |= {"machine": facts | gpu, "images": len(problem.x0), "problem": problem.name}
    print(f"\n{problem.name}, {results['images']} images\n\n{report(results)}")
    write_results(out, results)


if __name__ == "__main__":
    main()
