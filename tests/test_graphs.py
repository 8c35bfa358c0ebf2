"""Recordings of a network: which calls make and use them. The recorder here runs the function again."""

import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sde_diffusion.errors import InputError
from sde_diffusion.likelihood.divergence import _prepare_forward_mode
from sde_diffusion.model import ScoreModel
from sde_diffusion.networks import MLP
from sde_diffusion.runtime.cuda_graphs import BEFORE, MOST, Graphed, _current, eager
from sde_diffusion.runtime.performance import PerfConfig
from sde_diffusion.sde import VPSDE

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


class Recorder:
    """Records as CUDA would: the output lies in one place, and a replay reads the inputs where they were."""

    def __init__(self, fails: bool = False) -> None:
        self.made, self.replays, self.fails = 0, 0, fails

    def __call__(self, run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        if self.fails:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore")
        self.made += 1
        out = run().clone()

        def replay() -> None:
            self.replays += 1
            out.copy_(run())

        return replay, out


def inputs(batch: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 2, generator=draws), torch.randn(batch, generator=draws)


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return MLP((2,), width=8, classes=3).eval()


def test_the_calls_after_the_first_ones_are_replays(network: nn.Module) -> None:
    recorder = Recorder()
    graphed = Graphed(network, capture=recorder)
    with torch.no_grad():
        for seed in range(6):
            given = inputs(seed=seed)
            assert torch.equal(graphed(*given), network(*given, None))
    assert (recorder.made, recorder.replays) == (1, 6 - BEFORE)


def test_every_shape_and_the_presence_of_labels_has_its_own(network: nn.Module) -> None:
    recorder, labels = Recorder(), torch.tensor([0, 2, -1])
    graphed = Graphed(network, capture=recorder)
    with torch.no_grad():
        for _ in range(BEFORE + 2):
            assert torch.equal(graphed(*inputs()), network(*inputs()))
            assert torch.equal(graphed(*inputs(), labels), network(*inputs(), labels))
            assert torch.equal(graphed(*inputs(), labels.flip(0)), network(*inputs(), labels.flip(0)))
            assert torch.equal(graphed(*inputs(5)), network(*inputs(5)))
    assert recorder.made == 3


def test_forward_mode_goes_through_the_network(network: nn.Module) -> None:
    recorder = Recorder()
    graphed = Graphed(network, capture=recorder)
    _prepare_forward_mode()
    x, c_noise = inputs()
    with torch.no_grad():
        for _ in range(BEFORE + 1):
            graphed(x, c_noise)
        replays = recorder.replays
        _, tangent = torch.func.jvp(lambda y: graphed(y, c_noise), (x,), (torch.ones_like(x),))
        _, expected = torch.func.jvp(lambda y: network(y, c_noise), (x,), (torch.ones_like(x),))
    assert torch.equal(tangent, expected)
    assert recorder.replays == replays


def test_a_recording_is_made_on_the_device_of_its_inputs() -> None:
    """`--device cuda:1` leaves cuda:0 the current device, whose streams another's kernels do not run on."""
    place = _current(torch.device("cuda", 1))
    assert isinstance(place, torch.cuda.device)
    assert place.idx == 1


def test_shapes_without_end_are_not_recorded(network: nn.Module) -> None:
    recorder = Recorder()
    graphed = Graphed(network, capture=recorder)
    with torch.no_grad():
        for batch in range(1, 2 * MOST):
            for _ in range(BEFORE + 1):
                graphed(*inputs(batch))
    assert recorder.made == MOST


def test_gradients_and_eager_parts_run_as_they_are(network: nn.Module) -> None:
    recorder = Recorder()
    graphed = Graphed(network, capture=recorder)
    for _ in range(BEFORE + 2):
        x, c_noise = inputs()
        assert graphed(x.requires_grad_(), c_noise).requires_grad
    with torch.no_grad(), eager():
        for _ in range(BEFORE + 2):
            graphed(*inputs())
    assert recorder.made == 0


def test_autocast_has_its_own(network: nn.Module) -> None:
    graphed = Graphed(network, capture=Recorder())
    with torch.no_grad():
        for _ in range(BEFORE + 2):
            assert graphed(*inputs()).dtype == torch.float32
            with torch.autocast("cpu", torch.bfloat16):
                assert graphed(*inputs()).dtype == network(*inputs()).dtype


def test_a_network_that_cannot_be_recorded_runs_and_says_so_once(
    network: nn.Module, caplog: pytest.LogCaptureFixture
) -> None:
    graphed = Graphed(network, capture=Recorder(fails=True))
    with torch.no_grad(), caplog.at_level(logging.WARNING):
        for batch in (3, 4):
            for _ in range(BEFORE + 2):
                assert torch.equal(graphed(*inputs(batch)), network(*inputs(batch)))
    (message,) = caplog.messages
    assert "cannot be recorded as a CUDA graph (CUDA error: operation not permitted when stream is" in message


def test_a_model_keeps_no_score_in_a_recording(network: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """A score that a solver keeps is not what a later call overwrites; names of weights do not change."""
    model = ScoreModel(network, VPSDE(), prediction="v")
    plain, names = ScoreModel(network, VPSDE(), prediction="v"), list(model.state_dict())
    model.record()
    assert list(model.state_dict()) == names
    recorder = Recorder()
    monkeypatch.setattr(model, "_recorded", Graphed(network, capture=recorder))
    x, t = inputs()[0], torch.full((3,), 0.5)
    times = torch.tensor([0.3, 0.6], dtype=torch.float64)
    with torch.no_grad():
        expected = [plain(seed * x, t) for seed in range(5)]
        found = [model(seed * x, t) for seed in range(5)]
        found += [score(x) for score in model.ahead(times, x)]
        expected += [score(x) for score in plain.ahead(times, x)]
    assert recorder.replays == 7 - BEFORE
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def test_graphs_are_for_cuda_alone() -> None:
    assert PerfConfig().resolve(CUDA).cuda_graphs
    assert not PerfConfig(cuda_graphs="never").resolve(CUDA).cuda_graphs
    assert not PerfConfig().resolve(CPU).cuda_graphs
    with pytest.raises(InputError, match=r"`perf.cuda_graphs` = always needs a CUDA device, got cpu; take auto"):
        PerfConfig(cuda_graphs="always").resolve(CPU)
    with pytest.raises(InputError, match=r"`cuda_graphs` must be one of auto, always, never, got 'often'"):
        PerfConfig(cuda_graphs="often")  # type: ignore[arg-type]
