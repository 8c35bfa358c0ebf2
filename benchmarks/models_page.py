"""The tables of the page about models, from `results/ablations_small.json` and `mle.json`.

    python benchmarks/models_page.py

writes what stands between the marks of docs/models.md anew; ablations.py draws its pictures.
"""

import json
from typing import Any

from ablations import GROUPS, report
from common import RESULTS, ROOT, fill_marks
from mle import as_table

PAGE = ROOT / "docs" / "models.md"


def budget(result: dict[str, Any]) -> str:
    """What every run spent, in words."""
    scale, machine = result["scale"], result["machine"]
    seen = scale["training"]["steps"] * scale["training"]["batch"]
    sizes = sorted({row["parameters"] for row in result["rows"]})
    parameters = " to ".join(f"{size:,}" for size in (sizes[0], sizes[-1]))
    (floor, error), net = result["floor"], result["feature_net"]
    return (
        f"{seen:,} images seen, {parameters} parameters; {scale['samples']} samples; bits/dim of {scale['scored']} "
        f"test images by the probability flow and of {scale['bounded']} by the chain's bound. {machine['cpu']}, "
        f"{machine['cores']} cores, torch {machine['versions']['torch']}. Feature net `{net['sha256'][:12]}`, "
        f"{100 * net['accuracy']:.1f} % of the test images right; FD² of {scale['samples']} real test images: "
        f"{floor:.2f} ± {error:.2f}."
    )


def tables(result: dict[str, Any]) -> dict[str, str]:
    """The page's tables by their marks."""
    groups = {group: [row for row in result["rows"] if row["group"] == group] for group in GROUPS}
    return {"budget": budget(result)} | {group: report(rows) for group, rows in groups.items()}


def with_tables(text: str, result: dict[str, Any], mle: dict[str, Any]) -> str:
    """`text` with what stands between each pair of marks written anew."""
    return fill_marks(text, "models", tables(result) | {"mle": as_table(mle["variants"])})


def read_results() -> tuple[dict[str, Any], dict[str, Any]]:
    """What ablations.py and mle.py wrote."""
    result, mle = (json.loads((RESULTS / f"{name}.json").read_text()) for name in ("ablations_small", "mle"))
    return result, mle


def main() -> None:
    """Write the page."""
    PAGE.write_text(with_tables(PAGE.read_text(), *read_results()))
    print(f"wrote {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
