"""What is trained or learns beside the model: extra modules, and a time sampler's state."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sde_diffusion.config.parse import Raw, merge
from sde_diffusion.data import training_batches
from sde_diffusion.errors import InputError
from sde_diffusion.losses import TIME_SAMPLERS, WEIGHTINGS, DSMLoss, UniformTime
from sde_diffusion.sde import SDE
from sde_diffusion.training import Checkpoint, RunFolder, Trainer
from tests.training.tiny import POINTS, last_checkpoint, same_bits, timeless_metrics, trainer_for


@dataclass(frozen=True)
class Learning(UniformTime):
    """Uniform times below a limit that follows the losses."""

    limit: float = 1.0

    def initial_state(self, sde: SDE) -> Tensor:
        return torch.tensor([1.0, 0.0], dtype=torch.float64)

    def at(self, state: Tensor | None) -> "Learning":
        return self if state is None else replace(self, limit=float(state[0]))

    def draw(self, sde: SDE, weighting: Any, u: Tensor) -> tuple[Tensor, Tensor]:
        t, density = super().draw(sde, weighting, u)
        return sde.t_min + (t - sde.t_min) * self.limit, density / self.limit

    def updated(self, sde: SDE, state: Tensor, t: Tensor, *, loss: Tensor) -> Tensor:
        assert not loss.requires_grad
        return torch.stack([0.5 + 0.5 * torch.sigmoid(-(t * loss).mean().double()), state[1] + 1])


def learning_trainer(path: Path, *, accumulate: int = 1) -> Trainer:
    """A trainer with a part that scales the loss and a time sampler that learns."""
    plain = trainer_for(path, accumulate=accumulate)
    part = nn.Linear(1, 1)
    nn.init.constant_(part.weight, 0.3)
    nn.init.constant_(part.bias, 0.7)
    trainer = Trainer(
        plain.model,
        plain.train,
        plain.held_out.dataset,
        config=plain.config,
        loss=replace(plain.loss, time_sampler=Learning()),
        folder=RunFolder(path),
        seed=plain.seed,
        device=plain.device,
        meta=plain.meta,
        parts={"scale": part},
    )
    inner = trainer.step_loss.terms

    def terms(model: nn.Module, *rest: Any) -> DSMLoss:
        found = inner(model, *rest)  # type: ignore[arg-type]
        scaled = found.loss * trainer.parts["scale"](found.t[:, None])[:, 0] ** 2
        return found._replace(loss=scaled, trained=scaled)

    trainer.step_loss.terms = terms  # type: ignore[method-assign,assignment]
    return trainer


@pytest.mark.parametrize("accumulate", [1, 3])
def test_ten_steps_a_kill_and_ten_more_are_twenty(tmp_path: Path, accumulate: int) -> None:
    learning_trainer(tmp_path / "whole", accumulate=accumulate).run()
    whole = last_checkpoint(tmp_path / "whole")
    assert set(whole.group("parts")) == {"scale.weight", "scale.bias"}
    assert whole.tensors["parts.scale.weight"] != 0.3, "the part is trained"
    assert whole.tensors["time_sampler.state"][1] == 20, "one update a step, none by the two validations"

    first = RunFolder(tmp_path / "whole").checkpoints()[0]
    (tmp_path / "half" / "checkpoints").mkdir(parents=True)
    first.rename(tmp_path / "half" / "checkpoints" / first.name)
    (tmp_path / "half" / "metrics.jsonl").write_text((tmp_path / "whole" / "metrics.jsonl").read_text())
    again = learning_trainer(tmp_path / "half", accumulate=accumulate)
    again.restore(last_checkpoint(tmp_path / "half"))
    assert again.step == 10
    again.run()
    assert same_bits(last_checkpoint(tmp_path / "half"), whole)
    assert timeless_metrics(tmp_path / "half") == timeless_metrics(tmp_path / "whole")


def test_times_are_drawn_with_what_the_state_knows(tmp_path: Path) -> None:
    trainer = learning_trainer(tmp_path)
    trainer.time_state = torch.tensor([0.25, 0.0], dtype=torch.float64)
    terms, _ = trainer.train_step(next(training_batches(trainer.train, batch=16, seed=0)))
    assert terms.t.max() < 0.26
    torch.testing.assert_close(terms.density, torch.full((16,), 4 / (1 - 1e-5)))


def test_validation_draws_as_at_the_start_and_teaches_nothing(tmp_path: Path) -> None:
    trainer = learning_trainer(tmp_path)
    first = trainer.validate()
    trainer.time_state = torch.tensor([0.25, 7.0], dtype=torch.float64)
    assert trainer.validate() == first
    assert trainer.time_state.tolist() == [0.25, 7.0]


def test_a_checkpoint_without_the_parts_is_refused_where_they_are_needed(tmp_path: Path) -> None:
    plain, learning = trainer_for(tmp_path / "plain"), learning_trainer(tmp_path / "learning")
    with pytest.raises(InputError, match=r"must hold the parts .*\['scale.weight', 'scale.bias'\], got \[\]; resume"):
        learning.restore(plain.state())
    with pytest.raises(InputError, match=r"beside the model, \[\], got \['scale.bias', 'scale.weight'\]; resume"):
        plain.restore(Checkpoint(dict(sorted(learning.state().tensors.items())), {"step": 0}))


def test_a_learned_weighting_is_trained_and_its_loss_is_that_of_its_base(tmp_path: Path) -> None:
    """The first step has u = 0, so that two runs share it; then weights and objective go their own ways."""
    rows = {}
    for name, weighting in (("base", "simple"), ("learned", {"name": "uncertainty", "base": "simple"})):
        raw = merge(POINTS, {"loss": {"weighting": weighting, "time_sampler": "uniform"}})
        trainer = trainer_for(tmp_path / name, raw, log_every=1, learning_rate=0.1, warmup=0)
        first = trainer.validate()
        trainer.run()
        rows[name] = [row for row in timeless_metrics(tmp_path / name) if "loss" in row]
        assert trainer.validate() != first
        assert ("parts.weighting.weight.bias" in trainer.state().tensors) == (name == "learned")
    base, learned = rows["base"], rows["learned"]
    assert learned[0]["loss"] == base[0]["loss"]
    assert learned[0]["error_by_t"] == base[0]["error_by_t"]
    assert learned[5]["trained_loss"] != learned[5]["loss"]
    assert len(learned[5]["log_variance_by_t"]) == 10
    assert not any({"trained_loss", "log_variance_by_t"} & row.keys() for row in base)


@pytest.mark.parametrize(
    "loss",
    [
        *({"weighting": name, "time_sampler": "stratified"} for name in WEIGHTINGS),
        *({"weighting": "simple", "time_sampler": name} for name in TIME_SAMPLERS),
    ],
    ids=lambda loss: "-".join(loss.values()),
)
def test_every_weighting_and_time_sampler_trains(tmp_path: Path, loss: Raw) -> None:
    raw = merge(POINTS, {"loss": loss} | NEEDS.get(loss["time_sampler"], {}))
    trainer = trainer_for(tmp_path, raw, steps=60, batch=64, validate_every=0, learning_rate=1e-2, log_every=60)
    before = trainer.validate()["validation_loss"]
    trainer.run()
    assert trainer.validate()["validation_loss"] < before


NEEDS: Raw = {
    "loss_second_moment": {"loss": {"weighting": "simple", "time_sampler": {"name": "loss_second_moment", "bins": 20}}},
    "discrete": {"sde": {"name": "ddpm", "steps": 50}},
}


def test_nothing_is_added_to_a_checkpoint_of_a_run_without_them(tmp_path: Path) -> None:
    names = trainer_for(tmp_path).state().tensors
    assert not [name for name in names if name.startswith(("parts.", "time_sampler."))]
