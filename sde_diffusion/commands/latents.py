"""What `encode`, `decode` and `interpolate` share: the deterministic way between data and latents."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sde_diffusion.commands.growing import Rows
from sde_diffusion.commands.session import Session
from sde_diffusion.config.parse import Raw
from sde_diffusion.data import DataSpec
from sde_diffusion.data.sources.arrays import open_arrays
from sde_diffusion.errors import require
from sde_diffusion.likelihood import mean_interval
from sde_diffusion.registry import name_of
from sde_diffusion.sampling import Samples, decode, encode
from sde_diffusion.solvers import SOLVERS


def to_latents(session: Session, x0: Tensor, labels: Tensor, start: int = 0) -> Samples:
    """Data of the classes `labels` (B,) at t_min to latents at t_max, by the config's solver and guidance.

    Args:
        start: Index of the first example.
    """
    trained = session.trained
    return encode(trained.score_fn(labels), trained.model.sde, trained.config.sampling.solver, x0, start=start)


def undo(session: Session, z: Tensor, labels: Tensor, start: int) -> Samples:
    """Latents back to the state at t_min: what `to_latents` began with, but for the error of both ways."""
    trained = session.trained
    return decode(trained.score_fn(labels), trained.model.sde, trained.config.sampling.solver, z, start=start)


def to_samples(session: Session, z: Tensor, labels: Tensor, start: int) -> Samples:
    """Latents to samples of the classes `labels` (B,), with the end that the config asks for."""
    trained = session.trained
    options = trained.config.sampling
    return decode(
        trained.score_fn(labels),
        trained.model.sde,
        options.solver,
        z,
        t_end=options.t_end,
        denoise=options.denoise,
        project=options.projection,
        start=start,
    )


def solver_name(session: Session) -> str:
    """The row of the solver in use."""
    return name_of(SOLVERS, session.trained.config.sampling.solver)


def shown(session: Session, z: Tensor) -> Tensor:
    """Latents in data units at the scale of the data, for pictures."""
    model, spec = session.trained.model, session.trained.spec
    return spec.from_model(z * (model.sigma_data / model.sde.prior_std))


def read_labels(file: Path, count: int) -> Tensor:
    """The classes of the `count` latents in a file, its array `labels`, (count,) int64.

    Raises:
        InputError: It has none, or not one whole number for each latent.
    """
    arrays = open_arrays(file)
    require("labels" in arrays, f"{file} must hold the classes of its latents as `labels`; name a class with --label")
    labels = arrays["labels"]
    require(
        labels.shape == (count,) and labels.dtype.kind in "iu",
        f"`labels` in {file} must be {count} whole numbers, one for each latent, got {labels.dtype} {labels.shape}",
    )
    return torch.from_numpy(labels.astype(np.int64))


def read_latents(file: Path, spec: DataSpec) -> npt.NDArray[Any]:
    """The latents in a file, (B, *shape): its array `z`, or the only one beside `labels` and `index`.

    Raises:
        InputError: No such file, several arrays, another shape, or values that are no finite real numbers.
    """
    arrays = open_arrays(file)
    names = ["z"] if "z" in arrays else [name for name in arrays if name not in ("labels", "index")]
    require(len(names) == 1, f"{file} must hold latents as `z` or as its only array, got {', '.join(arrays) or 'none'}")
    z = arrays[names[0]]
    require(
        z.ndim > 0 and len(z) > 0 and z.shape[1:] == spec.shape,
        f"`{names[0]}` in {file} must have the shape (B, {', '.join(map(str, spec.shape))}), got {z.shape}",
    )
    require(z.dtype.kind in "fiu", f"`{names[0]}` in {file} must hold real numbers, got {z.dtype}")
    wrong = z.size - int(np.isfinite(z).sum())
    require(wrong == 0, f"`{names[0]}` in {file} must be finite, got {wrong} numbers that are not")
    return z


def compare_with_prior(z: Tensor, prior_std: float) -> dict[str, Any]:
    """Mean and standard deviation of all numbers, and the mean norm of a latent, beside those of N(0, prior_std² I)."""
    dims, numbers = z[0].numel(), z.double()
    half = math.lgamma((dims + 1) / 2) - math.lgamma(dims / 2)
    return {
        "mean": float(numbers.mean()),
        "std": float((numbers**2).mean().sqrt()),
        **interval("norm", numbers.flatten(1).norm(dim=1)),
        "prior_std": prior_std,
        "prior_norm": prior_std * math.sqrt(2) * math.exp(half),
    }


def interval(name: str, values: Tensor) -> dict[str, Any]:
    """`name`: the mean, `name_half_width`: that of its 95 % interval, None for a single value."""
    mean, half_width = mean_interval(values).plain()
    return {name: mean, f"{name}_half_width": half_width}


def with_error(report: dict[str, Any], name: str) -> str:
    """What `interval` reported, for people."""
    half_width = report[f"{name}_half_width"]
    return f"{report[name]:.4g}" + ("" if half_width is None else f" ± {half_width:.2g}")


def samples_report(rows: Rows, spec: DataSpec, seconds: float) -> tuple[Raw, list[str]]:
    """What is said of samples (B, *D) and their score evaluations: for the JSON file, and the lines to print."""
    samples, nfe = rows["samples"], rows["nfe"]
    report: Raw = {
        "nfe": [int(nfe.min()), int(nfe.max())],
        "seconds": seconds,
        "shape": list(samples.shape),
        "units": spec.describe_units(),
    }
    return report, [f"{len(samples)} samples, {between(*report['nfe'])} score evaluations each, {seconds:.1f} s"]


def between(low: int, high: int) -> str:
    """A least and a largest number, for people."""
    return f"{low}–{high}" if low < high else str(low)
