"""Several ranks train what one trains: the same numbers, files and messages, however the work is shared."""

from pathlib import Path
from typing import Any

import pytest
import torch

from sde_diffusion.config.build import build_trainer, read_config
from sde_diffusion.config.parse import Raw, merge
from sde_diffusion.runtime.ranks import joined
from sde_diffusion.training import RunFolder
from tests.ranks import on_ranks
from tests.training.tiny import DIGITS, POINTS, last_checkpoint, one_thread, same_bits, timeless_metrics, trainer_for

CPU = torch.device("cpu")
SHORT = {"training": {"steps": 6, "log_every": 2, "validate_every": 3, "save_every": 3, "validation_examples": 21}}
LABELLED = {
    "model": {"conditional": True},
    "training": {"label_dropout": 0.4, "flip": True, "dequantise": "flow"},
    "loss": {"weighting": "likelihood", "time_sampler": "importance"},
}
LEARNED = {"loss": {"weighting": "uncertainty", "time_sampler": {"name": "loss_second_moment", "bins": 4}}}
RUNS: dict[str, Raw] = {
    "learned weighting, times by their losses": merge(merge(POINTS, SHORT), LEARNED),
    "labels, flips, dropout, a flow": merge(merge(DIGITS, SHORT), LABELLED),
}


def train(path: Path, raw: Raw, **training: Any) -> None:
    """One rank's part of a run, from its newest checkpoint."""
    with joined(CPU, timeout=30) as ranks:
        config = read_config(None, (), merge(raw, {"training": training}))
        trainer = build_trainer(config, RunFolder(path), CPU, ranks)
        if RunFolder(path).latest() is not None:
            trainer.restore(last_checkpoint(path))
        trainer.run()


@pytest.mark.parametrize("name", RUNS)
def test_two_ranks_are_one_process_that_cuts_the_batch_in_two(tmp_path: Path, name: str) -> None:
    """Bit for bit: halves and doubles of what is summed are exact. Only validation has other batches."""
    with one_thread():
        trainer_for(tmp_path / "one", RUNS[name], accumulate=2).run()
    on_ranks(2, train, tmp_path / "two", RUNS[name])
    one, two = last_checkpoint(tmp_path / "one"), last_checkpoint(tmp_path / "two")
    assert same_bits(one, two)
    for alone, shared in zip(timeless_metrics(tmp_path / "one"), timeless_metrics(tmp_path / "two"), strict=True):
        near = {key: close(alone.pop(key), shared.pop(key)) for key in list(alone) if key.startswith("validation")}
        assert shared == alone
        assert all(near.values())


def close(a: Any, b: Any) -> bool:
    """Whether two numbers, or lists of them that lack the same, agree to the rounding of float32 sums."""
    pairs = zip(a, b, strict=True) if isinstance(a, list) else [(a, b)]
    return all(x == y or abs(x - y) <= 1e-4 * abs(x) for x, y in pairs)


@pytest.mark.parametrize(
    ("name", "parallel"), [*((name, "fsdp") for name in RUNS), ("labels, flips, dropout, a flow", "ddp")]
)
def test_shares_of_a_model_and_pieces_of_a_share_change_rounding_alone(
    tmp_path: Path, name: str, parallel: str
) -> None:
    """Two ranks of two pieces are one process of four: of gradients that are summed in another order."""
    raw = merge(RUNS[name], {"training": {"steps": 3, "validate_every": 0}})
    with one_thread():
        trainer_for(tmp_path / "one", raw, accumulate=4).run()
    on_ranks(2, train, tmp_path / "two", merge(raw, {"training": {"parallel": parallel, "accumulate": 2}}))
    one, two = last_checkpoint(tmp_path / "one"), last_checkpoint(tmp_path / "two")
    assert one.tensors.keys() == two.tensors.keys()
    for key, value in one.tensors.items():
        torch.testing.assert_close(two.tensors[key], value, rtol=1e-4, atol=1e-6, msg=lambda m, key=key: f"{key}: {m}")


def take_up(path: Path, raw: Raw) -> tuple[bool, int]:
    """Whether what a rank has taken up is the checkpoint in `path`, and how many weights it keeps."""
    with joined(CPU, timeout=30) as ranks:
        trainer = build_trainer(read_config(None, (), raw), RunFolder(path), CPU, ranks)
        stored = last_checkpoint(path)
        trainer.restore(stored)
        found = trainer.state()
        assert all(hasattr(weight, "to_local") for weight in trainer.step_loss.parameters())
        kept = sum(weight.to_local().numel() for weight in trainer.model.parameters())
        return not ranks.main or same_bits(found, stored), kept


def test_a_checkpoint_is_taken_up_in_any_number_of_shares_and_written_as_it_was(tmp_path: Path) -> None:
    """In three, of which the last of many weights are empty."""
    raw = merge(
        RUNS["learned weighting, times by their losses"], {"training": {"steps": 3, "batch": 15, "parallel": "fsdp"}}
    )
    with one_thread():
        whole = trainer_for(tmp_path, raw, validate_every=0)
        whole.run()
    same, kept = zip(*on_ranks(3, take_up, tmp_path, raw), strict=True)
    assert all(same)
    assert sum(kept) == sum(weight.numel() for weight in whole.model.parameters())
    assert kept[0] > kept[2] > 0
