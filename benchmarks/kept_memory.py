"""What `perf.keep_memory` does on the CPU: seconds of a training step, a forward pass, and drift with divergence.

The network of configs/fashion_mnist_vp.yaml on batches of 64 random images, all threads. The setting holds for a whole
process, so every measurement is a process of its own; the two settings take turns. Times are medians within a process,
and then over processes with quartiles; pages are what a process asked of the system while it was timed.

    python benchmarks/kept_memory.py [--rounds 5] [--quick]
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, ROOT, Spread, describe, machine_facts, table, write_results

from sde_diffusion.config.build import build_trainer, read_config
from sde_diffusion.data import Batch
from sde_diffusion.likelihood import Hutchinson
from sde_diffusion.training import RunFolder

SETTINGS = ("never", "always")
WORK = ("training step, float32", "training step, bfloat16", "forward, float32", "drift and divergence, float32")
BATCH, WARM, TIMED = 64, 2, 8


def prepared(work: str, setting: str, folder: Path) -> Callable[[], Any]:
    """A call that does the work once."""
    precision = work.rpartition(" ")[2]
    overrides = [f"training.precision={precision}", f"perf.keep_memory={setting}", f"training.batch={BATCH}"]
    config = read_config(ROOT / "configs" / "fashion_mnist_vp.yaml", overrides)
    trainer = build_trainer(config, RunFolder(folder), torch.device("cpu"))
    draws = torch.Generator().manual_seed(0)
    x, t = torch.randn(BATCH, 1, 28, 28, generator=draws), torch.rand(BATCH, generator=draws)
    if work.startswith("training"):
        trainer.model.train()
        return lambda: trainer.train_step(Batch(x, None))
    model = trainer.ema.model
    if work.startswith("forward"):
        return torch.no_grad()(lambda: model(x, t))
    trace = Hutchinson().bind(x, seed=0, start=0)
    return lambda: trace(model, x, t)


def measure(work: str, setting: str, times: int) -> dict[str, float]:
    """In this process."""
    with tempfile.TemporaryDirectory() as folder:
        run = prepared(work, setting, Path(folder))
        for _ in range(WARM):
            run()
        seconds, before = [], resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(times):
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    pages = (usage.ru_minflt - before) / times
    return {"seconds": statistics.median(seconds), "pages": pages, "peak_mib": usage.ru_maxrss / 1024}


def apart(work: str, setting: str, times: int) -> dict[str, float]:
    """In a process of its own."""
    command = [sys.executable, __file__, "--one", work, "--setting", setting, "--times", str(times)]
    found: dict[str, float] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return found


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="two rounds of one call each")
    parser.add_argument("--out", type=Path, default=RESULTS / "kept_memory.json")
    for hidden, kind in (("--one", str), ("--setting", str), ("--times", int)):
        parser.add_argument(hidden, type=kind, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.setting, options.times)))
        return
    rounds, times = (2, 1) if options.quick else (options.rounds, TIMED)
    rows, results = [], {}
    for work in WORK:
        found: dict[str, list[dict[str, float]]] = {setting: [] for setting in SETTINGS}
        for number in range(rounds):
            for setting in SETTINGS[:: -1 if number % 2 else 1]:
                found[setting].append(apart(work, setting, times))
        spreads = {name: Spread.of([one["seconds"] for one in ones]) for name, ones in found.items()}
        ratio = Spread.of([a["seconds"] / b["seconds"] for a, b in zip(*found.values(), strict=True)])
        results[work] = {"ratio": ratio.as_dict(), "runs": found}
        cells = [f"{1e3 * spreads[name].median:.0f} ({found[name][0]['pages']:.0f})" for name in SETTINGS]
        rows.append([work, *cells, f"{ratio.median:.2f} ({ratio.low:.2f}–{ratio.high:.2f})"])
    facts = machine_facts()
    print(describe(facts))
    print(table(("ms a call (pages asked for)", *SETTINGS, "ratio"), rows))
    write_results(options.out, {"facts": facts, "work": results})


if __name__ == "__main__":
    main()
