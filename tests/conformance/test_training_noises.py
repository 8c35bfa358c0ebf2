"""Every row of `TRAINING_NOISES`: a step of training, and the noise that scores what it trained."""

from pathlib import Path

import pytest
import torch

from sde_diffusion.config.build import build_parts, read_config
from sde_diffusion.data import training_batches
from sde_diffusion.likelihood import DEQUANTISATIONS
from sde_diffusion.sde import VPSDE
from sde_diffusion.training import TRAINING_NOISES
from tests.training.tiny import DIGITS, trainer_for


@pytest.fixture(params=TRAINING_NOISES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_step_moves_the_model_and_what_is_beside_it(tmp_path: Path, name: str) -> None:
    trainer = trainer_for(tmp_path, DIGITS, dequantise=name, warmup=0)
    before = {key: value.clone() for key, value in trainer.step_loss.trained().items()}
    for batch, _ in zip(
        training_batches(trainer.train, batch=16, seed=0, dequantise=trainer.config.dequantise.uniform),
        range(3),  # what ends in zeros passes nothing on at first
        strict=False,
    ):
        terms, norm = trainer.train_step(batch)
        assert terms.loss.isfinite().all()
        assert norm > 0
    moved = {
        key.split(".")[0] for key, value in trainer.step_loss.trained().items() if not torch.equal(value, before[key])
    }
    assert moved == ({"net", "parts"} if trainer.parts else {"net"})


def test_the_noise_that_fits_stays_in_the_bins(name: str) -> None:
    config = read_config(None, [f"training.dequantise={name}"])
    values, _ = config.data.load("test").fetch(torch.arange(4))
    spec = config.data.load("test").spec
    parts = build_parts(config, spec, torch.device("cpu"))
    row = DEQUANTISATIONS[config.training.dequantise.scored_by]().bind(parts)
    x, log_q = row.draw(spec, VPSDE(), values, seed=0)
    off = (x[0] + 1) * spec.levels / 2 - values  # type: ignore[operator]
    assert off.min() > -1e-5
    assert off.max() < 1 + 1e-5
    assert log_q.isfinite().all()
