"""Our model as the JSON files of diffusers: what cannot be said there is an error that names our setting."""

from typing import Any

import torch
from torch import Tensor, nn

from sde_diffusion.config.build import Trained, plain_config
from sde_diffusion.config.parse import Raw
from sde_diffusion.errors import InputError, require
from sde_diffusion.exchange.diffusers import scheduler as diffusers_scheduler
from sde_diffusion.exchange.diffusers import unet as diffusers_unet
from sde_diffusion.networks import UNet
from sde_diffusion.networks.attention import Attention, LinearAttention
from sde_diffusion.sde import BETA_SEQUENCES

VERSION = "0.30.0"  # of diffusers, whose files these are like


def model_config(trained: Trained) -> dict[str, Any]:
    """The config.json of the `UNet2DModel` that is the network of a model.

    Raises:
        InputError: The network has an option that a `UNet2DModel` has not.
    """
    net, shape = trained.model.net, trained.spec.shape
    options = plain_config(trained.config)["model"]["network"]
    if not isinstance(net, UNet):
        raise InputError(f"`model.network` must be unet to be exported to diffusers, got {options['name']}")
    _check(len(shape) == 3, "data.name", "hold images (channels, height, width)", shape)
    depth = len(options["multipliers"])
    halved = 2 ** (depth - 1)
    _check(
        all(side % halved == 0 for side in shape[1:]), "data.name", f"hold images whose sides {halved} divides", shape
    )
    for key, only in (("order", "norm_first"), ("embedding", "sinusoidal"), ("fourier", [])):
        _check(options[key] == only, f"model.network.{key}", f"be {only}", options[key])
    _check(not _has_linear(net), "model.network.linear_attention", "be at no level", options["linear_attention"])
    multipliers = options["multipliers"]
    _check(multipliers[0] == 1, "model.network.multipliers", "begin with 1", multipliers)
    attends = [level.get_submodule("stages.0").attention is not None for level in net.down]
    groups = _groups(net)
    bare = options["middle"] == "bare_attention"
    scaled = options["time"] == "scale_shift"
    _check(scaled or not bare, "model.network.middle", "be attention or none where `time` is shift", options["middle"])
    unconditional = net.condition.table is None or not net.condition.table.weight[0].any()
    height, width = shape[1:]
    return diffusers_unet.DEFAULTS | {
        "_class_name": "UNet2DModel",
        "_diffusers_version": VERSION,
        "add_attention": options["middle"] != "none",
        "attention_head_dim": _head_width(net),
        "attn_norm_num_groups": groups if scaled and not bare else None,
        "block_out_channels": [options["channels"] * multiplier for multiplier in multipliers],
        "down_block_types": ["AttnDownBlock2D" if attend else "DownBlock2D" for attend in attends],
        "downsample_padding": 1 if options["padding"] == "symmetric" else 0,
        "dropout": options["dropout"],
        "flip_sin_to_cos": False,
        "freq_shift": _shift(net.condition.embedding.frequencies),
        "in_channels": shape[0],
        "layers_per_block": options["blocks"],
        "norm_eps": options["norm_eps"],
        "norm_num_groups": groups,
        "num_class_embeds": net.classes + (not unconditional) if net.classes else None,
        "out_channels": shape[0] * (2 if trained.model.learned_variance else 1),
        "resnet_time_scale_shift": "scale_shift" if scaled else "default",
        "sample_size": height if height == width else [height, width],
        "up_block_types": ["AttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attends)],
    }


def scheduler_config(trained: Trained) -> dict[str, Any]:
    """The scheduler_config.json that samples the chain of a model.

    Raises:
        InputError: The process, or what the network is given and predicts, has no counterpart.
    """
    raw = plain_config(trained.config)
    process, model, sampling = raw["sde"], raw["model"], raw["sampling"]
    _check(process["name"] == "ddpm", "sde.name", "be ddpm, a chain of levels,", process["name"])
    _check(model["conditioning"] == "step", "model.conditioning", "be step", model["conditioning"])
    plain_input = not model["scale_input"] or model["sigma_data"] == 1  # VP data of unit variance stay as they are
    _check(plain_input, "model.scale_input", "be false, or model.sigma_data be 1,", model["scale_input"])
    predictions = {ours: theirs for theirs, ours in diffusers_scheduler.PREDICTIONS.items()}
    rule = f"be one of {', '.join(predictions)}"
    _check(model["prediction"] in predictions, "model.prediction", rule, model["prediction"])
    ddim = (
        sampling["solver"]["name"] == "ddim" and not trained.model.learned_variance
    )  # which that one cannot split off
    own = (
        {"set_alpha_to_one": sampling["denoise"]} if ddim else {"variance_type": _variance(trained, sampling["solver"])}
    )
    return {
        "_class_name": "DDIMScheduler" if ddim else "DDPMScheduler",
        "_diffusers_version": VERSION,
        "num_train_timesteps": process["steps"],
        "prediction_type": predictions[model["prediction"]],
        "timestep_spacing": "linspace",
        **_rates(process["steps"], process["beta"]),
        **_projection(sampling),
        **own,
    }


def _check(condition: bool, key: str, rule: str, got: object) -> None:
    require(condition, f"`{key}` must {rule} to be exported to diffusers, got {got}")


def _has_linear(net: nn.Module) -> bool:
    return any(isinstance(module, LinearAttention) for module in net.modules())


def _groups(net: nn.Module) -> int:
    """`norm_num_groups`: the same in every GroupNorm there."""
    found = sorted({module.num_groups for module in net.modules() if isinstance(module, nn.GroupNorm)})
    _check(len(found) == 1, "model.network.groups", "be a number that all widths have", " and ".join(map(str, found)))
    return found[0]


def _head_width(net: nn.Module) -> int | None:
    """`attention_head_dim`: the same in every attention there, or null for one head each."""
    heads = [(module.heads, module.out.weight.shape[0]) for module in net.modules() if isinstance(module, Attention)]
    if all(count == 1 for count, _ in heads):
        return None
    widths = sorted({channels // count for count, channels in heads})
    shown = " and ".join(map(str, widths))
    _check(len(widths) == 1, "model.network.head_channels", "divide all widths with attention", f"heads of {shown}")
    return widths[0]


def _shift(frequencies: Tensor) -> int:
    """`freq_shift`, by which the frequencies of the time embedding are known there."""
    ours, width = frequencies.cpu(), 2 * len(frequencies)
    found = [shift for shift in (0, 1) if torch.allclose(ours, diffusers_unet.waves(width, shift), rtol=1e-6, atol=0)]
    _check(bool(found), "model.network.embedding_scale", "be 1", f"frequencies from {float(ours[0]):g}")
    return found[0]


def _rates(steps: int, beta: Raw) -> dict[str, Any]:
    """The keys of β: by name where it has one there, else as numbers."""
    names = {ours: theirs for theirs, ours in diffusers_scheduler.BETAS.items()}
    options = dict(beta)
    name = options.pop("name")
    if "first" in options and name in names:
        return {"beta_schedule": names[name], "beta_start": options["first"], "beta_end": options["last"]}
    rates = BETA_SEQUENCES[name](**options)
    if name in names and rates == BETA_SEQUENCES[name]():
        return {"beta_schedule": names[name]}
    return {"trained_betas": rates(steps).tolist()}


def _projection(sampling: Raw) -> dict[str, Any]:
    """The keys of what becomes of x̂0."""
    project = sampling["project"] or {"name": "none"}
    if project["name"] == "dynamic_threshold":
        _check(project["bound"] == 1, "sampling.project.bound", "be 1", project["bound"])
        limit = {"sample_max_value": 10 * diffusers_scheduler.UNLIMITED}
        return {"clip_sample": False, "thresholding": True, "dynamic_thresholding_ratio": project["quantile"], **limit}
    if project["name"] == "clip":
        low, high = project["low"], project["high"]
        _check(low == -high, "sampling.project.low", f"be −`high` = {-high}", low)
        return {"clip_sample": True, "clip_sample_range": high}
    return {"clip_sample": bool(sampling["clip"])}


def _variance(trained: Trained, solver: Raw) -> str:
    """`variance_type`; a head for the variance is only read where it is `learned_range`."""
    kinds = {"small": "fixed_small", "large": "fixed_large"}
    return (
        "learned_range" if trained.model.learned_variance else kinds.get(solver.get("variance", "small"), "fixed_small")
    )
