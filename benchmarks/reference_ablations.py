"""Which recipe for the reference model of Fashion-MNIST: short trainings of equal time, scored on the same images.

Every variant is a change of configs/fashion_mnist_reference.yaml on a smaller network, trained by one thread for the
same seconds of CPU time: its learning rate falls along a cosine over that time, and its weights are averaged with
length 0.1. Scored are the first 256 of the images held out of training (never the test split), by the variational
bound of the reverse SDE with 32 pairs (t, ε) an image, in bits/dim of n: by a decoder for what was trained on the
centres of the bins, else by the dequantisation that was trained with it. The noise behind image i is the same for all,
so differences are paired.

Work lies in runs/reference_ablations, a file a variant; what is there is not done again.

    python benchmarks/reference_ablations.py [--seconds 240] [--only NAME …] [--list] [--report]
"""

import argparse
import json
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, ROOT, describe, machine_facts, table, use_one_thread, write_results

from sde_diffusion.config.build import build_model, build_parts, count_parameters, read_config, resolve_perf
from sde_diffusion.config.schema import Config
from sde_diffusion.data import training_batches
from sde_diffusion.likelihood import FlowDequantisation, Levels, Points, UniformDequantisation, continuous_bound
from sde_diffusion.likelihood.audit.learned_noise import PART
from sde_diffusion.likelihood.summary import mean_interval
from sde_diffusion.rng import SampleStream, derive_seed
from sde_diffusion.runtime.performance import prepare, resolve_precision
from sde_diffusion.training.ema import EMA
from sde_diffusion.training.optimizer import make_optimizer
from sde_diffusion.training.step import StepLoss

CONFIG = ROOT / "configs" / "fashion_mnist_reference.yaml"
WORK = ROOT / "runs" / "reference_ablations"
IMAGES, DRAWS, LENGTH = 256, 32, 0.1
WARMUP = 0.05  # share of the time in which the learning rate rises
_NET = "model.network"
BASE = (  # a small network, the choices of which are then made one by one
    *(f"{_NET}.channels=24", f"{_NET}.time=shift", f"{_NET}.fourier=[]", f"{_NET}.fourier_gate=false"),
    *("training.learning_rate=1.0e-3", "training.decay=cosine", "training.dequantise=uniform"),
)
FILM, WAVES = f"{_NET}.time=scale_shift", f"{_NET}.fourier=[6, 7]"
GATED = (FILM, WAVES, f"{_NET}.fourier_gate=true")
VARIANTS: dict[str, tuple[str, ...]] = {
    "base": (),
    "waves": (WAVES,),
    "waves, centres of the bins": (WAVES, "training.dequantise=centre"),
    "film": (FILM,),
    "film, gated waves": GATED,
    "film, gated waves, centres of the bins": (*GATED, "training.dequantise=centre"),
    "film, gated waves, flow": (*GATED, "training.dequantise=flow"),
    "film, learning rate 2e-3": (FILM, "training.learning_rate=2.0e-3"),
    "film, patches of 2 × 2": (FILM, f"{_NET}.patch=2", f"{_NET}.channels=48", f"{_NET}.multipliers=[1, 2]"),
    "film, predict ε": (FILM, "model.prediction=eps"),
    "film, sub-VP": (FILM, "sde={name: subvp, t_min: 0.0032}"),
    "film, t_min 1e-6": (FILM, "sde={name: vp, t_min: 1.0e-6}"),
    "film, batch 32": (FILM, "training.batch=32"),
    "film, flips": (FILM, "training.flip=true"),
    "film, two blocks": (FILM, f"{_NET}.blocks=2"),
}


def train(config: Config, seconds: float) -> tuple[StepLoss, EMA[Any], int]:
    """Train for `seconds` of CPU time; the loss with its modules, the averages, and the steps taken."""
    device = torch.device("cpu")
    data = config.data.load("train")
    model = build_model(config, data.spec, device)
    prepare(model, resolve_perf(config, device))
    rough = resolve_precision(config.training.precision, device) == "bfloat16"
    parts = build_parts(config, data.spec, device)
    step_loss = StepLoss(model, parts, config.loss, levels=data.spec.levels, rough=rough)
    ema = EMA(model, 0.99, profiles=(LENGTH,))
    optimizer = make_optimizer(config.training, step_loss.trained())
    batches = training_batches(
        data,
        batch=config.training.batch,
        seed=config.seed,
        flip=config.training.flip,
        dequantise=config.training.dequantise.uniform,
    )
    schedule = replace(config.training, steps=1_000_000, warmup=int(1_000_000 * WARMUP))
    start, step = time.process_time(), 0
    while (done := (time.process_time() - start) / seconds) < 1:
        draws = SampleStream(config.seed, 0xAB1A, step, start=0, count=config.training.batch)
        torch.manual_seed(derive_seed(config.seed, step))
        step_loss(next(batches).x, None, draws, config.loss.time_sampler).trained.mean().backward()
        torch.nn.utils.clip_grad_norm_(step_loss.trained().values(), config.training.clip or float("inf"))
        for group in optimizer.param_groups:
            group["lr"] = schedule.learning_rate_at(int(done * 1_000_000))
        optimizer.step()
        optimizer.zero_grad()
        ema.update(model, step)
        step += 1
        if step % 100 == 0:
            print(f"  step {step}, {100 * done:.0f} %", flush=True)
    return step_loss, ema, step


@torch.no_grad()
def score(config: Config, step_loss: StepLoss, ema: EMA[Any]) -> torch.Tensor:
    """Bits/dim of each image, (IMAGES,), by the averaged weights in float32."""
    data = config.data.load("validation")
    model = ema.model
    weights = {name.removeprefix(f"ema_profile.{LENGTH}."): value for name, value in ema.profiles().items()}
    model.load_state_dict(model.state_dict() | weights)
    found = []
    for first in range(0, IMAGES, 64):
        values = data.fetch(torch.arange(first, first + 64))[0]
        if config.training.dequantise.scored_by == "truncated_normal":
            target, log_q = Levels(data.spec, values), torch.zeros(64, dtype=torch.float64)
        else:
            noise = (
                FlowDequantisation().bind(dict(step_loss.parts.items()))
                if PART in step_loss.parts
                else UniformDequantisation()
            )
            drawn = noise.draw(data.spec, config.sde, values, seed=0, start=first)
            target, log_q = Points(drawn.x[0]), drawn.log_q[0]
        bound = continuous_bound(model, config.sde, target, draws=DRAWS, seed=0, start=first)
        found.append((log_q - bound.log_prob) / (data.spec.dims * torch.log(torch.tensor(2.0, dtype=torch.float64))))
    return torch.cat(found)


def work(name: str, seconds: float, path: Path) -> None:
    """Train and score one variant."""
    config = read_config(CONFIG, (*BASE, *VARIANTS[name]))
    clock = time.monotonic()
    step_loss, ema, steps = train(config, seconds)
    facts = {
        "variant": name,
        "overrides": [*BASE, *VARIANTS[name]],
        "seconds": seconds,
        "wall_seconds": time.monotonic() - clock,
        "steps": steps,
        "images": steps * config.training.batch,
        "parameters": count_parameters(step_loss.model),
        "bits_per_dim": score(config, step_loss, ema).tolist(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(facts))


def report(results: dict[str, dict[str, Any]]) -> str:
    """The table of all variants that are done, best first, each against the base."""
    base = torch.tensor(results["base"]["bits_per_dim"]) if "base" in results else None
    rows = []
    for name, facts in sorted(results.items(), key=lambda item: sum(item[1]["bits_per_dim"])):
        bits = torch.tensor(facts["bits_per_dim"])
        mean = mean_interval(bits)
        minus = "" if base is None else f"{mean_interval(bits - base).mean:+.4f} ± {mean_interval(bits - base)[1]:.4f}"
        rows.append(
            [
                name,
                str(mean),
                minus,
                f"{facts['parameters'] / 1e6:.2f}",
                f"{facts['images']:,}",
                f"{facts['seconds']:.0f}",
            ]
        )
    return table(("variant", "bits/dim", "minus the base", "million weights", "images seen", "s"), rows)


def main() -> None:
    """Parse, work, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=240.0, help="CPU time of each training")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME")
    parser.add_argument("--list", action="store_true", help="list the variants")
    parser.add_argument("--report", action="store_true", help="train nothing; print and keep what is done")
    options = parser.parse_args()
    if options.list:
        print("\n".join(f"{name:24} {'  '.join(changes)}" for name, changes in VARIANTS.items()))
        return
    use_one_thread()
    paths = {
        name: WORK / f"{options.seconds:.0f}s" / f"{re.sub(r'[^a-z0-9]+', '_', name.lower())}.json" for name in VARIANTS
    }
    for name in () if options.report else options.only:
        if not paths[name].exists():
            print(name, flush=True)
            work(name, options.seconds, paths[name])
    results = {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}
    print(report(results))
    if options.report:
        facts = machine_facts()
        print(describe(facts))
        write_results(RESULTS / "reference_ablations.json", {"facts": facts, "variants": results})


if __name__ == "__main__":
    main()
