"""`sample`: draw from a trained model."""

from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sde_diffusion.commands.common import Options, checkpoint_options, result_options, show_config
from sde_diffusion.commands.growing import Rows, spans
from sde_diffusion.commands.guiding import ALL, announce, class_options, label_rows
from sde_diffusion.commands.job import Job, run_job
from sde_diffusion.commands.latents import samples_report, solver_name
from sde_diffusion.commands.naming import results_folder
from sde_diffusion.commands.session import Session
from sde_diffusion.commands.solving import (
    budget_option,
    end_options,
    open_to_solve,
    solver_options,
)
from sde_diffusion.config.build import Trained, plain_config
from sde_diffusion.config.parse import Raw
from sde_diffusion.data import DataSpec
from sde_diffusion.pictures import save_classes, save_samples, save_strip
from sde_diffusion.sampling import Samples
from sde_diffusion.sampling import sample as draw
from sde_diffusion.solvers import SeededNoise

EPILOG = """\b
Examples:
  sde-diffusion sample                                     # newest run
  sde-diffusion sample --nfe 10                            # the best that 10 score evaluations can do
  sde-diffusion sample --nfe 10 --solver heun              # 4 steps of 2, and the final denoising
  sde-diffusion sample --solver em --steps 500
  sde-diffusion sample --solver ancestral --steps 100 --grid log_snr --count 16 --trajectory
  sde-diffusion sample runs/digits_vp --solver ode --rtol 1e-4 --atol 1e-4 --seed 1
  sde-diffusion sample --ema 0.15                          # weights averaged over another length of training
  sde-diffusion sample --set sampling.solver.variance=large --solver ancestral
  sde-diffusion sample --label 3 --guidance 2              # of a conditional model
  sde-diffusion sample --label all --guidance 3 --set sampling.guidance.interval='[0.2, 5]'
  sde-diffusion sample --guidance 2 --set sampling.guidance.name=autoguidance \\
    --set sampling.guidance.checkpoint=runs/digits_vp/checkpoints/step_00000500.safetensors

\b
Sample i depends on the seed and on i, not on --batch: exactly but for rounding, and to the tolerance for `torchdiffeq`
and `scipy`, whose steps the batch shares (`ode` has its own for each). A killed run goes on where it stopped. The
picture shows the first 100 images or 5000 points, of several classes a row each; samples.npz has all. Without --out
the folder lies in the run's and is named by what was asked for: sample_em_seed0_steps500_label3_guidance2.

\b
--guidance SCALE weighs s = s_0 + SCALE (s_1 - s_0): 0 is the model without the label, 1 with it, more is guided (SCALE
is 1 more than the w of Ho & Salimans). sampling.guidance.name: classifier_free, autoguidance by a worse checkpoint, or
classifier, trained by `classifier`; sampling.guidance.interval: noise levels std/a between which it holds.
"""

FRAMES, ROWS = 10, 8  # of the denoising strip: times and images
PICTURED, POINTS = 100, 5000  # most samples in a picture: images, and points of other data


@click.command(epilog=EPILOG, short_help="Draw samples from a model.")
@checkpoint_options
@budget_option
@solver_options
@end_options
@click.option("--count", type=int, help="How many samples to draw. Default: the config's, 64.")
@click.option(
    "--batch", type=int, help="How many samples to draw at once. It changes speed and memory, not the samples."
)
@class_options(
    ALL, help="Class of the samples, such as 3. 0,1,2 or `all` takes these classes in turn. Default: -1, none."
)
@click.option("--trajectory", is_flag=True, help="Also draw a picture of how the first samples form.")
@result_options
def sample(
    options: Options,
    trajectory: bool,
    **given: Any,
) -> None:
    """Draw samples from CHECKPOINT, a file or a run's folder; from the newest run without one."""
    session, asked = open_to_solve(options, given)
    config = session.trained.config
    announce(session, dry_run=options.dry_run)
    if options.dry_run:
        show_config({"seed": config.seed, "sampling": plain_config(config)["sampling"]})
        return
    word = given["label"] if given["label"] == ALL else None
    head = f"sample_{solver_name(session)}_seed{config.seed}"
    folder = options.out or results_folder(session, head, "sampling", asked, nfe=given["nfe"], label=word)
    run_job(session, folder, _job(session, folder, trajectory), options)


def _job(session: Session, folder: Path, trajectory: bool) -> Job:
    options, spec, facts = session.trained.config.sampling, session.trained.spec, session.facts()
    strip = _Strip(session.trained) if trajectory else None

    def compute(first: int, size: int) -> Rows:
        result = _draw(session, first, size, strip if first == 0 else None)
        rows = {"samples": spec.from_model(result.x).cpu().numpy(), "nfe": np.full(size, result.nfe)}
        return rows | label_rows(options.labels(first, size), known=options.label != (-1,))

    def finish(rows: Rows, seconds: float) -> tuple[Raw, list[str]]:
        samples = torch.from_numpy(rows["samples"])
        _picture(folder / "samples.png", spec, samples, rows.get("labels"))
        if strip is not None:
            if not strip.frames:  # an earlier process drew the first batch
                _draw(session, 0, min(options.count, strip.rows), strip)
            strip.save(folder / "trajectory.png")
        return samples_report(rows, spec, seconds)

    return Job(
        files=("samples.png", "samples.npz", "sample.json", *(["trajectory.png"] if trajectory else [])),
        arrays="samples.npz",
        facts=facts,
        request=facts | {"config": {key: facts["config"][key] for key in ("seed", "sampling")}},
        grows="config.sampling.count",
        spans=spans(0, options.count, options.batch),
        compute=compute,
        finish=finish,
        without=("nfe",),
    )


def _draw(session: Session, start: int, size: int, strip: "_Strip | None") -> Samples:
    """The samples `start … start + size − 1`."""
    trained = session.trained
    options = trained.config.sampling
    return draw(
        trained.score_fn(options.labels(start, size)),
        trained.model.sde,
        options.solver,
        (size, *trained.spec.shape),
        noise=SeededNoise(trained.config.seed, start=start, device=session.device),
        t_end=options.t_end,
        denoise=options.denoise,
        project=options.projection,
        observer=strip.observe if strip else None,
    )


def _picture(path: Path, spec: DataSpec, samples: Tensor, labels: npt.NDArray[Any] | None) -> None:
    """A picture of the samples; if they are of several classes, by class."""
    if labels is None or len(set(labels.tolist())) == 1:
        save_samples(path, spec, samples[: PICTURED if spec.is_image else POINTS])
    else:
        save_classes(path, spec, samples[:POINTS], torch.from_numpy(labels)[:POINTS])


class _Strip:
    """Keeps the states of the first samples on their way."""

    def __init__(self, trained: Trained) -> None:
        self._trained = trained
        self.rows = ROWS if trained.spec.is_image else POINTS
        self.frames: list[Tensor] = []
        self.times: list[float] = []

    def observe(self, x: Tensor, t: float) -> None:
        self.frames.append(x[: self.rows].clone())
        self.times.append(t)

    def save(self, path: Path) -> None:
        """Draw ten of them, evenly spread over the signal's share of the state, each scaled to the data's range."""
        model, spec = self._trained.model, self._trained.spec
        t = torch.tensor(self.times, dtype=torch.float64)
        signal = model.sde.mean_coef(t) * model.sigma_data
        total = torch.hypot(signal, model.sde.std(t))
        wanted = torch.linspace(0, 1, FRAMES, dtype=torch.float64)
        chosen = sorted({int((signal / total - share).abs().argmin()) for share in wanted})
        frames = [spec.from_model(self.frames[i] * (model.sigma_data / total[i])) for i in chosen]
        save_strip(path, spec, frames, [self.times[i] for i in chosen])
