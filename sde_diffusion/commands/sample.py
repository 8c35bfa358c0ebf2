"""`sample`: draw from a trained model."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from sde_diffusion.build import Trained, plain_config
from sde_diffusion.commands.common import (
    GrowingArrays,
    Loaded,
    as_assignments,
    ema_options,
    load,
    make_folder,
    shared_options,
    show_config,
    write_json,
)
from sde_diffusion.commands.solving import (
    budget_option,
    check_budget,
    end_options,
    naming_flags,
    solver_assignments,
    solver_options,
    spend_budget,
)
from sde_diffusion.pictures import save_samples, save_strip
from sde_diffusion.sampling import Samples
from sde_diffusion.sampling import sample as draw
from sde_diffusion.solvers import SeededNoise

EPILOG = """\b
Examples:
  python cli.py sample                                     # newest run
  python cli.py sample --nfe 10                            # the best that 10 score evaluations can do
  python cli.py sample --nfe 10 --solver heun              # 4 steps of 2, and the final denoising
  python cli.py sample --solver em --steps 500
  python cli.py sample --solver ancestral --steps 100 --grid log_snr --count 16 --trajectory
  python cli.py sample runs/digits_vp --solver ode --rtol 1e-4 --atol 1e-4 --seed 1
  python cli.py sample --ema 0.15                          # weights averaged over another length of training
  python cli.py sample --set sampling.solver.variance=large --solver ancestral

\b
Sample i depends on the seed and on i, not on --batch: exactly but for rounding, and to the tolerance for `torchdiffeq`
and `scipy`, whose steps the batch shares (`ode` has its own for each). A killed run goes on where it stopped. The
picture shows the first 100 images or 5000 points, samples.npz all.
"""

FRAMES, ROWS = 10, 8  # of the denoising strip: times and images
PICTURED, POINTS = 100, 5000  # most samples in a picture: images, and points of other data


@click.command(epilog=EPILOG, short_help="Draw samples from a model.")
@click.argument("checkpoint", required=False, type=click.Path(path_type=Path))
@budget_option
@solver_options
@end_options
@click.option("--count", type=int, help="Number of samples.")
@click.option("--batch", type=int, help="Samples drawn at once.")
@click.option("--label", type=int, help="Class of the samples, for a conditional model; -1 for none.")
@ema_options
@click.option("--trajectory", is_flag=True, help="Also draw how the first samples form.")
@shared_options
def sample(
    checkpoint: Path | None,
    config_file: Path | None,
    assignments: tuple[str, ...],
    seed: int | None,
    device: str,
    out: Path | None,
    dry_run: bool,
    ema: bool | str,
    trajectory: bool,
    **given: Any,
) -> None:
    """Draw samples from CHECKPOINT, a file or a run's folder; from the newest run without one."""
    options = {f"sampling__{key}": given[key] for key in ("t_end", "denoise", "clip", "count", "batch", "label")}
    overrides = [*solver_assignments(given, assignments), *as_assignments(**options, seed=seed)]
    check_budget(given, assignments, config_file)
    with naming_flags(given):
        loaded = load(checkpoint, config_file, overrides, device=device, ema=ema)
    config = spend_budget(given, assignments, config_file, loaded.trained.config)
    loaded = replace(loaded, trained=replace(loaded.trained, config=config))
    click.echo(f"{'# ' if dry_run else ''}{loaded.describe()}")
    if dry_run:
        show_config({"seed": config.seed, "sampling": plain_config(config)["sampling"]})
        return
    name = plain_config(config)["sampling"]["solver"]["name"]
    folder = out or loaded.folder / f"sample_{name}_seed{config.seed}"
    _run(loaded, folder, trajectory, {"ema": ema})


def _run(loaded: Loaded, folder: Path, trajectory: bool, extra: dict[str, Any]) -> None:
    trained, clock = loaded.trained, time.perf_counter()
    options, spec = trained.config.sampling, trained.spec
    facts = loaded.facts() | extra
    fixed = {key: value for key, value in facts.items() if key not in ("checkpoint", "config")} | {
        "seed": trained.config.seed,
        "sampling": {k: v for k, v in facts["config"]["sampling"].items() if k != "count"},
    }
    store, strip = GrowingArrays(make_folder(folder) / "samples.npz", fixed), _Strip(trained)
    _draw_all(loaded, store, strip if trajectory else None)
    if trajectory and not strip.frames:  # an earlier process drew the first batch
        _draw(loaded, 0, min(options.count, strip.rows), strip)
    seconds, nfe = time.perf_counter() - clock, store.arrays["nfe"][: options.count]
    store.finish(without=("nfe",))
    samples = torch.from_numpy(store.arrays["samples"])[: options.count]
    save_samples(folder / "samples.png", spec, samples[: PICTURED if spec.is_image else POINTS])
    if trajectory:
        strip.save(folder / "trajectory.png")
    write_json(
        folder / "sample.json",
        facts
        | {"nfe": [int(nfe.min()), int(nfe.max())], "seconds": seconds}
        | {"shape": list(samples.shape), "units": spec.describe_units()},
    )
    evaluations = f"{nfe.min()}–{nfe.max()}" if nfe.min() < nfe.max() else str(nfe[0])
    click.echo(f"{len(samples)} samples, {evaluations} score evaluations each, {seconds:.1f} s")
    click.echo(f"wrote {folder / 'samples.png'}, samples.npz, sample.json" + (", trajectory.png" if trajectory else ""))


def _draw_all(loaded: Loaded, store: GrowingArrays, strip: "_Strip | None") -> None:
    """Draw what `store` lacks, batch by batch; `strip` looks at the first."""
    options, spec = loaded.trained.config.sampling, loaded.trained.spec
    with tqdm(total=options.count, initial=min(len(store), options.count), unit="img", disable=None) as bar:
        while len(store) < options.count:
            size = min(options.batch, options.count - len(store))
            result = _draw(loaded, len(store), size, strip if len(store) == 0 else None)
            rows = {"samples": spec.from_model(result.x).cpu().numpy(), "nfe": np.full(size, result.nfe)}
            store.append(**rows, **({} if options.label == -1 else {"labels": np.full(size, options.label)}))
            bar.update(size)


def _draw(loaded: Loaded, start: int, size: int, strip: "_Strip | None") -> Samples:
    """The samples `start … start + size − 1`."""
    trained = loaded.trained
    options = trained.config.sampling
    return draw(
        trained.model.bind(options.label),
        trained.model.sde,
        options.solver,
        (size, *trained.spec.shape),
        noise=SeededNoise(trained.config.seed, start=start, device=loaded.device),
        t_end=options.t_end,
        denoise=options.denoise,
        project=options.projection,
        observer=strip.observe if strip else None,
    )


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
