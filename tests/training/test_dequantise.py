"""What training makes of discrete values: old spellings, the flow's bound, and what cannot be."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sde_diffusion.config.build import build_parts, plain_config, read_config
from sde_diffusion.data import DataSpec, training_batches
from sde_diffusion.errors import InputError
from sde_diffusion.likelihood import DEQUANTISATIONS, BinFlow, Points, continuous_bound
from sde_diffusion.losses import ImportanceTime, LikelihoodWeighting, dsm_loss
from sde_diffusion.oracle import GaussianMixture
from sde_diffusion.sde import SDE
from sde_diffusion.training import TRAINING_NOISES
from sde_diffusion.training.dequantise import flow_dequantised
from tests.conftest import assert_mean
from tests.likelihood.flows import rough_flow
from tests.training.tiny import DIGITS, POINTS, last_checkpoint, same_bits, trainer_for

FLOW: dict[str, Any] = {"name": "flow", "width": 4, "layers": 2}
SPEC = DataSpec("arrays", (2,), levels=4)


@pytest.mark.parametrize(("old", "name"), [(True, "uniform"), (False, "centre")])
def test_true_and_false_are_what_older_configs_say(tmp_path: Path, old: bool, name: str) -> None:
    (tmp_path / "old.yaml").write_text(f"training: {{dequantise: {str(old).lower()}}}")
    for config in (
        read_config(tmp_path / "old.yaml"),
        read_config(None, [f"training.dequantise={str(old).lower()}"]),
        read_config(None, (), {"training": {"dequantise": old}}),
    ):
        assert plain_config(config)["training"]["dequantise"] == {"name": name}
    changed = read_config(tmp_path / "old.yaml", ["training.dequantise.name=flow", "training.dequantise.width=8"])
    assert plain_config(changed)["training"]["dequantise"] == {"name": "flow", "width": 8, "layers": 4}


def test_every_training_noise_has_one_to_score_by() -> None:
    assert {noise.scored_by for noise in TRAINING_NOISES.values()} <= set(DEQUANTISATIONS)


def test_the_centres_are_trained_on_as_they_are(tmp_path: Path) -> None:
    trainer = trainer_for(tmp_path, DIGITS, dequantise="centre")
    batch = next(training_batches(trainer.train, batch=16, seed=0, dequantise=trainer.config.dequantise.uniform))
    levels = (batch.x + 1) * 17 / 2 - 0.5
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-5)


def test_the_loss_with_a_flow_is_the_bound(sde: SDE) -> None:
    """D/2 (L + cost) + (D/2) log(2πe σ²/a²) = E[log q] + the continuous bound of x; both by 20,000 draws."""
    draws, count, dims = torch.Generator().manual_seed(0), 20_000, 2
    spec = DataSpec("arrays", (dims,), levels=256)  # of many, so that log q is well above the noise of the draws
    flow = rough_flow(spec)
    centre = spec.to_model(torch.randint(256, (count, dims), generator=draws))
    oracle = GaussianMixture(sde, torch.ones(1), torch.zeros(1, 2), torch.full((1,), 0.7))
    x, cost = flow_dequantised(flow, sde, centre, generator=draws)
    time_sampler, weighting = ImportanceTime(stratified=False), LikelihoodWeighting()
    terms = dsm_loss(oracle.score, sde, x, weighting=weighting, time_sampler=time_sampler, generator=draws)
    t = torch.tensor(sde.t_min, dtype=torch.float64)
    reconstruction = dims * (0.5 * math.log(2 * math.pi * math.e) - float(sde.half_log_snr(t)))
    ours = dims / 2 * (terms.loss + cost).double() + reconstruction

    other, log_q = flow(centre, torch.rand(centre.shape, generator=draws))
    bound = continuous_bound(oracle.score, sde, Points(other), denoise=False, seed=1)
    assert_mean(ours - (log_q.double() - bound.log_prob), 0.0)


def test_a_flow_learns_the_shape_of_a_known_density(sde: SDE) -> None:
    """Data on one level and the right score of N(0.25, 0.05²) in each dimension: the bound falls by the misfit of u.

    By 0.18 nats a dimension at best, of which most is had in 150 steps.
    """
    sde = replace(sde, t_min=1e-3)
    oracle = GaussianMixture(sde, torch.ones(1), torch.full((1, 2), 0.25), torch.full((1,), 0.05))
    flow, draws = BinFlow(SPEC, width=8, layers=0), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(flow.parameters(), lr=0.03)
    centre = torch.full((256, 2), 0.25)

    def bound() -> Tensor:
        x, cost = flow_dequantised(flow, sde, centre, generator=draws)
        weighting = LikelihoodWeighting()
        return (
            dsm_loss(oracle.score, sde, x, weighting=weighting, time_sampler=ImportanceTime(), generator=draws).loss
            + cost
        ).mean()

    for _ in range(150):
        optimizer.zero_grad()
        bound().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    x, _ = flow(centre, torch.rand(centre.shape, generator=draws))
    assert abs(float(x.detach().mean()) - 0.25) < 0.03
    assert 0.03 < float(x.detach().std()) < 0.075


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_flow_is_trained_saved_and_taken_up(tmp_path: Path, accumulate: int) -> None:
    whole = trainer_for(tmp_path / "whole", DIGITS, dequantise=FLOW, accumulate=accumulate, steps=4, save_every=2)
    start = {name: value.clone() for name, value in whole.parts.state_dict().items()}
    whole.run()
    assert any(not torch.equal(value, start[name]) for name, value in whole.parts.state_dict().items())
    assert {name.split(".")[0] for name in last_checkpoint(tmp_path / "whole").group("parts")} == {"dequantisation"}
    first = trainer_for(tmp_path / "half", DIGITS, dequantise=FLOW, accumulate=accumulate, steps=4, save_every=2)
    checkpoint = whole.folder.checkpoints()[0]
    (tmp_path / "half" / "checkpoints").mkdir(parents=True)
    checkpoint.rename(tmp_path / "half" / "checkpoints" / checkpoint.name)
    first.restore(last_checkpoint(tmp_path / "half"))
    first.run()
    assert same_bits(last_checkpoint(tmp_path / "half"), last_checkpoint(tmp_path / "whole"))


def test_first_weights_depend_on_the_seed_alone() -> None:
    config, device = read_config(None, ["training.dequantise=flow"]), torch.device("cpu")
    one, two = (build_parts(config, SPEC, device)["dequantisation"].state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    other = build_parts(replace(config, seed=1), SPEC, device)["dequantisation"].state_dict()
    assert any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("raw", "loss", "message"),
    [
        (
            POINTS,
            {},
            r"`training.dequantise` must be uniform for two_moons: its values are continuous and have no bins",
        ),
        (DIGITS, {"weighting": "simple"}, r"`loss.weighting` likelihood and `loss.distance` l2 where"),
        (
            DIGITS,
            {"time_sampler": {"name": "loss_second_moment", "bins": 2}},
            r"`loss.time_sampler` must be one that does not learn",
        ),
        (DIGITS, {"distance": "huber"}, r"`loss.weighting` likelihood and `loss.distance` l2 where"),
    ],
)
def test_what_a_flow_cannot_be_trained_with(
    tmp_path: Path, raw: dict[str, Any], loss: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        trainer_for(tmp_path, raw | {"loss": loss}, dequantise="flow")


def test_a_flow_has_couplings() -> None:
    with pytest.raises(InputError, match="`layers` must be > 0, got 0"):
        read_config(None, ["training.dequantise={name: flow, layers: 0}"])
