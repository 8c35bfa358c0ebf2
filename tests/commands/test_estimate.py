"""`train --dry-run`: FLOPs by hand, memory beside what a real step takes, and nothing tried that would not fit."""

import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from sde_diffusion.commands import estimate
from sde_diffusion.commands.estimate import count_flops, needed, trial, without_numbers
from sde_diffusion.config.build import Config, build_model, count_parameters, read_config
from sde_diffusion.data import DataSpec
from sde_diffusion.networks import NETWORKS
from sde_diffusion.runtime.memory import Growth, peak_memory
from sde_diffusion.runtime.performance import PerfConfig
from tests.commands.running import TINY, Outcome, invoke, succeed
from tests.conformance.test_networks import SMALL

CPU = torch.device("cpu")
SPEC = DataSpec("points", (3,), None)


def settings(*more: str) -> Config:
    return read_config(None, [*TINY[1::2], *more])


def asked(*more: object) -> Outcome:
    return succeed("train", *TINY, "--dry-run", *more)


class TwoLayers(nn.Module):
    """x (B, 3) -> (B, 3) through 5 features."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        out: Tensor = self.second(self.first(x))
        return out


def test_flops_are_those_of_the_products() -> None:
    """Forward 2·3·5 twice; back the same for the weights, and once more for what is between them."""
    with torch.device("meta"):
        flops = count_flops(TwoLayers(), SPEC)
    assert (flops.forward, flops.step) == (60, 60 + 60 + 30)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_can_do_without_numbers(name: str) -> None:
    spec = DataSpec("images", (2, 9, 6), None)
    options = {key: list(value) if isinstance(value, tuple) else value for key, value in SMALL[name].items()}
    config = settings(f"model.network={json.dumps({'name': name} | options)}")
    net = without_numbers(config, spec)
    assert count_parameters(net) == count_parameters(build_model(config, spec, CPU))
    assert all(tensor.is_meta for tensor in net.state_dict().values())
    plain = needed(config, net, spec, CPU)
    less = needed(replace(config, perf=PerfConfig(checkpointing=True)), net, spec, CPU)
    assert less.each < plain.each or name == "mlp"
    assert count_flops(without_numbers(config, spec), spec).forward > 0


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("checkpointing", ["false", "true"])
def test_memory_is_what_a_real_step_takes(checkpointing: str, precision: str) -> None:
    """But for the objective's own tensors: no more than 40 of the size of an image."""
    config = settings(f"training.precision={precision}", f"perf.checkpointing={checkpointing}")
    spec = config.data.load("train").spec
    expected = needed(config, without_numbers(config, spec), spec, CPU)
    with trial(config, CPU) as run:
        run.step(1)
        half, whole = (peak_memory(CPU, partial(run.step, count)) for count in (16, 32))
    assert (whole - half) / 16 == pytest.approx(expected.each, rel=0.01, abs=40 * 4 * spec.dims)


def test_a_dry_run_says_what_a_run_will_take() -> None:
    outcome = asked()
    assert "training" in yaml.safe_load(outcome.out)
    told = outcome.err
    net = build_model(settings(), settings().data.load("train").spec, CPU)
    assert f"parameters     {count_parameters(net):,}\n" in told
    assert re.search(r"FLOPs +[\d.]+ M an example forward, [\d.]+ M a step", told)
    assert re.search(r"memory +about [\d.]+ MiB for a batch of 16; [\d.,]+ GiB are free", told)
    assert re.search(r"weights [\d.]+ KiB, gradients .*, optimizer .*, 3 averages .*; [\d.]+ KiB for each e", told)
    plain, recomputing = re.findall(r"([\d,]+) (?:in one piece|with perf.checkpointing)", told)
    assert 1000 < int(plain.replace(",", "")) < int(recomputing.replace(",", ""))
    assert re.search(r"time +about [\d.]+ ms a step, [\d,.e+]+ examples/s\n", told)
    assert "for 1,000 steps, without validation and pictures" in told


def test_pieces_and_checkpointing_are_heeded() -> None:
    told = asked("--set", "training.accumulate=4", "--set", "perf.checkpointing=true").err
    assert "for a batch of 16 in pieces of 4; " in told
    assert "with perf.checkpointing" not in told
    whole, pieces = (needed_of(settings(f"training.accumulate={n}")) for n in (1, 4))
    assert whole == pieces


def needed_of(config: Config) -> Growth:
    spec = config.data.load("train").spec
    return needed(config, without_numbers(config, spec), spec, CPU)


def test_nothing_is_tried_that_does_not_fit_or_takes_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> Any:
        raise AssertionError("tried")

    monkeypatch.setattr(estimate, "trial", never)
    with monkeypatch.context() as patch:
        patch.setattr(estimate, "free_memory", lambda device: 10_000)
        told = asked().err
        assert "9.77 KiB are free" in told
        assert "largest batch  about 0 in one piece; 0 with perf.checkpointing" in told
        assert "not measured: not even a batch of one would fit" in told
    monkeypatch.setattr(estimate, "MOST_FLOPS", 1)
    assert re.search(r"time +not measured: a step of one example takes [\d.]+ M FLOPs", asked().err)


def test_long_steps_are_reckoned_from_short_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of n takes 1 + n/10 s here; the batch is not tried."""
    counts = []

    def timed(run: estimate.Trial, count: int) -> float:
        counts.append(count)
        return 1 + count / 10

    monkeypatch.setattr(estimate.Trial, "timed", timed)
    monkeypatch.setattr(estimate, "SECONDS", 20)
    config = settings()
    assert estimate.seconds_of_step(config, CPU, 16, most=1000) == pytest.approx(1 + 16 / 10)
    assert counts == [1, 4, 16]
    assert estimate.seconds_of_step(config, CPU, 16, most=2) == pytest.approx(1 + 16 / 10)
    assert estimate.seconds_of_step(config, CPU, 16, most=1) == pytest.approx(16 * 1.1)
    monkeypatch.setattr(estimate, "SECONDS", 0.1)  # a busy machine: what a step costs whatever the batch counts once
    counts.clear()
    assert estimate.seconds_of_step(config, CPU, 16, most=1000) == pytest.approx(1 + 16 / 10)
    assert counts == [1, 4]


def test_without_data_there_is_no_estimate(tmp_path: Path) -> None:
    for more in ((), ("--no-estimate",)):
        outcome = invoke("train", "--set", f"data={{name: mnist, root: {tmp_path}}}", "--dry-run", *more)
        assert outcome.code == 2, "the run could not begin"
        assert outcome.error.startswith("error: ")
        assert yaml.safe_load(outcome.out)["data"]["name"] == "mnist"


def test_it_can_be_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "without_numbers", None)
    outcome = asked("--no-estimate")
    assert outcome.err == ""
    assert "training" in yaml.safe_load(outcome.out)


def test_numbers_for_people() -> None:
    assert [estimate._si(n) for n in (12, 1234, 5.5e9, 1e13)] == ["12", "1.23 k", "5.5 G", "10 T"]
    assert [estimate._duration(s) for s in (0.0123, 4.56, 720, 11100)] == ["12.3 ms", "4.56 s", "12 min", "3 h 05 min"]
