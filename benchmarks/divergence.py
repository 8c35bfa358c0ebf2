"""What a divergence costs, in forwards of the same network at the same batch: the figures behind `mode` and `chunk`.

- `with graph`: a forward that keeps its graph; `further probe`: one reverse pass (vjp) on a kept graph.
- `drift + probe`: `score_and_trace` with one probe, in reverse and in forward mode.
- `8 probes`: by one vjp after the other, by eight copies of the batch in one pass, and by `torch.func`'s vmap.
- `exact trace`: of one image of D dimensions for several numbers of copies, from a part of its passes: in forwards of
  that image by itself over D, and over D forwards of one image out of a full batch.

In float32, time by the clock on all threads of the machine, or on the GPU; medians over alternating rounds.

    python benchmarks/divergence.py [--quick] [--device cuda] [--checkpoint RUN_OR_FILE] [--page]
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, ROOT, describe, fill_marks, machine_facts, short, table, write_results
from torch import Tensor
from trained import trained_model

from sde_diffusion.likelihood.divergence import Copies, ExactTrace, Hutchinson, quadratic_forms, reverse_pass
from sde_diffusion.likelihood.log_likelihood import full_precision
from sde_diffusion.model import ScoreModel
from sde_diffusion.networks import UNet
from sde_diffusion.runtime.performance import PerfConfig, prepare
from sde_diffusion.sde import VPSDE

PROBES = 8
COPIES = (1, 8, 32, 128)
PASSES = 4  # of an exact trace that are timed


def network(checkpoint: Path | None, device: torch.device) -> ScoreModel:
    """The trained model, or one of the same kind with weights by chance."""
    if checkpoint is not None:
        return trained_model(checkpoint, device, "perf.cuda_graphs=never").model
    model = ScoreModel(UNet((1, 28, 28), channels=32), VPSDE(), prediction="v").to(device).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(std=0.05)
    prepare(model, PerfConfig().resolve(device))
    return model


def seconds(runs: dict[str, Callable[[], Any]], rounds: int, device: torch.device) -> dict[str, float]:
    """Median time of each run by the clock, in alternating rounds after one that is not kept."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name in list(runs)[:: -1 if number % 2 else 1]:
            _wait(device)
            clock = time.perf_counter()
            runs[name]()
            _wait(device)
            if number:
                found[name].append(time.perf_counter() - clock)
    return {name: statistics.median(times) for name, times in found.items()}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def at_batch(
    model: ScoreModel, batch: int, shape: tuple[int, ...], device: torch.device, rounds: int
) -> dict[str, float]:
    """Seconds of everything at one batch size."""
    x, t = torch.randn(batch, *shape, device=device), torch.full((batch,), 0.5, device=device)
    signs = torch.randn(PROBES, batch, *shape, device=device).sign()
    kept = x.clone().requires_grad_()
    with torch.enable_grad():
        score = model(kept, t)

    def forward() -> Tensor:
        with torch.no_grad():
            return model(x, t)

    def with_graph() -> Tensor:
        with torch.enable_grad():
            return model(x.clone().requires_grad_(), t)

    def vmapped(score: Tensor, x: Tensor) -> Tensor:
        products = torch.autograd.grad(score, x, signs, retain_graph=True, is_grads_batched=True)[0]
        return (products * signs).flatten(2).sum(2).T

    def probes(count: int, chunk: int, mode: Any = "reverse") -> Callable[[], Any]:
        trace = Hutchinson(probes=count, chunk=chunk, mode=mode).bind(x, seed=0, start=0)
        return lambda: trace(model, x, t)

    runs: dict[str, Callable[[], Any]] = {
        "forward": forward,
        "with graph": with_graph,
        "further probe": lambda: quadratic_forms(score, kept, signs[:1]),
        "drift + probe, reverse": probes(1, 1),
        "drift + probe, forward mode": probes(1, 1, "forward"),
        "8 probes, one by one": probes(PROBES, 1),
        "8 probes, copies": probes(PROBES, PROBES),
    }
    if batch <= 8:
        runs["8 probes, vmap"] = lambda: reverse_pass(model, x, t, 1, vmapped)
    found = {}
    for name in list(runs):
        try:
            runs[name]()
        except Exception as error:  # forward mode or vmap may lack an operation of the network
            print(f"batch {batch}: no {name} ({str(error).splitlines()[0][:80]})")
            del runs[name]
    found |= seconds(runs, rounds, device)
    return found


def exact(model: ScoreModel, shape: tuple[int, ...], device: torch.device, rounds: int) -> dict[int, float]:
    """Seconds of the exact trace of one image, for each number of copies: its forward, and its vjps scaled up."""
    dims, x, t = math.prod(shape), torch.randn(1, *shape, device=device), torch.full((1,), 0.5, device=device)
    runs: dict[str, Callable[[], Any]] = {}
    for copies in COPIES:
        units = torch.eye(dims, device=device).reshape(-1, 1, *shape)[: PASSES * copies]
        for passes in (1, PASSES):
            pass_of = Copies(copies, dims, {})
            part = units[: passes * copies]
            runs[f"{copies} {passes}"] = lambda part=part, pass_of=pass_of: pass_of(  # type: ignore[misc]
                model, x, t, lambda count, part=part: torch.split(part, count)
            )
    found = seconds(runs, rounds, device)
    whole = {}
    for copies in COPIES:
        one, several = found[f"{copies} 1"], found[f"{copies} {PASSES}"]
        vjp = (several - one) / (PASSES - 1)
        whole[copies] = one + (math.ceil(dims / copies) - 1) * vjp
    return whole


def report(results: dict[str, Any]) -> dict[str, str]:
    """The tables of the page: costs in forwards by batch, and the exact trace."""
    names = list(dict.fromkeys(name for row in results["batches"].values() for name in row if name != "forward"))
    rows = [
        [name, *(short(row[name] / row["forward"], 3) if name in row else "" for row in results["batches"].values())]
        for name in names
    ]
    rows.append(["forward [ms]", *(short(1e3 * row["forward"], 3) for row in results["batches"].values())])
    own, full, dims = results["forward_of_one"], results["forward_in_batch"], results["dims"]
    traces = [
        [str(copies), short(value, 3), short(value / (dims * own), 3), short(value / (dims * full), 3)]
        for copies, value in results["exact"].items()
    ]
    heads = ["copies", "s", f"in forwards of one image / {dims}", f"in forwards per image of a full batch / {dims}"]
    return {
        "batches": table(["in forwards, at a batch of", *results["batches"]], rows),
        "exact": table(heads, traces),
    }


def main() -> None:
    """Measure, print, write; `--page` puts the tables of the result file into the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one batch, two rounds, to see that it works")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--checkpoint", type=Path, help="a trained model: a run's folder or a checkpoint file")
    parser.add_argument("--rounds", type=int, default=5, help="alternating rounds (default 5)")
    parser.add_argument("--page", action="store_true", help="write docs/performance.md's tables from the result file")
    parser.add_argument("--out", type=Path, help="result file (default results/divergence_DEVICE.json)")
    options = parser.parse_args()
    out = options.out or RESULTS / f"divergence_{options.device}.json"
    if options.page:
        page = ROOT / "docs" / "performance.md"
        page.write_text(fill_marks(page.read_text(), "divergence", report(json.loads(out.read_text()))))
        return
    device, batches = torch.device(options.device), (1, 8, 32) if options.device == "cpu" else (1, 32, 256)
    rounds = 2 if options.quick else options.rounds
    facts = machine_facts()
    print(describe(facts))
    torch.manual_seed(0)
    model, shape = network(options.checkpoint, device), (1, 28, 28)
    with full_precision(device):
        found = {
            str(batch): at_batch(model, batch, shape, device, rounds) for batch in batches[: 1 if options.quick else 3]
        }
        traces = exact(model, shape, device, rounds)
    per_image = min(row["forward"] / int(batch) for batch, row in found.items())
    results = {
        "machine": facts | ({"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}),
        "rounds": rounds,
        "batches": found,
        "exact": {str(copies): value for copies, value in traces.items()},
        "dims": math.prod(shape),
        "forward_of_one": found["1"]["forward"],
        "forward_in_batch": per_image,
        "auto": {"exact": str(ExactTrace()), "probes": str(Hutchinson())},
    }
    for text in report(results).values():
        print(f"\n{text}")
    write_results(out, results)


if __name__ == "__main__":
    main()
