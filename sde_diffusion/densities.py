"""Densities of examples that a program holds, by a trained model."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.config.build import Trained
from sde_diffusion.data import TensorDataset
from sde_diffusion.data.given import Label, labels_of, spans, value_tensor
from sde_diffusion.errors import is_whole, require
from sde_diffusion.likelihood import DIVERGENCES, Divergence, Examples
from sde_diffusion.registry import resolve
from sde_diffusion.solvers import ODES, AdaptiveODE


def bits_of(
    trained: Trained,
    values: Any,
    label: Label,
    *,
    divergence: Divergence | str,
    ode: AdaptiveODE | str | None,
    seed: int,
    batch: int,
) -> Tensor:
    """Bits/dim of each example, (B,) float64 on the CPU; arguments and errors as of `Model.log_prob`."""
    require(is_whole(seed), f"`seed` must be a whole number, got {seed!r}")
    trace = resolve(DIVERGENCES, divergence, Divergence, "divergence")  # type: ignore[type-abstract]
    solver = trained.config.likelihood.ode if ode is None else ode
    integrator = resolve(ODES, solver, AdaptiveODE, "ode")  # type: ignore[type-abstract]
    spec, device = trained.spec, next(iter(trained.model.state_dict().values())).device
    data = value_tensor(spec, values, device)
    labels = labels_of(spec, label, len(data))
    examples = Examples(
        TensorDataset(replace(spec, classes=()), data),
        torch.arange(len(data)),
        trained.dequantisation,
        draws=1,
        seed=seed,
        device=device,
    )
    parts = []
    for first, size in spans(len(data), batch):
        score_fn = trained.model.bind(labels[first : first + size])
        scores = examples.score(score_fn, trained.model.sde, first, size, divergence=trace, ode=integrator)
        parts.append(scores.bits_per_dim.mean((1, 2)))
    return torch.cat(parts)
