"""`decode`: latents to samples."""

import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
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
from sde_diffusion.commands.examples import file_facts
from sde_diffusion.commands.fitting import fitting
from sde_diffusion.commands.growing import GrowingArrays, Rows, spans
from sde_diffusion.commands.guiding import ALL, OWN, announce, class_options, label_rows
from sde_diffusion.commands.latents import read_labels, read_latents, solver_name, to_samples
from sde_diffusion.commands.naming import results_folder
from sde_diffusion.commands.solving import end_options, open_to_solve, solver_options
from sde_diffusion.pictures import save_samples
from sde_diffusion.sampling import require_deterministic

EPILOG = """\b
Examples:
  sde-diffusion decode --latents runs/digits_vp/encode_test_ode_seed0/latents.npz
  sde-diffusion decode runs/digits_vp --latents mine.npy --solver ddim --steps 50
  sde-diffusion decode --latents latents.npz --no-denoise --label 3     # the exact inverse of encode --label 3
  sde-diffusion decode --latents latents.npz --no-denoise --label own   # and of encode --label own

\b
The file holds the states at t = 1, (B, *shape) real numbers, as `z` or as its only array. The same latents give the
same samples, whatever --batch and --seed. A killed run goes on where it stopped.
"""

PICTURED, POINTS = 100, 5000  # most samples in a picture: images, and points of other data


@click.command(epilog=EPILOG, short_help="Turn latents into samples.")
@checkpoint_options
@click.option("--latents", required=True, type=click.Path(path_type=Path), help="A .npz or .npy file. Required.")
@solver_options
@end_options
@click.option("--batch", type=int, help="Latents decoded at once.")
@class_options(
    ALL, OWN, help="Class of the samples; several in turn as 0,1,2; all of them in turn; own: the file's; -1 for none."
)
@ema_options
@shared_options
def decode(
    checkpoint: Path | None,
    latents: Path,
    config_file: Path | None,
    assignments: tuple[str, ...],
    seed: int | None,
    device: str,
    out: Path | None,
    dry_run: bool,
    ema: bool | str,
    **given: Any,
) -> None:
    """Turn latents into samples of CHECKPOINT, a file or a run's folder; of the newest run without one."""
    loaded, asked = open_to_solve(checkpoint, config_file, assignments, given | {"seed": seed}, device=device, ema=ema)
    config = loaded.trained.config
    require_deterministic(config.sampling.solver)
    announce(loaded, dry_run=dry_run)
    if dry_run:
        show_config({"latents": str(latents), "sampling": plain_config(config)["sampling"]})
        return
    z = read_latents(latents, loaded.trained.spec)
    own = given["label"] == OWN
    labels = read_labels(latents, len(z)) if own else config.sampling.labels(0, len(z))
    source = file_facts(latents)
    head = f"decode_{latents.stem}_{source['file_sha256'][:8]}_{solver_name(loaded)}"
    word = given["label"] if isinstance(given["label"], str) else None
    folder = out or results_folder(loaded, head, asked, ema=ema, label=word)
    _run(loaded, z, labels, folder, loaded.facts() | source | {"ema": ema, "own_labels": own})


def _run(loaded: Loaded, z: npt.NDArray[Any], labels: Tensor, folder: Path, facts: dict[str, Any]) -> None:
    clock, spec = time.perf_counter(), loaded.trained.spec
    fixed = {key: value for key, value in facts.items() if key not in ("checkpoint", "file")}
    store = GrowingArrays(make_folder(folder) / "samples.npz", fixed, loaded.ranks)
    _decode_all(loaded, z, labels, store)
    store.finish(without=("nfe",))
    if not loaded.ranks.main:
        return
    seconds, nfe = time.perf_counter() - clock, store.arrays["nfe"]
    samples = torch.from_numpy(store.arrays["samples"])
    save_samples(folder / "samples.png", spec, samples[: PICTURED if spec.is_image else POINTS])
    report = {"nfe": [int(nfe.min()), int(nfe.max())], "seconds": seconds, "shape": list(samples.shape)}
    write_json(folder / "decode.json", facts | report | {"units": spec.describe_units()})
    evaluations = f"{nfe.min()}–{nfe.max()}" if nfe.min() < nfe.max() else str(nfe[0])
    click.echo(f"{len(samples)} samples, {evaluations} score evaluations each, {seconds:.1f} s")
    click.echo(f"wrote {folder / 'samples.png'}, samples.npz, decode.json")


def _decode_all(loaded: Loaded, z: npt.NDArray[Any], labels: Tensor, store: GrowingArrays) -> None:
    """Decode what `store` lacks, batch by batch."""
    options, spec = loaded.trained.config.sampling, loaded.trained.spec

    def compute(first: int, count: int) -> Rows:
        now = slice(first, first + count)
        part = torch.from_numpy(z[now].astype(np.float32))
        result = to_samples(loaded, part.to(loaded.device), labels[now], first)
        rows = {"samples": spec.from_model(result.x).cpu().numpy(), "nfe": np.full(count, result.nfe)}
        return rows | label_rows(labels[now], known=int(labels.max()) >= 0)

    with tqdm(total=len(z), unit="img", disable=None) as bar:
        store.fill(spans(0, len(z), options.batch), fitting(loaded, compute), bar)
