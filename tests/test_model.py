"""The score model: labels, names, precision."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from sde_diffusion.errors import InputError
from sde_diffusion.model import ScoreModel
from sde_diffusion.networks import MLP, UNet
from sde_diffusion.score import knows_variance, score_and_fraction
from sde_diffusion.sde import SDE, VESDE, VPSDE
from sde_diffusion.tensors import select


class Label(nn.Module):
    """A network whose answer is its label; −2 where it got None."""

    classes = 3

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None) -> Tensor:
        return torch.full_like(x, -2.0) if label is None else label.to(x)[:, None].expand_as(x)


def labels_seen(label: Tensor | int | None) -> list[float]:
    sde, x, t = VPSDE(), torch.zeros(4, 2, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)
    score = ScoreModel(Label(), sde).bind(label)(x, t)
    seen: list[float] = (-sde.std(t) * score)[:, 0].tolist()
    return seen


def test_bind_gives_every_sample_its_label() -> None:
    assert labels_seen(2) == pytest.approx([2, 2, 2, 2])
    assert labels_seen(torch.tensor([0, -1, 1, 2])) == pytest.approx([0, -1, 1, 2])
    assert labels_seen(None) == labels_seen(-1) == labels_seen(torch.tensor([-1] * 4)) == pytest.approx([-2] * 4)


@pytest.mark.parametrize(
    ("net", "label", "message"),
    [
        (Label(), 3, "`label` must be from 0 to 2, or −1 for none, got 3"),
        (Label(), torch.tensor([0, -2]), "`label` must be from 0 to 2, or −1 for none, got -2"),
        (MLP((2,), width=8), 0, r"`label` must be −1 \(none\): the network has no classes, got 0"),
    ],
)
def test_an_unknown_label_is_an_error(net: nn.Module, label: Tensor | int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ScoreModel(net, VPSDE()).bind(label)


def test_no_label_suits_a_network_without_classes() -> None:
    model = ScoreModel(MLP((2,), width=8), VPSDE())
    for label in (None, -1, torch.tensor([-1])):
        assert model.bind(label)(torch.ones(1, 2), torch.ones(1)).shape == (1, 2)


def test_unknown_names_and_a_bad_sigma_are_errors() -> None:
    net = MLP((2,), width=8)
    with pytest.raises(InputError, match="unknown prediction 'epsilon'; did you mean 'eps'"):
        ScoreModel(net, VPSDE(), prediction="epsilon")
    with pytest.raises(InputError, match="unknown noise conditioning 'logsnr'; did you mean 'log_snr'"):
        ScoreModel(net, VPSDE(), conditioning="logsnr")
    with pytest.raises(InputError, match=r"`sigma_data` must be > 0, got 0\.0"):
        ScoreModel(net, VPSDE(), sigma_data=0.0)


class TwoHeads(nn.Module):
    """A network that gives x, then twice what it got as label."""

    classes = 3

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None) -> Tensor:
        second = torch.zeros_like(x) if label is None else 2 * label.to(x)[:, None].expand_as(x)
        return torch.cat([x, second], 1)


def test_the_second_head_is_the_fraction_of_the_variance() -> None:
    """v = ½(F₂ + 1), from the same call as the score, bound or not and for chosen samples."""
    sde, x, t = VPSDE(), torch.arange(6.0).reshape(3, 2), torch.tensor([0.2, 0.5, 0.8])
    model = ScoreModel(TwoHeads(), sde, learned_variance=True, scale_input=False)
    score = -x / sde.std(t)[:, None]
    torch.testing.assert_close(model(x, t), score)
    bound = model.bind(torch.tensor([0, 1, 2]))
    rows = torch.tensor([2, 0])
    for score_fn, part, labels in ((model, [0, 1, 2], [0, 0, 0]), (bound, [0, 1, 2], [0, 1, 2])):
        found, v = score_and_fraction(score_fn, x, t)
        torch.testing.assert_close(found, score[part])
        torch.testing.assert_close(v, torch.tensor(labels)[:, None] + torch.full((3, 2), 0.5))
    found, v = score_and_fraction(select(bound, rows), x[rows], t[rows])
    torch.testing.assert_close(found, score[rows])
    assert v[:, 0].tolist() == [2.5, 0.5]
    assert knows_variance(model)
    assert knows_variance(bound)
    for score_fn in (ScoreModel(Label(), sde), ScoreModel(Label(), sde).bind(1), lambda x, t: x):
        assert not knows_variance(score_fn)


def test_a_variance_that_nobody_learned_is_an_error() -> None:
    x, t = torch.zeros(1, 2), torch.ones(1)
    with pytest.raises(
        InputError, match=r"needs a model of two heads, but this one has one; train one with model\.lear"
    ):
        score_and_fraction(ScoreModel(Label(), VPSDE()).bind(1), x, t)
    with pytest.raises(InputError, match="this score function gives the score alone"):
        score_and_fraction(lambda x, t: x, x, t)


def test_the_network_sees_x_at_unit_scale_or_as_it_is() -> None:
    class Seen(nn.Module):
        def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None) -> Tensor:
            return x

    sde, x, t = VPSDE(), torch.ones(2, 3), torch.tensor([0.1, 0.9])
    for scale_input, c_in in ((True, 1 / torch.hypot(0.5 * sde.mean_coef(t), sde.std(t))), (False, torch.ones(2))):
        score = ScoreModel(Seen(), sde, scale_input=scale_input)(x, t)
        torch.testing.assert_close(score, -(c_in / sde.std(t))[:, None].expand(2, 3))


@pytest.mark.parametrize("sde", [VPSDE(), VESDE()], ids=repr)
def test_autocast_does_not_reach_the_arithmetic_around_the_network(sde: SDE) -> None:
    """A new network is zero, whatever its precision, so under edm the score is float32's of a Gaussian."""
    torch.manual_seed(0)
    model = ScoreModel(UNet((1, 8, 8), channels=8), sde, prediction="edm")
    x, t = torch.randn(4, 1, 8, 8), torch.tensor([1e-5, 0.1, 0.5, 1.0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        score = model(x, t)
    variance = sde.mean_coef(t.double()) ** 2 * 0.25 + sde.std(t.double()) ** 2
    assert score.dtype == torch.float32
    torch.testing.assert_close(score.double(), -x.double() / variance.reshape(-1, 1, 1, 1), rtol=2e-5, atol=0)


def test_autocast_rounds_the_network_alone() -> None:
    """A bfloat16 network is off by a few of its roundings of 2⁻⁹, and never by rounded coefficients."""
    torch.manual_seed(0)
    net = MLP((3,), width=16)
    nn.init.normal_(net.output.weight, std=0.25)
    model = ScoreModel(net, VPSDE(), prediction="v")
    x, t = torch.randn(64, 3), torch.full((64,), 1e-3)
    exact = model(x, t)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model(x, t)
        one_time = model(x, t[0])  # a 0-dim coefficient would take the precision of the network's output
    assert rough.dtype == torch.float32
    assert 0 < (rough - exact).norm() < 0.02 * exact.norm()
    torch.testing.assert_close(one_time, rough, rtol=1e-5, atol=1e-5)


def test_double_runs_in_double() -> None:
    torch.manual_seed(0)
    model = ScoreModel(MLP((3,), width=16), VPSDE()).double()
    assert model(torch.ones(2, 3, dtype=torch.float64), torch.ones(2, dtype=torch.float64)).dtype == torch.float64


def test_a_copy_is_the_same_model() -> None:
    torch.manual_seed(0)
    net = MLP((3,), width=16)
    nn.init.normal_(net.output.weight)
    model = ScoreModel(net, VPSDE(), prediction="v", conditioning="time")
    x, t = torch.randn(2, 3), torch.rand(2)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x, t), model(x, t))
    assert all(key.startswith("net.") for key in model.state_dict())
