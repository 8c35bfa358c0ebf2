"""Writes the table and the curve of docs/fashion_mnist.md from the ablations and from the log of the reference run.

python benchmarks/reference_page.py [--log runs/fashion_mnist_reference/metrics.jsonl]
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

from common import RESULTS, ROOT, fill_marks, table
from reference_ablations import CONFIG, report

from sde_diffusion.config.build import read_config

PAGE = ROOT / "docs" / "fashion_mnist.md"
PICTURE = ROOT / "docs" / "pictures" / "fashion_mnist_curve.png"
LOG = ROOT / "benchmarks" / "reference_run" / "metrics.jsonl"


def curve(log: Path) -> list[tuple[float, float]]:
    """Epochs, and the diffusion part of the bound in bits/dim of the held-out images: L/(2 log 2) of the loss L."""
    config = read_config(CONFIG)
    images = 60_000 - config.data.validation
    rows = (json.loads(line) for line in log.read_text().splitlines())
    return [
        (row["step"] * config.training.batch / images, row["validation_loss"] / (2 * math.log(2)))
        for row in rows
        if "validation_loss" in row
    ]


def draw(points: list[tuple[float, float]], path: Path) -> None:
    """The curve as a picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.5), dpi=110)
    axes.plot(*zip(*points, strict=True), marker="o", markersize=3)
    axes.set_xlabel("epochs")
    axes.set_ylabel("bits/dim, 2000 held-out training images")
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def contents(ablations: dict[str, Any], points: list[tuple[float, float]]) -> dict[str, str]:
    """What stands between the marks of the page."""
    rows = [[f"{epochs:.1f}", f"{bits:.3f}"] for epochs, bits in points]
    return {"ablations": report(ablations["variants"]), "curve": table(("epochs", "bits/dim"), rows)}


def read_results() -> tuple[dict[str, Any], list[tuple[float, float]]]:
    """The ablations, and the curve of the log that is in the repository."""
    return json.loads((RESULTS / "reference_ablations.json").read_text()), curve(LOG)


def with_tables(text: str, ablations: dict[str, Any], points: list[tuple[float, float]]) -> str:
    """`text` with its tables written anew."""
    return fill_marks(text, "reference", contents(ablations, points))


def main() -> None:
    """Write page and picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log", type=Path, default=LOG)
    options = parser.parse_args()
    ablations, _ = read_results()
    points = curve(options.log)
    draw(points, PICTURE)
    PAGE.write_text(with_tables(PAGE.read_text(), ablations, points))
    print(f"wrote {PAGE.relative_to(ROOT)} and {PICTURE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
