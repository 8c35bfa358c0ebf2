"""What each choice of a model does to bits/dim and to pictures, at equal budgets, on Fashion-MNIST.

Every row is a run of the command line, as a user would make it: `train`, then `sample`, then `likelihood`. The rows of
a group differ in one choice; all see the same number of images in the same order, with the same network (but for the
second head of a learned variance and the label of a conditional one), and are sampled from the same noise and scored
on the same test images. Without options it is small, for a CPU; `--large` wants a GPU.

    python benchmarks/ablations.py [--large | --quick] [--device cuda] [--groups prediction,guidance] [--out FILE]

A killed run goes on where it stopped. `models_page.py` makes the tables and pictures of docs/models.md of the result.
"""

import argparse
import json
import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from common import RESULTS, ROOT, describe, machine_facts, short, table, write_results
from image_features import Judge, Moments, frechet, trained_judge
from tqdm import tqdm

from sde_diffusion.config.build import choose_device, load_trained, read_config
from sde_diffusion.data.sources.mnist import FashionMNIST
from sde_diffusion.likelihood import Levels, chain_bound
from sde_diffusion.pictures import save_rows
from sde_diffusion.runtime.atomic_write import write_atomically
from sde_diffusion.sde.chain import DiscreteChain, Variance
from sde_diffusion.training import load_checkpoint

RUNS = ROOT / "runs" / "ablations"
FOREVER = 10**9
PICTURED = 10  # images of each row


@dataclass(frozen=True)
class Scale:
    """What a run may spend.

    Attributes:
        network: Options of the U-Net.
        training: Options of the section `training`.
        samples: Images drawn for the distance.
        scored: Test images of the probability flow.
        bounded: Test images of the chain's bound, whose price is a thousand evaluations each.
        batch: Images at once in sampling and scoring.
    """

    name: str
    network: dict[str, Any]
    training: dict[str, Any]
    samples: int
    scored: int
    bounded: int
    batch: int


SMALL = Scale(
    "small",
    {"channels": 16, "multipliers": [1, 2, 2], "blocks": 1, "attention": [7]},
    {"steps": 1000, "batch": 64, "precision": "bfloat16", "ema_decay": 0.995},
    samples=500,
    scored=64,
    bounded=32,
    batch=125,
)
QUICK = Scale(
    "quick",
    {"channels": 8, "multipliers": [1, 2], "blocks": 1, "attention": []},
    {"steps": 10, "batch": 8, "ema_decay": 0.9},
    samples=20,
    scored=2,
    bounded=2,
    batch=20,
)
LARGE = Scale(
    "large",
    {"channels": 64, "multipliers": [1, 2, 2], "blocks": 2, "attention": [14, 7]},
    {"steps": 20000, "batch": 256, "precision": "bfloat16", "ema_decay": 0.9995, "flip": True},
    samples=10000,
    scored=2000,
    bounded=200,
    batch=1000,
)


@dataclass(frozen=True)
class Row:
    """One line of a group.

    Attributes:
        name: What differs, as the table shows it.
        run: Name of the training; rows that share it are trained once.
        settings: What its config differs in.
        sampling: Further options of `sample`.
        likelihood: `flow` for the density of the probability flow, or the variance with which the bound of the reverse
            chain codes; none if empty.
        labelled: Whether the samples have labels that a classifier can check.
    """

    name: str
    run: str
    settings: tuple[str, ...] = ()
    sampling: tuple[str, ...] = ("--nfe", "50")
    likelihood: Literal["flow", "small", "large", "learned", ""] = "flow"
    labelled: bool = False


CHAIN = ("sde=ddpm", "model.conditioning=step", "loss.time_sampler=discrete", "training.dequantise=false")
STRIDED = ("--solver", "ancestral", "--grid", "levels", "--steps", "100")
LABELLED = ("--label", "all", "--nfe", "50")


def _chain(beta: str, *more: str) -> tuple[str, ...]:
    return (*CHAIN, f"sde.beta={beta}", *more)


GROUPS: dict[str, tuple[Row, ...]] = {
    "prediction": (
        Row("v", "base"),
        Row("eps", "eps", ("model.prediction=eps",)),
        Row("x0", "x0", ("model.prediction=x0",)),
        Row("edm", "edm", ("model.prediction=edm",)),
    ),
    "beta": tuple(
        Row(beta, f"ddpm_{beta}", _chain(beta), STRIDED, "small")
        for beta in ("linear", "cosine", "quadratic", "sigmoid")
    ),
    "distance": (
        Row("l2", "base"),
        Row("l1", "l1", ("loss.distance=l1",)),
        Row("huber", "huber", ("loss.distance=huber",)),
    ),
    "variance": (
        Row("small", "ddpm_linear", _chain("linear"), STRIDED, "small"),
        Row("large", "ddpm_linear", _chain("linear"), (*STRIDED, "--set", "sampling.solver.variance=large"), "large"),
        Row(
            "learned",
            "ddpm_hybrid",
            _chain("linear", "model.learned_variance=true", "loss.objective=hybrid"),
            (*STRIDED, "--set", "sampling.solver.variance=learned"),
            "learned",
        ),
    ),
    "weighting": (
        Row("simple", "base"),
        Row("likelihood", "likelihood", ("loss.weighting=likelihood",)),
        Row("min_snr", "min_snr", ("loss.weighting=min_snr",)),
        Row("p2", "p2", ("loss.weighting=p2",)),
    ),
    "guidance": tuple(
        Row(
            f"{scale:g}",
            "conditional",
            ("model.conditional=true",),
            (*LABELLED, "--guidance", str(scale)),
            "flow" if scale == 1 else "",
            labelled=True,
        )
        for scale in (0, 1, 2, 4)
    ),
}


class Campaign:
    """The rows of one scale, on one device.

    Args:
        scale: What to spend.
        device: As `--device` of the command line.
    """

    def __init__(self, scale: Scale, device: str) -> None:
        self.scale, self.device = scale, device
        self.folder = RUNS / scale.name
        self.judge: Judge = trained_judge(RUNS, choose_device(device))
        self.real = Moments.of(self.judge.real)
        self.pictures: dict[str, list[torch.Tensor]] = {}

    def floor(self) -> tuple[float, float]:
        """The distance of as many test images from the training images."""
        test = FashionMNIST().load("test").fetch(torch.arange(min(self.scale.samples, 10000)))[0]
        return frechet(self.judge.features(test), self.real)

    def measure(self, group: str, row: Row) -> dict[str, Any]:
        """Train, sample and score a row, or take up what is there."""
        run = self._train(row)
        images, labels, sampled = self._sample(run, group, row)
        distance, error = frechet(self.judge.features(images), self.real)
        facts: dict[str, Any] = {
            "group": group,
            "name": row.name,
            "run": row.run,
            "settings": list(row.settings),
            "parameters": _parameters(run),
            "images_seen": self.scale.training["steps"] * self.scale.training["batch"],
            "nfe": sampled["nfe"],
            "distance": [round(distance, 4), round(error, 4)],
        }
        shown = torch.arange(PICTURED)
        if labels is not None:
            shown = torch.stack([(labels == label).nonzero()[0, 0] for label in labels.unique()])[:PICTURED]
        self.pictures.setdefault(group, []).append(images[shown])
        if row.labelled:
            hits = (self.judge.classes(images) == labels).double()
            facts["accuracy"] = [float(hits.mean()), float(hits.std() / math.sqrt(len(hits)))]
        if row.likelihood == "flow":
            facts["bits"] = self._flow(run).tolist()
        elif row.likelihood:
            facts |= {"bits": self._chain(run, row.likelihood).tolist(), "bound": True}
        return facts

    def _train(self, row: Row) -> Path:
        run = self.folder / row.run
        base = {
            "data": "fashion_mnist",
            "model": {"network": {"name": "unet", **self.scale.network}, "prediction": "v"},
            "loss": {"weighting": "simple"},
            "training": {**self.scale.training, "validate_every": FOREVER, "sample_every": FOREVER, "save_every": 500},
        }
        config = self.folder / "base.json"  # JSON is YAML
        config.parent.mkdir(parents=True, exist_ok=True)
        config.write_text(json.dumps(base))
        settings = [word for text in row.settings for word in ("--set", text)]
        self._call("train", "--config", config, *settings, "--out", run, "--seed", 0)
        return run

    def _sample(self, run: Path, group: str, row: Row) -> tuple[torch.Tensor, torch.Tensor | None, dict[str, Any]]:
        out = run / "_".join(["sample", group, row.name])
        if not (out / "sample.json").exists():
            batch = ("--count", self.scale.samples, "--batch", self.scale.batch)
            self._call("sample", run, *row.sampling, *batch, "--out", out)
        with np.load(out / "samples.npz") as stored:
            labels = torch.from_numpy(stored["labels"]) if "labels" in stored.files else None
            images = torch.from_numpy(stored["samples"])
        return images, labels, json.loads((out / "sample.json").read_text())

    def _flow(self, run: Path) -> np.ndarray[Any, Any]:
        """Bits/dim of the first test images, (N,)."""
        out = run / "likelihood"
        if not (out / "likelihood.json").exists():
            cost = ("--limit", self.scale.scored, "--batch", self.scale.batch, "--rtol", 1e-4, "--atol", 1e-4)
            self._call("likelihood", run, *cost, "--no-reference", "--out", out)
        with np.load(out / "per_image.npz") as stored:
            return np.asarray(stored["bits_per_dim"]).round(5)

    def _chain(self, run: Path, variance: Variance) -> np.ndarray[Any, Any]:
        """The bound of the whole chain for the first test images, in bits/dim, (N,)."""
        path = run / f"chain_{variance}.json"
        if not path.exists():
            newest = load_checkpoint(max((run / "checkpoints").glob("*.safetensors")))
            config = read_config(None, (), newest.meta["config"])
            trained = load_trained(newest, config, choose_device(self.device))
            found: list[float] = []
            for part in tqdm(torch.arange(self.scale.bounded).split(self.scale.batch), desc="bound", disable=None):
                values = FashionMNIST().load("test").fetch(part)[0].to(choose_device(self.device))
                bound = chain_bound(
                    trained.model.bind(None),
                    DiscreteChain.of_levels(config.sde),
                    Levels(trained.spec, values),
                    variance=variance,
                    start=int(part[0]),
                )
                found += (-bound.log_prob / (trained.spec.dims * math.log(2))).tolist()
            write_atomically(path, json.dumps(found).encode())
        return np.asarray(json.loads(path.read_text())).round(5)

    def _call(self, *words: object) -> None:
        command = [sys.executable, str(ROOT / "cli.py"), *map(str, words), "--device", self.device]
        subprocess.run(command, check=True, cwd=ROOT)


def _parameters(run: Path) -> int:
    """Trained numbers of the newest checkpoint's model."""
    from safetensors import safe_open

    newest = max((run / "checkpoints").glob("*.safetensors"))
    with safe_open(newest, framework="np") as file:
        names = [name for name in file.keys() if name.startswith("optimizer.exp_avg.")]  # noqa: SIM118  not a dict
        return sum(math.prod(file.get_slice(name).get_shape()) for name in names)


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half of its 95 % interval."""
    array = np.asarray(values)
    return float(array.mean()), float(1.96 * array.std(ddof=1) / math.sqrt(len(array)))


def bits_of(row: dict[str, Any]) -> str:
    """Bits/dim as the table shows them."""
    if "bits" not in row:
        return "–"
    mean, half = interval(row["bits"])
    return f"{'≤ ' if row.get('bound') else ''}{mean:.3f} ± {half:.3f}"


def report(rows: list[dict[str, Any]]) -> str:
    """A table: each choice, bits/dim, the paired difference from the group's first row, the distance."""
    groups, lines = {row["group"] for row in rows}, []
    for row in rows:
        first = next(other for other in rows if other["group"] == row["group"])
        paired = ""
        if "bits" in row and "bits" in first and row is not first:
            mean, half = interval((np.asarray(row["bits"]) - np.asarray(first["bits"])).tolist())
            paired = f"{mean:+.3f} ± {half:.3f}"
        distance = f"{short(row['distance'][0])} ± {short(row['distance'][1], 2)}"
        share = f"{100 * row['accuracy'][0]:.1f} ± {100 * row['accuracy'][1]:.1f} %" if "accuracy" in row else ""
        choice = "" if len(groups) == 1 else row["group"]
        lines.append([choice, f"`{row['name']}`", bits_of(row), paired, distance, share])
    headers = ["choice", "row", "bits/dim", "against the group's first", "FD²", "samples of their class"]
    filled = [i for i in range(len(headers)) if any(line[i] for line in lines)]
    return table([headers[i] for i in filled], [[line[i] for i in filled] for line in lines])


def main() -> None:
    """Train, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--large", action="store_true", help="the large scale: wants a GPU")
    size.add_argument("--quick", action="store_true", help="ten steps of a tiny network, to see it work")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda")
    parser.add_argument("--groups", default=",".join(GROUPS), help="which groups, separated by commas")
    parser.add_argument("--out", type=Path, help="result file")
    parser.add_argument("--pictures", type=Path, default=ROOT / "docs" / "pictures", help="folder of the pictures")
    options = parser.parse_args()
    scale = LARGE if options.large else QUICK if options.quick else SMALL
    facts = machine_facts()
    print(describe(facts))
    campaign = Campaign(scale, options.device)
    floor, rows = campaign.floor(), []
    for group in options.groups.split(","):
        for row in GROUPS[group]:
            rows.append(campaign.measure(group, row))
            print(report(rows), flush=True)
        names = [row.name for row in GROUPS[group]]
        picture = options.pictures / f"models_{group}{'' if scale is SMALL else f'_{scale.name}'}.png"
        save_rows(picture, FashionMNIST.spec, campaign.pictures[group], names)
    net = {"sha256": campaign.judge.sha256, "accuracy": campaign.judge.accuracy}
    told = {"machine": facts, "scale": vars(scale), "device": options.device, "feature_net": net}
    out = options.out or RESULTS / f"ablations_{scale.name}.json"
    write_results(out, told | {"floor": floor, "rows": rows})


if __name__ == "__main__":
    main()
