"""A `DDPMScheduler` or `DDIMScheduler` of diffusers as our process and way of sampling, and back.

Reference: https://huggingface.co/docs/diffusers/api/schedulers/ddpm.
"""

from collections.abc import Mapping
from typing import Any

from sde_diffusion.config.parse import Raw
from sde_diffusion.exchange.keys import Keys

DEFAULTS: dict[str, Any] = {
    "_class_name": "DDPMScheduler",
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "beta_start": 1e-4,
    "clip_sample": True,
    "clip_sample_range": 1.0,
    "dynamic_thresholding_ratio": 0.995,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "rescale_betas_zero_snr": False,
    "sample_max_value": 1.0,
    "set_alpha_to_one": True,
    "thresholding": False,
    "trained_betas": None,
    "variance_type": "fixed_small",
}
"""What a key that a scheduler_config.json leaves out means."""

SOLVERS = {"DDPMScheduler": "ancestral", "DDIMScheduler": "ddim"}
PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
VARIANCES = {"fixed_small": "small", "fixed_small_log": "small", "fixed_large": "large", "learned_range": "learned"}
BETAS = {"linear": "linear", "scaled_linear": "quadratic", "sigmoid": "sigmoid", "squaredcos_cap_v2": "cosine"}
UNLIMITED = 1e3  # a `sample_max_value` that no x̂0 reaches
DDIM_STEPS = 50  # of diffusers' own pipeline, where nothing is said


def scheduler_keys(found: Mapping[str, Any], source: object) -> Keys:
    """A scheduler_config.json.

    Raises:
        InputError: A class or a value that our processes and solvers have not.
    """
    keys = Keys(found, source, DEFAULTS)
    for key, known in (
        ("_class_name", SOLVERS),
        ("beta_schedule", BETAS),
        ("prediction_type", PREDICTIONS),
        ("variance_type", VARIANCES),
    ):
        keys.check(key, keys[key] in known, f"be one of {', '.join(known)}")
    keys.check("rescale_betas_zero_snr", keys["rescale_betas_zero_snr"] is False, "be false")
    keys.check("trained_betas", keys["trained_betas"] is None, "be null, with the rates named by `beta_schedule`,")
    keys.check("num_train_timesteps", keys.whole("num_train_timesteps") >= 2, "be ≥ 2")
    return keys


def sections(keys: Keys, *, learned: bool) -> Raw:
    """The sections `sde`, `model`, `loss` and `sampling`.

    Args:
        keys: Of the scheduler.
        learned: Whether the network has a head for the variance.
    """
    steps, name = keys.whole("num_train_timesteps"), BETAS[keys["beta_schedule"]]
    ends = {} if name == "cosine" else {"first": keys.number("beta_start"), "last": keys.number("beta_end")}
    variance = VARIANCES[keys["variance_type"]]
    keys.check("variance_type", learned or variance != "learned", "be fixed, for the network has one head,")
    solver: Raw = {"name": SOLVERS[keys["_class_name"]], "steps": steps - 1, "grid": "levels"}
    if solver["name"] == "ancestral":
        solver["variance"] = variance
    else:
        solver["steps"] = min(DDIM_STEPS, steps) - 1  # and the denoising at the end
    return {
        "sde": {"name": "ddpm", "steps": steps, "beta": {"name": name, **ends}},
        "model": {
            "prediction": PREDICTIONS[keys["prediction_type"]],
            "conditioning": "step",
            "scale_input": False,
            "learned_variance": learned,
        },
        "loss": {"weighting": "simple", "time_sampler": "discrete"},
        "sampling": {
            "solver": solver,
            "denoise": bool(keys["set_alpha_to_one"]),
            **_projection(keys),
        },
    }


def _projection(keys: Keys) -> Raw:
    """What becomes of x̂0: thresholded, clipped, or left."""
    if keys["thresholding"] and keys.number("sample_max_value") > 1:
        limit = keys.number("sample_max_value") >= UNLIMITED
        keys.check("sample_max_value", limit, f"be 1, or at least {UNLIMITED:g}, for ours has no limit above 1,")
        ratio = keys.number("dynamic_thresholding_ratio")
        return {"project": {"name": "dynamic_threshold", "quantile": ratio, "bound": 1.0}}
    bound = 1.0 if keys["thresholding"] else keys.number("clip_sample_range")
    if not (keys["thresholding"] or keys["clip_sample"]):
        return {}
    return {"clip": True} if bound == 1 else {"project": {"name": "clip", "low": -bound, "high": bound}}
