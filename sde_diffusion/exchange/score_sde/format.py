"""Checkpoints of score_sde_pytorch: DDPM, DDPM++ and NCSN++, continuous VP, sub-VP and VE, or DDPM's chain.

A file is {model: tensors by name, ema: {shadow_params: a list in the order of the parameters, …}, step, optimizer}.
It does not hold its config, so the process of a VP model must be told. Their network h gives, with the process's std σ,

    VP, sub-VP   score = −h(x, 999 t)/σ         VE   score = h(2x − 1, log σ)/σ,  x in [0, 1].

Our images y = 2x − 1 have noise of 2σ: with σ' = 2σ the VE network is ε̂ = −h(y, log(σ'/2)). The sign goes into the last
convolutions, and the shift of log σ into the first matrix after the Fourier features, both exactly.

References: Song et al. 2021, arXiv:2011.13456; https://github.com/yang-song/score_sde_pytorch.
"""

import contextlib
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.config.parse import Raw
from sde_diffusion.errors import InputError, require
from sde_diffusion.exchange.base import Format, Imported
from sde_diffusion.exchange.files import read_pickle, tensors_of
from sde_diffusion.exchange.score_sde.layout import Architecture, closed_up, infer, trained
from sde_diffusion.exchange.score_sde.slots import slots

SUFFIXES = {".pth", ".pt"}
FIXED_LEVELS = {"vp": "time", "subvp": "time", "ddpm": "step"}
"""Process of a network that is told the time by its position -> what it is told."""

ATTENTION = 16  # resolution of attention in every published network
PER_LOG_SIGMA = 4.0  # c_noise is log(σ)/4
TYPICAL = 16.0  # standard deviation of the published frequencies [turns per unit of log σ]


class ScoreSDE(Format):
    """A checkpoint of score_sde_pytorch: the networks DDPM, DDPM++ and NCSN++, from a .pth file.

    Reference: https://github.com/yang-song/score_sde_pytorch.
    """

    def detects(self, path: Path) -> bool:
        return path.is_file() and path.suffix in SUFFIXES

    def read(self, path: Path, *, shape: tuple[int, ...] | None, config: Raw) -> Imported:
        found = read_pickle(path)
        require(isinstance(found, dict), f"{path} must hold a checkpoint by name, got {type(found).__name__}")
        weights, levels = _network(found.get("model", found), path)
        architecture = infer(weights, path)
        averaged = _averaged(found.get("ema"), weights, path)
        notes = [_said(architecture)]
        if shape is None:
            shape = _guessed_shape(architecture, path)
            notes.append(
                f"{path} does not say the size of its images: taken to be {shape[1]}×{shape[2]}, where attention is at "
                f"{ATTENTION}×{ATTENTION} as in all published networks; else give --shape"
            )
        process, ratio = _process(config.get("sde"), architecture, levels, path)
        model = {
            "network": architecture.options | {"attention": _resolutions(architecture, shape, path)} | _scale(ratio),
            "prediction": "eps",
            "conditioning": "log_snr" if ratio else FIXED_LEVELS[process["name"]],
            "scale_input": False,
        }
        implied = {} if ratio else {"condition.embedding.frequencies": _positions(weights)}
        in_our_terms = partial(_in_our_terms, architecture=architecture, ratio=ratio)
        step = found.get("step", 0)
        return Imported(
            {"sde": process, "model": model},
            shape,
            in_our_terms(weights),
            partial(slots, biggan=architecture.options["block"] == "biggan"),
            averaged=None if averaged is None else in_our_terms(averaged),
            implied=implied,
            step=step if isinstance(step, int) and step >= 0 else 0,
            notes=tuple(notes),
        )


def _network(found: Any, path: Path) -> tuple[dict[str, Tensor], Tensor | None]:
    """The tensors of the network without the prefix of DataParallel, and its noise levels if it holds them."""
    tensors = {name.removeprefix("module."): value for name, value in tensors_of(found, path).items()}
    levels = tensors.pop("sigmas", None)
    network = {name: value for name, value in tensors.items() if _is_entry(name)}
    require(
        len(network) > 0 and len(network) == len(tensors),
        f"{path} must hold tensors named all_modules.N.… alone to be imported, as DDPM, DDPM++ and NCSN++ of "
        f"score_sde_pytorch have them, got {next((name for name in tensors if name not in network), 'none')!r}; its "
        f"NCSN and NCSNv2 cannot be imported",
    )
    return closed_up(network), levels


def _is_entry(name: str) -> bool:
    first, _, rest = name.partition(".")
    number, _, rest = rest.partition(".")
    return first == "all_modules" and number.isdecimal() and bool(rest)


def _averaged(ema: Any, weights: Mapping[str, Tensor], path: Path) -> dict[str, Tensor] | None:
    """The averaged weights by name: a list that follows the order of the trained tensors."""
    if ema is None:
        return None
    shadow = ema.get("shadow_params") if isinstance(ema, dict) else None
    names = trained(list(weights))
    sound = isinstance(shadow, list) and [getattr(value, "shape", None) for value in shadow] == [
        weights[name].shape for name in names
    ]
    require(
        sound,
        f"`ema.shadow_params` of {path} must list {len(names)} tensors of the shapes of the network's, in their order, "
        f"got {f'{len(shadow)} others' if isinstance(shadow, list) else type(shadow).__name__}; import a file of "
        f"`model` alone to go without the average",
    )
    return dict(weights) | tensors_of(dict(zip(names, shadow or [], strict=True)), path)


def _guessed_shape(architecture: Architecture, path: Path) -> tuple[int, ...]:
    """Images whose attention is at 16 × 16."""
    levels = [level for level, attends in enumerate(architecture.attends) if attends]
    if len(levels) != 1:
        raise InputError(
            f"{path} does not say the size of its images, and has attention at {len(levels)} levels, which does not "
            f"tell it either; give it by --shape {architecture.image}xHEIGHTxWIDTH"
        )
    side = ATTENTION * 2 ** levels[0]
    return (architecture.image, side, side)


def _resolutions(architecture: Architecture, shape: tuple[int, ...], path: Path) -> list[int]:
    """The smaller sides of the levels with attention, by which our network knows them."""
    require(
        len(shape) == 3 and shape[0] == architecture.image,
        f"`--shape` must be {architecture.image}xHEIGHTxWIDTH for {path}, got {'x'.join(map(str, shape))}",
    )
    sides = [-(-min(shape[1:]) // 2**level) for level in range(len(architecture.attends))]
    chosen = {side for side, attends in zip(sides, architecture.attends, strict=True) if attends}
    require(
        [side in chosen for side in sides] == list(architecture.attends),
        f"`--shape` must be large enough for the {len(sides)} levels of {path} to differ in size, got "
        f"{'x'.join(map(str, shape))}",
    )
    return sorted(chosen, reverse=True)


def _process(
    given: Any, architecture: Architecture, levels: Tensor | None, path: Path
) -> tuple[dict[str, Any], float | None]:
    """The section `sde`, and for VE the ratio of our σ to theirs."""
    section = {"name": given} if isinstance(given, str) else dict(given or {})
    name = section.get("name", "ve" if architecture.fourier else None)
    if architecture.fourier:
        require(
            name == "ve",
            f"`sde` must be ve for {path}, whose network is told log σ by Fourier features, got {name}; leave it out",
        )
        return _exploding(section, levels, path)
    require(
        name is not None,
        f"{path} does not say its process: give --set sde=vp or sde=subvp for a model of continuous time, sde=ddpm for "
        f"one of DDPM's 1000 levels",
    )
    require(
        name in FIXED_LEVELS,
        f"`sde` must be vp, subvp or ddpm for {path}, whose network is told the time by its position, got {name}; a VE "
        f"model of this kind was trained on fixed noise levels alone and cannot be imported, a continuous one can",
    )
    return {"name": name}, None


def _exploding(section: Mapping[str, Any], levels: Tensor | None, path: Path) -> tuple[dict[str, Any], float]:
    """The VE process for images in [−1, 1]."""
    names = ("sigma_min", "sigma_max")
    given = [section.get(name) for name in names]
    if levels is None or not levels.numel():
        require(
            None not in given,
            f"{path} does not hold its noise levels: give those for images in [−1, 1], twice those for images in "
            f"[0, 1], by --set sde.sigma_min=0.02 --set sde.sigma_max=100",
        )
        return {"name": "ve"}, 2.0
    theirs = [float(f"{float(end):.6g}") for end in (levels.min(), levels.max())]
    ratio = 2.0
    if given[1] is not None:
        with contextlib.suppress(TypeError, ValueError):  # what is no number is refused with the rest of the config
            ratio = float(given[1]) / theirs[1]
        require(
            min(abs(ratio - 1), abs(ratio - 2)) < 1e-3,
            f"`sde.sigma_max` must be {2 * theirs[1]:g} for {path} if it was trained on images in [0, 1], or "
            f"{theirs[1]:g} if in [−1, 1], got {given[1]}",
        )
        ratio = float(round(ratio))
    return {"name": "ve"} | {name: ratio * end for name, end in zip(names, theirs, strict=True)}, ratio


def _scale(ratio: float | None) -> dict[str, float]:
    """`embedding_scale`, for the record: the frequencies themselves come from the file, or from a formula."""
    return {"embedding_scale": 1.0 if ratio is None else round(PER_LOG_SIGMA * 2 * math.pi * TYPICAL, 1)}


def _positions(weights: Mapping[str, Tensor]) -> Tensor:
    """Frequencies 10000^{−i/(h − 1)} of the time's position, rounded as there: it shows in phases up to 999."""
    half = weights["all_modules.0.weight"].shape[1] // 2
    return torch.exp(torch.arange(half, dtype=torch.float32, device="cpu") * -(math.log(10_000) / max(half - 1, 1)))


def _in_our_terms(
    weights: Mapping[str, Tensor], *, architecture: Architecture, ratio: float | None
) -> dict[str, Tensor]:
    """The weights of ε̂ as a function of c_noise, of theirs; those of VP are that already."""
    found = dict(weights)
    if ratio is None:
        return found
    turns = weights["all_modules.0.W"]  # per unit of log σ
    dtype = turns.dtype
    angular = 2 * math.pi * turns.double()
    found["all_modules.0.W"] = (PER_LOG_SIGMA * angular).to(dtype)
    phase = angular * math.log(ratio)
    sine, cosine = weights["all_modules.1.weight"].double().chunk(2, 1)
    turned = [sine * phase.cos() + cosine * phase.sin(), cosine * phase.cos() - sine * phase.sin()]
    found["all_modules.1.weight"] = torch.cat(turned, 1).to(dtype)
    for number in architecture.heads:
        for name in ("weight", "bias"):
            found[f"all_modules.{number}.{name}"] = -weights[f"all_modules.{number}.{name}"]
    return found


def _said(architecture: Architecture) -> str:
    """What was taken from names and shapes, and what they do not tell."""
    options = architecture.options
    return (
        f"the file does not say whether sums are divided by √2 and whether the filter resamples: taken as published, "
        f"model.network.rescale={str(options['rescale']).lower()} and model.network.fir={str(options['fir']).lower()}; "
        f"images are taken to lie in [−1, 1]" + ("" if not architecture.fourier else " here and in [0, 1] there")
    )
