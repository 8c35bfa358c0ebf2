"""`decode`: latents to samples."""

from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sde_diffusion.commands.common import Options, checkpoint_options, result_options, show_config
from sde_diffusion.commands.examples import file_facts
from sde_diffusion.commands.growing import Rows, spans
from sde_diffusion.commands.guiding import ALL, OWN, announce, class_options, label_rows
from sde_diffusion.commands.job import Job, run_job
from sde_diffusion.commands.latents import read_labels, read_latents, samples_report, solver_name, to_samples
from sde_diffusion.commands.naming import results_folder
from sde_diffusion.commands.session import Session
from sde_diffusion.commands.solving import end_options, open_to_solve, solver_options
from sde_diffusion.config.build import plain_config
from sde_diffusion.config.parse import Raw
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
@click.option(
    "--latents",
    required=True,
    type=click.Path(path_type=Path),
    help="The .npz or .npy file with the latents. Required.",
)
@solver_options
@end_options
@click.option(
    "--batch", type=int, help="How many latents to decode at once. It changes speed and memory, not the samples."
)
@class_options(
    ALL,
    OWN,
    help="Class of the samples, such as 3. 0,1,2 or `all` in turn; `own`: those in the file. Default: -1, none.",
)
@result_options
def decode(
    options: Options,
    latents: Path,
    **given: Any,
) -> None:
    """Turn latents into samples of CHECKPOINT, a file or a run's folder; of the newest run without one."""
    session, asked = open_to_solve(options, given)
    config = session.trained.config
    require_deterministic(config.sampling.solver)
    announce(session, dry_run=options.dry_run)
    if options.dry_run:
        show_config({"latents": str(latents), "sampling": plain_config(config)["sampling"]})
        return
    z = read_latents(latents, session.trained.spec)
    own = given["label"] == OWN
    labels = read_labels(latents, len(z)) if own else config.sampling.labels(0, len(z))
    source = file_facts(latents)
    head = f"decode_{latents.stem}_{source['file_sha256'][:8]}_{solver_name(session)}"
    word = given["label"] if isinstance(given["label"], str) else None
    folder = options.out or results_folder(session, head, "sampling", asked, label=word)
    facts = session.facts() | source | {"own_labels": own}
    run_job(session, folder, _job(session, folder, z, labels, facts), options)


def _job(session: Session, folder: Path, z: npt.NDArray[Any], labels: Tensor, facts: Raw) -> Job:
    spec = session.trained.spec

    def compute(first: int, count: int) -> Rows:
        now = slice(first, first + count)
        part = torch.from_numpy(z[now].astype(np.float32))
        result = to_samples(session, part.to(session.device), labels[now], first)
        rows = {"samples": spec.from_model(result.x).cpu().numpy(), "nfe": np.full(count, result.nfe)}
        return rows | label_rows(labels[now], known=int(labels.max()) >= 0)

    def finish(rows: Rows, seconds: float) -> tuple[Raw, list[str]]:
        shown = torch.from_numpy(rows["samples"][: PICTURED if spec.is_image else POINTS])
        save_samples(folder / "samples.png", spec, shown)
        return samples_report(rows, spec, seconds)

    return Job(
        files=("samples.png", "samples.npz", "decode.json"),
        arrays="samples.npz",
        facts=facts,
        spans=spans(0, len(z), session.trained.config.sampling.batch),
        compute=compute,
        finish=finish,
        without=("nfe",),
    )
