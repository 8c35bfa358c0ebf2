"""The losses against published implementations (golden file 05).

The file averages over t ~ U(t_min, 1) without dividing by its density 1/(1 − t_min), so its loss is λ/σ² times the
error with no density; `reduce_mean` false means half the sum in place of the mean over coordinates.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from sde_diffusion.losses import WEIGHTINGS, denoising_error
from sde_diffusion.score import ScoreFn
from sde_diffusion.tensors import expand
from tests.chains import Chain, ddpm_chain, smld_chain
from tests.conftest import f64, golden, golden_sde

CASES = golden("05_losses")


FLAGS = ("continuous", "reduce_mean", "likelihood_weighting", "eps")


def name(case: dict[str, Any], run: dict[str, Any]) -> str:
    return "-".join([case["id"], run["loss_kind"], *(f"{flag}={run[flag]}" for flag in FLAGS if flag in run)])


RUNS = [pytest.param(case, run, id=name(case, run)) for case in CASES for run in case["outputs"]["losses"]]


def chain_of(params: dict[str, Any]) -> Chain:
    if params["sde"] == "ve":
        return smld_chain(params["sigma_min"], params["sigma_max"], params["N"])
    return ddpm_chain(params["beta_min"], params["beta_max"], params["N"])


def levels(chain: Chain, indices: Tensor) -> Tensor:
    """Times of the chain's 0-based indices."""
    return torch.stack([chain.level(int(i) + 1) for i in indices])


def affine(case: dict[str, Any], label: Tensor, std: Tensor | None) -> ScoreFn:
    """The score of the file's network m(x) = a x + b label + c, which predicts the score, or ε where `std` is given."""
    inputs = case["inputs"]

    def score(x: Tensor, t: Tensor) -> Tensor:
        out = inputs["model_a"] * x + expand(inputs["model_b"] * label, x) + inputs["model_c"]
        return out if std is None else -out / expand(std, x)

    return score


def continuous_score(case: dict[str, Any], run: dict[str, Any]) -> ScoreFn:
    params, t = case["params"], f64(run["t"])
    sde, n = golden_sde(params, t_min=run["eps"]), params["N"]
    if params["sde"] == "ve":
        return affine(case, sde.std(t) if run["continuous"] else ((1 - t) * (n - 1)).round(), None)
    if run["continuous"]:
        return affine(case, 999 * t, sde.std(t))
    label = (n - 1) * t
    chain = chain_of(params)
    return affine(case, label, chain.std(levels(chain, label.floor())))


def per_sample(case: dict[str, Any], run: dict[str, Any]) -> Tensor:
    x0, z = f64(case["inputs"]["x0"]), f64(case["inputs"]["z"])
    if run["loss_kind"] == "sde":
        sde, t = golden_sde(case["params"], t_min=run["eps"]), f64(run["t"])
        weighting = WEIGHTINGS["likelihood" if run["likelihood_weighting"] else "simple"]()
        return weighting.of_eps(sde, t) * denoising_error(continuous_score(case, run), sde, x0, t, z)
    chain, label = chain_of(case["params"]), torch.tensor(case["inputs"]["integer_labels"])
    # NCSN's labels count from the largest σ, and its network is the score
    t = levels(chain, case["params"]["N"] - 1 - label if run["loss_kind"] == "smld" else label)
    std = None if run["loss_kind"] == "smld" else chain.std(t)
    return denoising_error(affine(case, label.double(), std), chain, x0, t, z)


@pytest.mark.parametrize(("case", "run"), RUNS)
def test_loss(case: dict[str, Any], run: dict[str, Any]) -> None:
    values = per_sample(case, run)
    if not run["reduce_mean"]:
        values = values * len(case["inputs"]["x0"][0]) / 2
    torch.testing.assert_close(values, f64(run["per_sample"]), rtol=1e-9, atol=0)
    torch.testing.assert_close(values.mean(), f64(run["loss"]), rtol=1e-9, atol=0)
