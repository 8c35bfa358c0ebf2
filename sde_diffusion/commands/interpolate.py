"""`interpolate`: from one example to another through the latents."""

import math
from functools import lru_cache
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor

from sde_diffusion.commands.common import Options, checkpoint_options, result_options, show_config
from sde_diffusion.commands.examples import file_facts, open_examples
from sde_diffusion.commands.growing import Rows, spans
from sde_diffusion.commands.guiding import announce, class_options
from sde_diffusion.commands.job import Job, run_job
from sde_diffusion.commands.latents import solver_name, to_latents, to_samples
from sde_diffusion.commands.naming import results_folder
from sde_diffusion.commands.session import Session
from sde_diffusion.commands.solving import end_options, open_to_solve, solver_options
from sde_diffusion.config.build import plain_config
from sde_diffusion.config.parse import Raw
from sde_diffusion.data import Dataset, sweep
from sde_diffusion.data.dataset import Split
from sde_diffusion.errors import require
from sde_diffusion.pictures import save_paths
from sde_diffusion.sampling import require_deterministic
from sde_diffusion.slerp import angle, slerp

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
@click.option(
    "--pair",
    "pairs",
    type=int,
    nargs=2,
    multiple=True,
    required=True,
    help="Numbers of the two examples. May be repeated.",
)
@click.option(
    "--frames",
    type=click.IntRange(min=2),
    default=9,
    show_default=True,
    help="Number of points from one to the other, both ends included.",
)
@click.option(
    "--split",
    type=click.Choice(["train", "validation", "test"]),
    help="The data that the numbers are of. Default: test.",
)
@click.option(
    "--file",
    "data_file",
    type=click.Path(path_type=Path),
    help="Take the examples from this .npy or .npz file instead.",
)
@solver_options
@end_options
@click.option("--batch", type=int, help="How many points to decode at once. It changes speed and memory.")
@class_options(help="The class given to a conditional model. Default: -1, none.")
@result_options
def interpolate(
    options: Options,
    pairs: tuple[tuple[int, int], ...],
    frames: int,
    data_file: Path | None,
    **given: Any,
) -> None:
    """Go from one example to another through the latents of CHECKPOINT, a file or a run's folder, or the newest run."""
    require(not (data_file and given["split"]), "--file and --split exclude each other; drop one")
    session, asked = open_to_solve(options, given)
    config = session.trained.config
    require_deterministic(config.sampling.solver)
    require(len(config.sampling.label) == 1, f"--label must be one class, got {list(config.sampling.label)}")
    announce(session, dry_run=options.dry_run)
    split: Split = given["split"] or "test"
    how = {"pairs": [list(pair) for pair in pairs], "frames": frames, "split": data_file.stem if data_file else split}
    if options.dry_run:
        show_config({"seed": config.seed, "interpolate": how, "sampling": plain_config(config)["sampling"]})
        return
    dataset = open_examples(session.trained, split, data_file)
    for index in (index for pair in pairs for index in pair):
        require(0 <= index < len(dataset), f"`--pair` must be indices from 0 to {len(dataset) - 1}, got {index}")
    head = f"interpolate_{how['split']}_{solver_name(session)}_seed{config.seed}"
    ends = "_".join(f"{first}-{second}" for first, second in pairs)
    folder = options.out or results_folder(session, head, "sampling", asked, pairs=ends, frames=frames)
    facts = session.facts() | file_facts(data_file) | {"interpolate": how}
    run_job(session, folder, _job(session, dataset, folder, facts), options)


def _job(session: Session, dataset: Dataset, folder: Path, facts: Raw) -> Job:
    how, spec, options = facts["interpolate"], session.trained.spec, session.trained.config.sampling
    pairs, frames = torch.tensor(how["pairs"]), how["frames"]
    weights = torch.linspace(0, 1, frames, dtype=torch.float64)
    latents = lru_cache(lambda: _encode_pairs(session, dataset, pairs))  # not before they are wanted

    def compute(first: int, count: int) -> Rows:
        """Frames of (P · F, *D), pair by pair."""
        numbers = torch.arange(first, first + count)
        z = slerp(*latents(), weights).flatten(0, 1)
        part = z[numbers.to(z.device)]
        result = to_samples(session, part, options.labels(0, count), first)
        return {
            "samples": spec.from_model(result.x).cpu().numpy(),
            "z": part.cpu().numpy(),
            "pair": (numbers // frames).numpy(),
            "weight": weights[numbers % frames].numpy(),
            "nfe": np.full(count, result.nfe),
        }

    def finish(rows: Rows, seconds: float) -> tuple[Raw, list[str]]:
        nfe, samples = rows["nfe"], torch.from_numpy(rows["samples"])
        degrees = [math.degrees(value) for value in angle(*latents()).tolist()]
        report = {"degrees": degrees, "nfe": [int(nfe.min()), int(nfe.max())], "seconds": seconds}
        ends = [dataset.fetch(pairs[:, side])[0].cpu()[:, None] for side in (0, 1)]
        ways = samples.reshape(len(pairs), frames, *spec.shape)
        save_paths(folder / "interpolate.png", spec, torch.cat([ends[0], ways, ends[1]], 1))
        lines = [
            f"{first} to {second}: latents {turn:.1f}° apart"
            for (first, second), turn in zip(how["pairs"], degrees, strict=True)
        ]
        lines.append(f"{len(samples)} frames, {nfe.max()} score evaluations at most, {seconds:.1f} s")
        return report | {"units": spec.describe_units()}, lines

    return Job(
        files=("interpolate.png", "frames.npz", "interpolate.json"),
        arrays="frames.npz",
        facts=facts,
        spans=spans(0, len(pairs) * frames, options.batch),
        compute=compute,
        finish=finish,
        without=("nfe",),
        unit="frame",
    )


def _encode_pairs(session: Session, dataset: Dataset, pairs: Tensor) -> tuple[Tensor, Tensor]:
    """The latents of the first and of the second examples, each (P, *D)."""
    config = session.trained.config
    wanted = sorted(set(pairs.flatten().tolist()))
    each = [
        batch.x
        for index in wanted
        for _, batch in sweep(dataset, batch=1, seed=config.seed, device=session.device, start=index, limit=1)
    ]
    z = torch.cat(
        [
            to_latents(session, x, config.sampling.labels(0, len(x))).x
            for x in torch.split(torch.cat(each), config.sampling.batch)
        ]
    )
    first, second = ([wanted.index(index) for index in side] for side in pairs.T.tolist())
    return z[first], z[second]
