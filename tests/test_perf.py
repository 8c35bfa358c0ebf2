"""How a model is run on a device: what `auto` stands for, and that results stay what they are."""

import copy
import inspect

import pytest
import torch
from torch import Tensor

from sde_diffusion.build import Config, read_config, resolve_precision_of
from sde_diffusion.errors import InputError
from sde_diffusion.memory import Growth
from sde_diffusion.networks import NETWORKS, UNet
from sde_diffusion.perf import Perf, PerfConfig, like, prepare, resolve_precision
from tests.conformance.test_networks import awake, batch, build

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def net(**options: object) -> UNet:
    """A small U-Net whose output depends on all its weights."""
    torch.manual_seed(0)
    made = UNet((3, 8, 8), channels=8, multipliers=(1, 2), blocks=1, attention=(4,), **options)  # type: ignore[arg-type]
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return made.double()


def results(of: UNet) -> list[Tensor]:
    """Output, and gradients by input and weights."""
    draws = torch.Generator().manual_seed(1)
    x = torch.randn(2, 3, 8, 8, generator=draws, dtype=torch.float64).requires_grad_()
    out = of(x, torch.tensor([0.3, -1.0], dtype=torch.float64))
    weight = torch.randn(out.shape, generator=draws, dtype=torch.float64)
    return [out, *torch.autograd.grad((out * weight).sum(), [x, *of.parameters()])]


@pytest.mark.parametrize("perf", [Perf(channels_last=True)], ids=str)
def test_a_prepared_network_computes_the_same(perf: Perf) -> None:
    plain = net()
    prepared = copy.deepcopy(plain)
    prepare(prepared, perf)
    assert prepared.state_dict().keys() == plain.state_dict().keys()
    for found, expected in zip(results(prepared), results(plain), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_auto_is_a_matter_of_the_device() -> None:
    assert PerfConfig().resolve(CUDA).channels_last
    assert not PerfConfig(memory_format="contiguous").resolve(CUDA).channels_last
    assert PerfConfig(memory_format="channels_last", compile="always").resolve(CPU) == Perf(
        channels_last=True, compile=True
    )


def test_precision_auto_is_float32_on_the_cpu_and_recorded() -> None:
    assert resolve_precision("auto", CPU) == "float32"
    assert resolve_precision("bfloat16", CPU) == "bfloat16"
    assert resolve_precision_of(Config(), CPU).training.precision == "float32"


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
