"""What guidance does to samples: how many are of their class, and how unlike each other they stay.

Samples of every class are drawn by `python cli.py sample --label all` from a conditional run, with classifier-free
guidance, autoguidance by an earlier checkpoint of the same run and guidance by a classifier, at several scales; from a
run without labels by the classifier alone. Two numbers judge them:

- `own class` is the share that a support vector machine takes for the class that was asked for. It is fitted to the
  training images and has no part in the guidance; what it gets on the held-out images stands beside it.
- `spread` is the standard deviation of a pixel over the samples of one class in levels, the root of the mean square
  over pixels and classes; that of the training images stands beside it.

    python benchmarks/guidance.py RUN --classifier RUN [--weak CHECKPOINT] [--plain RUN] [--count N] [--quick]
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from common import RESULTS, ROOT, describe, machine_facts, table, use_one_thread, write_results

from sde_diffusion.checkpoints import find_checkpoint
from sde_diffusion.config.build import read_config
from sde_diffusion.training import load_checkpoint

SCALES = (0.0, 1.0, 2.0, 4.0)
MOST = 5000  # images that the judge is fitted to

Images = npt.NDArray[Any]


@dataclass(frozen=True)
class Case:
    """One way to draw.

    Attributes:
        run: The run.
        name: A row of `GUIDANCES`, and on what.
        scale: w.
        options: Of `sample`.
    """

    run: Path
    name: str
    scale: float
    options: tuple[str, ...]


def cases(arguments: argparse.Namespace) -> Iterator[Case]:
    """All ways to draw that the given runs allow."""

    def by(name: str, checkpoint: Path | None, scale: float) -> tuple[str, ...]:
        named = ("--set", f"sampling.guidance.name={name}")
        file = () if checkpoint is None else ("--set", f"sampling.guidance.checkpoint={checkpoint}")
        return (*named, *file, "--guidance", f"{scale:g}")

    for scale in SCALES:
        yield Case(arguments.run, "classifier_free", scale, by("classifier_free", None, scale))
    limited = ("--set", f"sampling.guidance.interval=[{arguments.interval[0]:g}, {arguments.interval[1]:g}]")
    ends = "{:g}–{:g}".format(*arguments.interval)
    yield Case(arguments.run, f"classifier_free, {ends}", 4.0, (*by("classifier_free", None, 4.0), *limited))
    for scale in SCALES[2:]:
        if arguments.weak:
            yield Case(arguments.run, "autoguidance", scale, by("autoguidance", arguments.weak, scale))
        yield Case(arguments.run, "classifier", scale, by("classifier", arguments.classifier, scale))
    for scale in SCALES[1:] if arguments.plain else ():
        options = by("classifier", arguments.classifier, scale)
        yield Case(arguments.plain, "classifier, without labels", scale, options)


class Judge:
    """A support vector machine on the training images of a run's data."""

    def __init__(self, run: Path) -> None:
        from sklearn.svm import SVC

        config = read_config(None, (), load_checkpoint(find_checkpoint(run)).meta["config"])
        (images, labels), (others, answers) = (_arrays(config.data.load(split)) for split in ("train", "test"))
        self._machine = SVC(C=10).fit(images, labels)
        self.held_out = float(self._machine.score(others, answers))
        self.spread = spread(images, labels)

    def own_class(self, images: Images, labels: Images) -> float:
        """The share of images that it takes for their class."""
        return float(self._machine.score(images.reshape(len(images), -1), labels))


def _arrays(dataset: Any) -> tuple[Images, Images]:
    values, labels = dataset.fetch(torch.arange(min(MOST, len(dataset))))
    return values.flatten(1).double().numpy(), labels.numpy()


def spread(images: Images, labels: Images) -> float:
    """Root mean square, over pixels and classes, of the deviation of a pixel within a class."""
    flat = images.reshape(len(images), -1).astype(float)
    return float(np.sqrt(np.mean([flat[labels == k].var(0).mean() for k in sorted(set(labels.tolist()))])))


def measure(case: Case, judge: Judge, arguments: argparse.Namespace) -> dict[str, Any]:
    """Draw and judge."""
    with tempfile.TemporaryDirectory() as folder:
        out = (
            arguments.pictures / f"guidance_{case.name.split(',')[0]}_{case.scale:g}" if arguments.pictures else folder
        )
        budget = ("--label", "all", "--count", str(arguments.count), "--batch", "100", "--nfe", str(arguments.nfe))
        command = [sys.executable, str(ROOT / "cli.py"), "sample", str(case.run), *budget, *case.options]
        subprocess.run([*command, "--out", str(out)], check=True, capture_output=True, text=True)
        with np.load(Path(out) / "samples.npz") as stored:
            images, labels = stored["samples"], stored["labels"]
    facts = {"run": case.run.name, "guidance": case.name, "scale": case.scale, "count": len(images)}
    return facts | {"own_class": judge.own_class(images, labels), "spread": spread(images, labels)}


def main(given: Sequence[str] | None = None) -> None:
    """Draw, judge, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a conditional run")
    parser.add_argument("--classifier", type=Path, required=True, help="the run of a classifier")
    parser.add_argument("--weak", type=Path, help="a worse checkpoint of the model")
    parser.add_argument("--plain", type=Path, help="a run without labels")
    parser.add_argument("--interval", type=float, nargs=2, default=(0.2, 5.0), help="of noise levels, for one row")
    parser.add_argument("--count", type=int, default=200, help="samples of each way")
    parser.add_argument("--nfe", type=int, default=20, help="score evaluations of a sample")
    parser.add_argument("--pictures", type=Path, help="keep what is drawn in this folder")
    parser.add_argument("--quick", action="store_true", help="20 samples of 6 evaluations")
    parser.add_argument("--out", type=Path, default=RESULTS / "guidance.json")
    arguments = parser.parse_args(given)
    if arguments.quick:
        arguments.count, arguments.nfe = 20, 6
    use_one_thread()
    judge, facts = Judge(arguments.run), machine_facts(["torch", "scikit-learn"])
    rows = []
    for case in cases(arguments):
        rows.append(measure(case, judge, arguments))
        print(f"{case.name} {case.scale:g}: {rows[-1]['own_class']:.3f}, {rows[-1]['spread']:.2f}", file=sys.stderr)
    print(describe(facts))
    print(f"held-out images of their class: {judge.held_out:.3f}; spread of the training images: {judge.spread:.2f}")
    shown = [[r["run"], r["guidance"], f"{r['scale']:g}", f"{r['own_class']:.3f}", f"{r['spread']:.2f}"] for r in rows]
    print(table(["run", "guidance", "w", "own class", "spread"], shown))
    data = {"held_out": judge.held_out, "spread": judge.spread}
    write_results(arguments.out, {"machine": facts, "nfe": arguments.nfe, "data": data, "rows": rows})


if __name__ == "__main__":
    main()
