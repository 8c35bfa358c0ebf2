"""A picture of what a model in training draws."""

import logging

import torch

from sde_diffusion.data import DataSpec
from sde_diffusion.errors import InputError
from sde_diffusion.model import ScoreModel
from sde_diffusion.pictures import save_classes, save_samples
from sde_diffusion.sampling import sample
from sde_diffusion.solvers import SeededNoise, Solver
from sde_diffusion.training.run_folder import RunFolder

logger = logging.getLogger(__name__)


def draw_samples(
    model: ScoreModel,
    spec: DataSpec,
    folder: RunFolder | None,
    *,
    step: int,
    solver: Solver,
    count: int,
    conditional: bool,
    noise: SeededNoise,
) -> None:
    """Write a picture of `count` samples of `model` to `folder`, of all classes in turn if it is told them.

    Without a folder they are drawn alone, by a rank that has a share of the model.

    An untrained score may be too rough to integrate, which is no reason to stop training: then there is a warning.
    """
    labels = torch.arange(count, device=noise.device) % len(spec.classes) if conditional else None
    try:
        samples = sample(model.bind(labels), model.sde, solver, (count, *spec.shape), noise=noise)
    except InputError as error:
        logger.warning("no picture at step %d: %s", step, error)
        return
    if folder is None:
        return
    path, values = folder.sample_path(step), spec.from_model(samples.x)
    if labels is None:
        save_samples(path, spec, values)
    else:
        save_classes(path, spec, values, labels)
