"""Bits/dim of the held-out digits after training for likelihood and for pictures, with equal budgets.

Every variant has the same network, batches, steps, optimizer and averaging, starts at the same noise (but the
truncated normal, which wants more) and is trained from several seeds. Its 297 held-out digits are scored by `python
cli.py likelihood`: probability flow, one probe, the noise that the variant's config names. The uniform numbers behind
the dequantisation and the probes of image i are the same in all variants of a seed, so differences are taken image by
image:

- `bits/dim` is the mean over images, of the mean over seeds, with the interval over images;
- `minus σ²` is the paired difference to training for pictures on uniform dequantisation: of the mean over seeds with
  its interval over images, and with that over seeds alone (Student's t with as many degrees of freedom less one). The
  largest of the seeds is the last column; JSON has the interval over images of each.

Work lies in a folder, each run in its own; what is there is taken up, so a killed benchmark goes on. `--finished` tells
what is done so far and runs nothing; a variant that has fewer seeds is compared on those.

    python benchmarks/mle.py [--quick] [--finished] [--steps N] [--seeds 0,1,2] [--only "NAME;NAME"]
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, ROOT, describe, machine_facts, table, use_one_thread, write_results
from torch import Tensor

from sde_diffusion.likelihood import Interval, mean_interval

EQUAL = (
    *("model.network={name: unet, channels: 16, attention: [4]}", "training.learning_rate=1.0e-3"),
    *("training.sample_every=0", "training.validate_every=0"),
    *("training.log_every=100", "training.save_every=100"),
)


@dataclass(frozen=True)
class Variant:
    """One way to train.

    Attributes:
        name: Short, for the table.
        options: Of `python cli.py train`.
    """

    name: str
    options: tuple[str, ...]


def _options(*assignments: str) -> tuple[str, ...]:
    return tuple(part for assignment in assignments for part in ("--set", assignment))


SIMPLE = ("loss.weighting=simple", "loss.time_sampler=stratified")
LIKELIHOOD = ("loss.weighting=likelihood", "loss.time_sampler=importance")
VP, SUBVP = "sde={name: vp, t_min: 1.0e-3}", "sde={name: subvp, t_min: 0.028}"  # σ there is 0.0105 in both
BASELINE = "σ², VP"
VARIANTS = (
    Variant(BASELINE, _options(VP, *SIMPLE)),
    Variant("g², VP", _options(VP, *LIKELIHOOD)),
    Variant("g², VP, flow", ("--config", "configs/digits_mle.yaml")),
    Variant("g², sub-VP", _options(SUBVP, *LIKELIHOOD)),
    Variant("g², VP, truncated normal", ("--config", "configs/digits_truncated_normal.yaml")),
)


@dataclass(frozen=True)
class Budget:
    """What every variant may spend, and on how many images it is scored."""

    steps: int
    seeds: tuple[int, ...]
    limit: int | None


def command(*arguments: object) -> None:
    """Run the command line of this repository on one thread; its errors end this process."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    line = [sys.executable, str(ROOT / "cli.py"), *map(str, arguments)]
    subprocess.run(line, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)


def score(variant: Variant, seed: int, budget: Budget, work: Path, *, finished: bool) -> Tensor | None:
    """Bits/dim of each image, (n,), of a run that is trained and scored if it is not yet; if `finished`, then None."""
    run = work / f"{''.join(c for c in variant.name if c.isalnum() or c in '²-')}_{budget.steps}_seed{seed}"
    result = run / "likelihood"
    if not (result / "likelihood.json").exists():
        if finished:
            return None
        command("train", *variant.options, *_options(*EQUAL), "--steps", budget.steps, "--seed", seed, "--out", run)
        limit = () if budget.limit is None else ("--limit", budget.limit)
        command("likelihood", run, "--no-reference", "--out", result, *limit)
    with np.load(result / "per_image.npz") as columns:
        return torch.from_numpy(columns["bits_per_dim"]).double()


def paired(ours: Tensor, theirs: Tensor) -> dict[str, Any]:
    """Differences of two (seeds, n): over images of the mean over seeds, of each seed, and over seeds."""
    difference = ours - theirs
    seeds = mean_interval(difference.mean(1))
    return {
        "images": plain(mean_interval(difference.mean(0))),
        "each_seed": [plain(mean_interval(row)) for row in difference],
        "seeds": plain(seeds),
    }


def plain(interval: Interval) -> dict[str, float | None]:
    """As JSON values."""
    mean, half_width = interval.plain()
    return {"mean": mean, "half_width": half_width}


def as_text(facts: dict[str, float | None]) -> str:
    """mean ± half-width."""
    half_width = facts["half_width"]
    return f"{facts['mean']:+.4f}" + ("" if half_width is None else f" ± {half_width:.4f}")


def report(scores: dict[str, dict[int, Tensor]], variants: Sequence[Variant]) -> list[dict[str, Any]]:
    """One row for each variant that has been scored, by seed."""
    rows = []
    for variant in variants:
        if not scores[variant.name]:
            continue
        values = torch.stack(list(scores[variant.name].values()))
        shared = [seed for seed in scores[variant.name] if seed in scores.get(BASELINE, {})]
        row: dict[str, Any] = {
            "variant": variant.name,
            "options": list(variant.options),
            "seeds": list(scores[variant.name]),
            "images": values.shape[1],
            "bits_per_dim": plain(mean_interval(values.mean(0))),
            "each_seed": [float(mean) for mean in values.mean(1)],
        }
        if variant.name != BASELINE and shared:
            ours, theirs = (torch.stack([scores[name][s] for s in shared]) for name in (variant.name, BASELINE))
            row["minus"] = paired(ours, theirs)
        rows.append(row)
    return rows


def as_table(rows: list[dict[str, Any]]) -> str:
    """For the terminal and the documentation."""
    lines = []
    for row in rows:
        mean = row["bits_per_dim"]
        cells = [row["variant"], f"{mean['mean']:.4f} ± {mean['half_width'] or float('nan'):.4f}"]
        cells.append(", ".join(f"{value:.4f}" for value in row["each_seed"]))
        if "minus" in row:
            minus = row["minus"]
            worst = max(seed["mean"] for seed in minus["each_seed"])
            cells += [as_text(minus["images"]), as_text(minus["seeds"]), f"{worst:+.4f}"]
        lines.append(cells + [""] * (6 - len(cells)))
    headers = ["variant", "bits/dim", "each seed", f"minus {BASELINE}: images", "seeds", "worst seed"]
    return table(headers, lines)


def main() -> int:
    """Train, score, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="20 steps, 2 seeds, 16 images, to see that it works")
    parser.add_argument("--finished", action="store_true", help="only tell what is done so far")
    parser.add_argument("--steps", type=int, default=1000, help="training steps of each run (default 1000)")
    parser.add_argument("--seeds", default="0,1,2", help="default 0,1,2")
    parser.add_argument("--only", help="names of variants, separated by semicolons")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "mle", help="folder of the runs")
    parser.add_argument("--out", type=Path, default=RESULTS / "mle.json", help="result file")
    options = parser.parse_args()

    use_one_thread()
    facts = machine_facts()
    print(describe(facts))
    seeds = tuple(int(seed) for seed in options.seeds.split(","))
    budget = Budget(20, seeds[:2], 16) if options.quick else Budget(options.steps, seeds, None)
    work = options.work.resolve()
    chosen = [v for v in VARIANTS if not options.only or v.name in options.only.split(";")]
    scores: dict[str, dict[int, Tensor]] = {variant.name: {} for variant in chosen}
    for seed in budget.seeds:
        for variant in chosen:
            found = score(variant, seed, budget, work, finished=options.finished)
            if found is not None:
                scores[variant.name][seed] = found
                print(f"seed {seed}, {variant.name}: {float(found.mean()):.4f}", flush=True)
    rows = report(scores, chosen)
    print(f"\n{budget.steps} steps, {len(budget.seeds)} seeds\n\n{as_table(rows)}\n")
    write_results(
        options.out,
        {
            "machine": facts,
            "steps": budget.steps,
            "seeds": list(budget.seeds),
            "equal": list(EQUAL),
            "variants": rows,
        },
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
