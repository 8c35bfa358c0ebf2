"""The reference models of Fashion-MNIST: trained, scored on all 10,000 test images, and drawn from by every solver.

Sub-VP is trained for bits/dim (λ = g², importance sampling), VP for pictures (λ = σ²), by
configs/fashion_mnist_reference_{subvp,vp}.yaml: 3.6 million parameters, so that the weights fit in 16 MB, and 100
epochs, minutes on a data-centre GPU. What is trained is what `python cli.py train` trains, and scored what `python
cli.py likelihood` scores.

Work lies in runs/reference and every part of it is taken up where a kill left it; the results are files in --out:

    reference.json                  bits/dim with intervals, steps, images per second, evaluations, facts of the machine
    fashion_mnist_{subvp,vp}.safetensors     weights alone, for `sample FILE` and sde_diffusion/pretrained
    samples_{subvp,vp}.png          twelve samples by each solver at its defaults, from the same noise

    python benchmarks/train_reference.py [--out DIR] [--device cuda] [--minutes 9] [--only vp] [--quick]

--minutes bounds one call: what runs then is told to save and stop. Exit code 0: all is done; 75: call again.
"""

import argparse
import dataclasses
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, ROOT, machine_facts, table, write_results

from sde_diffusion.config.build import Trained, choose_device, load_trained, read_config
from sde_diffusion.exchange import FORMATS
from sde_diffusion.pictures import save_classes
from sde_diffusion.sampling import sample
from sde_diffusion.solvers import SOLVERS, SeededNoise
from sde_diffusion.training import RunFolder, load_checkpoint

MODELS = ("subvp", "vp")
AGAIN = 75  # the exit code of work that goes on in the next call (EX_TEMPFAIL)
GRACE = 30  # seconds to save and stop
COLUMNS = 12
QUICK = (
    *("data=digits", "training.steps=20", "training.batch=32", "training.precision=float32", "training.warmup=0"),
    "model.network={name: unet, channels: 8, multipliers: [1, 2], blocks: 1, attention: []}",
    *(
        "training.sample_every=0",
        "training.log_every=10",
        "likelihood.limit=16",
        "likelihood.ode={rtol: 0.1, atol: 0.1}",
    ),
)
QUICK_SOLVERS = ("ddim", "ode")


@dataclass(frozen=True)
class Work:
    """What one call works on.

    Attributes:
        work, out: Folders of runs and of results.
        device: By name.
        quick: Whether it is a trial.
        deadline: By `time.monotonic`, when to stop.
    """

    work: Path
    out: Path
    device: str
    quick: bool
    deadline: float

    def run(self, *arguments: object) -> bool:
        """Run the command line until it is done or time is up; whether it is done."""
        command = [sys.executable, str(ROOT / "cli.py"), *map(str, arguments), "--device", self.device]
        child = subprocess.Popen(command, cwd=ROOT)
        try:
            code = child.wait(max(1.0, self.deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGTERM)
            try:
                child.wait(GRACE)
            except subprocess.TimeoutExpired:
                child.kill()
            return False
        if code != 0:
            raise SystemExit(code)
        return True

    def folder(self, model: str) -> Path:
        """That of a model's run."""
        return self.work / model


def train(work: Work, model: str) -> bool:
    """To the last step of its config."""
    config = ROOT / "configs" / f"fashion_mnist_reference_{model}.yaml"
    options = [part for assignment in (QUICK if work.quick else ()) for part in ("--set", assignment)]
    steps = read_config(config, QUICK if work.quick else ()).training.steps
    newest = RunFolder(work.folder(model)).latest()
    if newest is not None and newest.stem == f"step_{steps:08d}":
        return True
    return work.run("train", "--config", config, *options, "--out", work.folder(model))


def score(work: Work, model: str) -> bool:
    """The whole test split."""
    folder = work.folder(model) / "likelihood"
    if (folder / "likelihood.json").exists():
        return True
    options = () if work.quick else ("--batch", 2048 if work.device.startswith("cuda") else 128)
    return work.run("likelihood", work.folder(model), *options, "--out", folder)


def open_model(work: Work, model: str) -> Trained:
    """The trained model with its averaged weights."""
    newest = RunFolder(work.folder(model)).latest()
    assert newest is not None
    device = choose_device(work.device)
    checkpoint = load_checkpoint(newest, device)
    return load_trained(checkpoint, read_config(None, (), checkpoint.meta["config"]), device)


def draw(work: Work, model: str) -> bool:
    """By every solver at its defaults, each kept as it comes."""
    trained, folder = open_model(work, model), work.folder(model) / "drawn"
    folder.mkdir(exist_ok=True)
    spec, device = trained.spec, next(trained.model.parameters()).device
    for name in QUICK_SOLVERS if work.quick else SOLVERS:
        if (folder / f"{name}.npz").exists():
            continue
        if time.monotonic() > work.deadline:
            return False
        clock = time.perf_counter()
        result = sample(
            trained.model,
            trained.model.sde,
            SOLVERS[name](),
            (COLUMNS, *spec.shape),
            noise=SeededNoise(0, device=device),
        )
        values = spec.from_model(result.x).cpu().numpy()
        seconds = time.perf_counter() - clock
        with (folder / "part.tmp").open("wb") as file:
            np.savez(file, values=values, nfe=np.array(result.nfe), seconds=np.array(seconds))
        (folder / "part.tmp").replace(folder / f"{name}.npz")
    return True


def publish(work: Work, model: str) -> bool:
    """Weights, picture and the figures of a model."""
    trained, work_folder = open_model(work, model), work.folder(model)
    (written,) = FORMATS["weights"]().write(trained, work_folder)
    written.replace(work.out / f"fashion_mnist_{model}.safetensors")
    names = [name for name in SOLVERS if (work_folder / "drawn" / f"{name}.npz").exists()]
    drawn = [dict(np.load(work_folder / "drawn" / f"{name}.npz")) for name in names]
    rows = torch.cat([torch.from_numpy(part["values"]) for part in drawn])
    labels = torch.arange(len(names)).repeat_interleave(COLUMNS)
    save_classes(
        work.out / f"samples_{model}.png", dataclasses.replace(trained.spec, classes=tuple(names)), rows, labels
    )
    likelihood = json.loads((work_folder / "likelihood" / "likelihood.json").read_text())
    figures = {
        "parameters": sum(p.numel() for p in trained.model.parameters()),
        "steps": trained.step,
        "images_seen": trained.step * trained.config.training.batch,
        "images_per_second": _speed(work_folder),
        **{
            key: likelihood[key]
            for key in ("bits_per_dim", "half_width", "confidence", "images", "units", "nfe", "seconds")
        },
        "solvers": {
            name: {"nfe": int(part["nfe"]), "seconds": float(part["seconds"])}
            for name, part in zip(names, drawn, strict=True)
        },
    }
    path = work.out / "reference.json"
    known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"models": {}}
    models = known["models"] | {model: figures}
    write_results(path, {"facts": machine_facts() | _accelerator(work.device), "quick": work.quick, "models": models})
    return True


def _speed(folder: Path) -> float | None:
    rates = [row["images_per_second"] for row in RunFolder(folder).metrics() if "images_per_second" in row]
    return float(np.median(rates)) if rates else None


def _accelerator(device: str) -> dict[str, str]:
    return {"device": torch.cuda.get_device_name() if device.startswith("cuda") else device}


PIECES: dict[str, Callable[[Work, str], bool]] = {"train": train, "score": score, "draw": draw, "publish": publish}


def pieces(work: Work, models: tuple[str, ...]) -> Iterator[bool]:
    """Work through all pieces; False ends the call."""
    for model in models:
        for name, piece in PIECES.items():
            clock = time.monotonic()
            done = clock < work.deadline and piece(work, model)
            print(
                f"{model}: {name} {'done' if done else 'goes on in the next call'}, {time.monotonic() - clock:.0f} s",
                flush=True,
            )
            yield done
            if not done:
                return


def main() -> int:
    """Parse, work, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, help="folder of results; default: results/reference, or with --quick in --work"
    )
    parser.add_argument("--work", type=Path, help="folder of runs; default: runs/reference, or runs/reference_quick")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--minutes", type=float, default=9.0, help="of one call")
    parser.add_argument("--only", choices=MODELS, help="one of the two")
    parser.add_argument("--quick", action="store_true", help="a trial on the digits")
    options = parser.parse_args()
    deadline = time.monotonic() + 60 * options.minutes
    folder = options.work or ROOT / "runs" / ("reference_quick" if options.quick else "reference")
    out = options.out or (folder / "results" if options.quick else RESULTS / "reference")
    out.mkdir(parents=True, exist_ok=True)
    work = Work(folder, out, str(choose_device(options.device)), options.quick, deadline)
    if not all(list(pieces(work, (options.only,) if options.only else MODELS))):
        return AGAIN
    report = json.loads((out / "reference.json").read_text())
    rows = [
        [name, f"{m['bits_per_dim']:.4f} ± {m['half_width']:.4f}", str(m["images"]), str(m["images_seen"])]
        for name, m in report["models"].items()
    ]
    print(table(("model", "bits/dim", "images scored", "images seen"), rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
