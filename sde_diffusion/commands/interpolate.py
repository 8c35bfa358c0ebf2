"""`interpolate`: from one example to another through the latents."""

import math
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from sde_diffusion.build import plain_config
from sde_diffusion.commands.common import (
    Loaded,
    checkpoint_options,
    ema_options,
    make_folder,
    shared_options,
    show_config,
    write_json,
)
from sde_diffusion.commands.examples import file_facts, open_examples
from sde_diffusion.commands.fitting import fitting
from sde_diffusion.commands.growing import GrowingArrays, Rows, spans
from sde_diffusion.commands.guiding import announce, class_options
from sde_diffusion.commands.latents import solver_name, to_latents, to_samples
from sde_diffusion.commands.naming import results_folder
from sde_diffusion.commands.solving import end_options, open_to_solve, solver_options
from sde_diffusion.data import Dataset, sweep
from sde_diffusion.data.base import Split
from sde_diffusion.errors import require
from sde_diffusion.interpolation import angle, slerp
from sde_diffusion.pictures import save_paths
from sde_diffusion.sampling import require_deterministic

EPILOG = """\b
Examples:
  sde-diffusion interpolate --pair 3 17
  sde-diffusion interpolate --pair 3 17 --pair 0 5 --frames 11 --split train
  sde-diffusion interpolate runs/digits_vp --pair 0 1 --solver dpmpp_2m --steps 50
  sde-diffusion interpolate --file mine.npy --pair 0 1 --label 3

\b
Both examples are encoded, their latents joined along a great circle, and its points decoded. The picture has one row
for each pair: the first example, the frames, of which the outer ones are its reconstruction and the other's, and the
second example. A killed run goes on where it stopped.
"""


@click.command(epilog=EPILOG, short_help="Go from one example to another through the latents.")
@checkpoint_options
@click.option("--pair", "pairs", type=int, nargs=2, multiple=True, required=True, help="Two examples; repeatable.")
@click.option("--frames", type=click.IntRange(min=2), default=9, show_default=True, help="Points between, with ends.")
@click.option("--split", type=click.Choice(["train", "validation", "test"]), help="Whose examples. Default: test.")
@click.option("--file", "data_file", type=click.Path(path_type=Path), help="Those of a .npy or .npz file instead.")
@solver_options
@end_options
@click.option("--batch", type=int, help="Frames decoded at once.")
@class_options(help="Class the model is told, of a conditional one; -1 for none (default).")
@ema_options
@shared_options
def interpolate(
    checkpoint: Path | None,
    pairs: tuple[tuple[int, int], ...],
    frames: int,
    data_file: Path | None,
    config_file: Path | None,
    assignments: tuple[str, ...],
    seed: int | None,
    device: str,
    out: Path | None,
    dry_run: bool,
    ema: bool | str,
    **given: Any,
) -> None:
    """Go from one example to another through the latents of CHECKPOINT, a file or a run's folder, or the newest run."""
    require(not (data_file and given["split"]), "--file and --split exclude each other; drop one")
    loaded, asked = open_to_solve(checkpoint, config_file, assignments, given | {"seed": seed}, device=device, ema=ema)
    config = loaded.trained.config
    require_deterministic(config.sampling.solver)
    require(len(config.sampling.label) == 1, f"--label must be one class, got {list(config.sampling.label)}")
    announce(loaded, dry_run=dry_run)
    split: Split = given["split"] or "test"
    how = {"pairs": [list(pair) for pair in pairs], "frames": frames, "split": data_file.stem if data_file else split}
    if dry_run:
        show_config({"seed": config.seed, "interpolate": how, "sampling": plain_config(config)["sampling"]})
        return
    dataset = open_examples(loaded.trained, split, data_file)
    for index in (index for pair in pairs for index in pair):
        require(0 <= index < len(dataset), f"`--pair` must be indices from 0 to {len(dataset) - 1}, got {index}")
    head = f"interpolate_{how['split']}_{solver_name(loaded)}_seed{config.seed}"
    ends = "_".join(f"{first}-{second}" for first, second in pairs)
    folder = out or results_folder(loaded, head, asked, ema=ema, pairs=ends, frames=frames)
    _run(loaded, dataset, folder, loaded.facts() | file_facts(data_file) | {"ema": ema, "interpolate": how})


def _run(loaded: Loaded, dataset: Dataset, folder: Path, facts: dict[str, Any]) -> None:
    clock, how, spec = time.perf_counter(), facts["interpolate"], loaded.trained.spec
    fixed = {key: value for key, value in facts.items() if key != "checkpoint"}
    store = GrowingArrays(make_folder(folder) / "frames.npz", fixed, loaded.ranks)
    pairs, frames = torch.tensor(how["pairs"]), how["frames"]
    z1, z2 = _encode_pairs(loaded, dataset, pairs)
    weights = torch.linspace(0, 1, frames, dtype=torch.float64)
    _decode_all(loaded, slerp(z1, z2, weights).flatten(0, 1), weights, store)
    store.finish(without=("nfe",))
    if not loaded.ranks.main:
        return
    nfe, samples = store.arrays["nfe"], torch.from_numpy(store.arrays["samples"])
    degrees = [math.degrees(value) for value in angle(z1, z2).tolist()]
    report = {"degrees": degrees, "nfe": [int(nfe.min()), int(nfe.max())], "seconds": time.perf_counter() - clock}
    write_json(folder / "interpolate.json", facts | report | {"units": spec.describe_units()})
    ends = [dataset.fetch(pairs[:, side])[0].cpu()[:, None] for side in (0, 1)]
    ways = samples.reshape(len(pairs), frames, *spec.shape)
    save_paths(folder / "interpolate.png", spec, torch.cat([ends[0], ways, ends[1]], 1))
    for (first, second), turn in zip(how["pairs"], degrees, strict=True):
        click.echo(f"{first} to {second}: latents {turn:.1f}° apart")
    click.echo(f"{len(samples)} frames, {nfe.max()} score evaluations at most, {report['seconds']:.1f} s")
    click.echo(f"wrote {folder / 'interpolate.png'}, frames.npz, interpolate.json")


def _encode_pairs(loaded: Loaded, dataset: Dataset, pairs: Tensor) -> tuple[Tensor, Tensor]:
    """The latents of the first and of the second examples, each (P, *D)."""
    config = loaded.trained.config
    wanted = sorted(set(pairs.flatten().tolist()))
    each = [
        batch.x
        for index in wanted
        for _, batch in sweep(dataset, batch=1, seed=config.seed, device=loaded.device, start=index, limit=1)
    ]
    z = torch.cat(
        [
            to_latents(loaded, x, config.sampling.labels(0, len(x))).x
            for x in torch.split(torch.cat(each), config.sampling.batch)
        ]
    )
    first, second = ([wanted.index(index) for index in side] for side in pairs.T.tolist())
    return z[first], z[second]


def _decode_all(loaded: Loaded, z: Tensor, weights: Tensor, store: GrowingArrays) -> None:
    """Decode what `store` lacks of the frames (P · F, *D), pair by pair and batch by batch."""
    options, spec, frames = loaded.trained.config.sampling, loaded.trained.spec, len(weights)

    def compute(first: int, count: int) -> Rows:
        numbers = torch.arange(first, first + count)
        part = z[numbers.to(z.device)]
        result = to_samples(loaded, part, options.labels(0, count), first)
        return {
            "samples": spec.from_model(result.x).cpu().numpy(),
            "z": part.cpu().numpy(),
            "pair": (numbers // frames).numpy(),
            "weight": weights[numbers % frames].numpy(),
            "nfe": np.full(count, result.nfe),
        }

    with tqdm(total=len(z), unit="frame", disable=None) as bar:
        store.fill(spans(0, len(z), options.batch), fitting(loaded, compute), bar)
