"""How a model is run on a device: what `auto` stands for, and that results stay what they are."""

import copy
import inspect
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sde_diffusion.config.build import Config, build_trainer, read_config, resolve_precision_of
from sde_diffusion.errors import InputError
from sde_diffusion.networks import NETWORKS, UNet
from sde_diffusion.runtime.memory import Growth
from sde_diffusion.runtime.performance import (
    Compiled,
    Perf,
    PerfConfig,
    Precision,
    keep_freed_memory,
    like,
    precision_advice,
    prepare,
    resolve_precision,
)
from sde_diffusion.training import RunFolder, load_checkpoint
from tests.conformance.test_networks import awake, batch, build

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def net(**options: object) -> UNet:
    """A small U-Net whose output depends on all its weights."""
    torch.manual_seed(0)
    made = UNet((3, 8, 8), channels=8, multipliers=(1, 2), blocks=1, attention=(4,), **options)  # type: ignore[arg-type]
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return made.double()


def results(of: UNet, *, by_x: bool = True) -> list[Tensor]:
    """Output, and gradients by input and weights."""
    draws = torch.Generator().manual_seed(1)
    x = torch.randn(2, 3, 8, 8, generator=draws, dtype=torch.float64).requires_grad_(by_x)
    out = of(x, torch.tensor([0.3, -1.0], dtype=torch.float64))
    weight = torch.randn(out.shape, generator=draws, dtype=torch.float64)
    return [out, *torch.autograd.grad((out * weight).sum(), [x, *of.parameters()] if by_x else list(of.parameters()))]


def broken(graph: object, inputs: object) -> None:
    raise RuntimeError("no working C++ compiler\nand more")


PERFS = [
    Perf(channels_last=True),
    Perf(compile=True),
    Perf(channels_last=True, compile=True, checkpointing=True),
]


@pytest.mark.parametrize("perf", PERFS, ids=str)
@pytest.mark.parametrize("by_x", [True, False], ids=["by x", "by weights"])
def test_a_prepared_network_computes_the_same(perf: Perf, by_x: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sde_diffusion.runtime.performance.BACKEND", "eager")  # what is compiled, without the compiler
    torch.compiler.reset()
    plain = net()
    prepared = copy.deepcopy(plain)
    prepare(prepared, perf)
    assert prepared.state_dict().keys() == plain.state_dict().keys()
    for found, expected in zip(results(prepared, by_x=by_x), results(plain, by_x=by_x), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_is_the_same_channels_last(name: str) -> None:
    plain = awake(build(name)).double()
    prepared = copy.deepcopy(plain)
    prepare(prepared, Perf(channels_last=True))
    x, c_noise, _ = batch()
    torch.testing.assert_close(
        prepared(x.double(), c_noise.double()),
        plain(x.double(), c_noise.double()),
        rtol=1e-9,
        atol=1e-9,
    )


def test_a_compiler_that_fails_is_told_of_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("sde_diffusion.runtime.performance.BACKEND", broken)
    torch.compiler.reset()
    plain = net()
    prepared = copy.deepcopy(plain)
    prepare(prepared, Perf(compile=True))
    for _ in range(2):
        for found, expected in zip(results(prepared, by_x=False), results(plain, by_x=False), strict=True):
            assert torch.equal(found, expected)
    told = [record.message for record in caplog.records if "could not be compiled and runs as it is" in record.message]
    assert len(told) == 1
    assert "no working C++ compiler" in told[0]


def test_an_error_of_a_compiled_network_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sde_diffusion.runtime.performance.BACKEND", "eager")
    torch.compiler.reset()
    prepared = net()
    prepare(prepared, Perf(compile=True))
    with pytest.raises(InputError, match="the network has no classes"):
        prepared(torch.zeros(2, 3, 8, 8).double(), torch.zeros(2).double(), torch.zeros(2, dtype=torch.int64))


def test_a_compiled_model_is_trained_and_its_average_is_not_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It resumes bit for bit, its weights keep their names, and the average is a plain copy."""
    graphs = []

    def counting(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        graphs.append(len(inputs))
        return graph.forward

    monkeypatch.setattr("sde_diffusion.runtime.performance.BACKEND", counting)
    torch.compiler.reset()
    small = "model.network={name: unet, channels: 8, multipliers: [1], blocks: 1, attention: []}"
    more = ["training.batch=4", "training.sample_every=0", "training.validate_every=0", "perf.compile=always"]

    def trained(folder: str, *steps: int) -> dict[str, Tensor]:
        for count in steps:
            run = RunFolder(tmp_path / folder)
            trainer = build_trainer(
                read_config(None, [small, *more, f"training.steps={count}", "training.decay=constant"]), run, CPU
            )
            if (newest := run.latest()) is not None:
                trainer.restore(load_checkpoint(newest))
            trainer.run()
        assert isinstance(trainer.model.net._compiled_call_impl, Compiled)
        assert not trainer.model.net._compiled_call_impl.failed
        assert trainer.ema.model.net._compiled_call_impl is None
        return trainer.state().tensors

    whole, resumed = trained("whole", 3), trained("resumed", 2, 3)
    assert graphs
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_auto_is_a_matter_of_device_purpose_and_size() -> None:
    auto = PerfConfig()
    assert auto.resolve(CUDA, steps=5000) == Perf(channels_last=True, compile=True, cuda_graphs=True)
    assert auto.resolve(CUDA, steps=10) == auto.resolve(CUDA, side=32) == Perf(channels_last=True, cuda_graphs=True)
    assert auto.resolve(CPU, steps=5000) == auto.resolve(CPU, side=8) == Perf(keep_memory=True)
    assert auto.resolve(CPU, side=28) == Perf(channels_last=True, keep_memory=True)
    never = PerfConfig(memory_format="contiguous", compile="never", cuda_graphs="never", keep_memory="never")
    assert never.resolve(CUDA, steps=5000) == never.resolve(CPU, side=28) == Perf()
    always = PerfConfig(memory_format="channels_last", compile="always")
    assert always.resolve(CPU) == Perf(channels_last=True, compile=True, keep_memory=True)


@pytest.mark.parametrize(
    ("instructions", "expected"), [("", "float32"), ("AMX", "bfloat16"), ("AVX512-BF16", "bfloat16")]
)
def test_precision_auto_is_bfloat16_where_the_cpu_has_instructions_for_it(
    monkeypatch: pytest.MonkeyPatch, instructions: str, expected: str
) -> None:
    monkeypatch.setattr("sde_diffusion.runtime.performance.bfloat16_instructions", lambda: instructions)
    assert resolve_precision("auto", CPU) == expected
    assert resolve_precision("bfloat16", CPU) == "bfloat16"
    assert resolve_precision("float32", CPU) == "float32"
    assert resolve_precision_of(Config(), CPU).training.precision == expected


@pytest.mark.parametrize("begun_in", ["float32", "bfloat16"])
def test_a_run_keeps_the_precision_that_it_began_in(monkeypatch: pytest.MonkeyPatch, begun_in: Precision) -> None:
    for instructions in ("", "AMX"):
        monkeypatch.setattr("sde_diffusion.runtime.performance.bfloat16_instructions", lambda found=instructions: found)
        assert resolve_precision_of(Config(), CPU, begun_in).training.precision == begun_in
        for asked in ("float32", "bfloat16"):
            config = read_config(None, [f"training.precision={asked}"])
            assert resolve_precision_of(config, CPU, begun_in).training.precision == asked


def test_advice_on_precision_names_the_factor_and_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sde_diffusion.runtime.performance.bfloat16_slowdown", lambda: 8.04)
    monkeypatch.setattr("sde_diffusion.runtime.performance.bfloat16_instructions", lambda: "")
    for asked in ("auto", "bfloat16"):
        told = precision_advice("bfloat16", CPU, asked=asked)
        assert told is not None
        assert "8.0 times as long" in told
        assert "training.precision=float32" in told
    assert precision_advice("float32", CPU, asked="auto") is None
    assert precision_advice("auto", CPU, asked="auto") is None
    assert precision_advice("bfloat16", CUDA, asked="auto") is None
    monkeypatch.setattr("sde_diffusion.runtime.performance.bfloat16_instructions", lambda: "AMX")
    assert precision_advice("bfloat16", CPU, asked="auto") is None
    assert precision_advice("float32", CPU, asked="auto") is None  # it would be slower all the same
    monkeypatch.setattr("sde_diffusion.runtime.performance.bfloat16_slowdown", lambda: 0.5)
    assert precision_advice("float32", CPU, asked="float32") is None
    told = precision_advice("float32", CPU, asked="auto")
    assert told is not None
    assert "(AMX)" in told
    assert "training.precision=bfloat16" in told


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "float32"), ((8, 0), "bfloat16"), ((9, 0), "bfloat16")])
def test_precision_auto_is_bfloat16_where_cuda_computes_in_it(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert resolve_precision("auto", CUDA) == expected


@pytest.mark.parametrize("setting", ["memory_format=fast", "compile=yes"])
def test_an_unknown_choice_is_refused(setting: str) -> None:
    with pytest.raises(InputError, match=rf"`perf\.{setting.partition('=')[0]}` must be one of"):
        read_config(None, [f"perf.{setting}"])


def test_moments_take_the_memory_format_of_their_weights() -> None:
    weight = torch.randn(4, 3, 3, 3).contiguous(memory_format=torch.channels_last)
    stored = torch.randn(4, 3, 3, 3)
    moment = like(stored, weight)
    assert moment.stride() == weight.stride()
    assert torch.equal(moment, stored)
    assert like(torch.tensor(3.0), weight).shape == ()


@pytest.mark.parametrize("name", NETWORKS)
def test_checkpointing_changes_no_bit_of_a_gradient(name: str) -> None:
    options = {"dropout": 0.4} if "dropout" in inspect.signature(NETWORKS[name]).parameters else {}
    plain = awake(build(name, **options)).train()
    recomputing = copy.deepcopy(plain)
    prepare(recomputing, Perf(checkpointing=True))
    found = []
    for net in (plain, copy.deepcopy(recomputing)):  # averages are copies
        x, c_noise, _ = batch()
        x.requires_grad_()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            out = net(x, c_noise)
            found.append([out, *torch.autograd.grad(out.square().sum(), [x, *net.parameters()])])
            out = net(x, c_noise)
        assert (out - found[-1][0]).abs().max() > 0 or not options, "dropout is on"
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_checkpointing_saves_memory_in_training_alone() -> None:
    plain = UNet((3, 16, 16), channels=8, multipliers=(1, 2), blocks=2, attention=())
    recomputing = copy.deepcopy(plain)
    prepare(recomputing, Perf(checkpointing=True))

    def step(of: UNet) -> Growth:
        def work(count: int) -> None:
            loss = of(torch.zeros(count, 3, 16, 16), torch.zeros(count)).square().sum()
            torch.autograd.grad(loss, list(of.parameters()))

        return Growth.measured(CPU, work, most=8)

    assert step(recomputing).each < 0.6 * step(plain).each
    assert step(recomputing.eval()).each == step(plain.eval()).each


KEEPING = """
import resource, sys, torch
from sde_diffusion.runtime.performance import Perf, prepare

def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(1 << 22)  # 16 MiB, freed at once
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

given_back = pages()
prepare(torch.nn.Identity(), Perf(keep_memory=True))
torch.ones(1 << 22)
print(given_back, pages())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator is another")
def test_memory_that_is_kept_is_not_asked_for_again() -> None:
    """In a process of its own, for which it holds: 4096 pages of 4 KiB, or 8 of 2 MiB, each of twenty times before."""
    done = subprocess.run([sys.executable, "-c", KEEPING], capture_output=True, text=True, check=True)
    given_back, kept = map(int, done.stdout.split())
    assert given_back >= 20 * 8
    assert kept < given_back / 10


def test_an_allocator_without_the_option_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setattr("ctypes.CDLL", lambda _: pytest.fail("not there"))
    keep_freed_memory.__wrapped__()
