"""Times drawn by the second moment of the losses seen."""

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from sde_diffusion.errors import InputError
from sde_diffusion.losses import SecondMomentTime, SimpleWeighting
from sde_diffusion.rng import generator
from sde_diffusion.sde import SDE, VPSDE
from tests.conftest import f64


@dataclass(frozen=True, kw_only=True)
class Chain(VPSDE):
    """A process that stands for a chain of four levels."""

    t_min: float = 0.25

    @property
    def levels(self) -> int:
        return 4


def published(history: list[list[float]], uniform: float) -> list[float]:
    """The probabilities, in words: root mean squares, normalised, and mixed with the uniform ones."""
    moments = [math.sqrt(sum(loss**2 for loss in losses) / len(losses)) for losses in history]
    return [(1 - uniform) * moment / sum(moments) + uniform / len(history) for moment in moments]


def feed(sampler: SecondMomentTime, sde: SDE, state: Tensor, pairs: list[tuple[int, float]]) -> Tensor:
    """The state after one step with these levels, counted from 0, and losses."""
    count = len(state)
    t = f64([(level + 1) / count if sde.levels else sde.t_min + (level + 0.5) / count for level, _ in pairs])
    return sampler.updated(sde, state, t.float(), loss=torch.tensor([loss for _, loss in pairs]))


@pytest.mark.parametrize("sde", [Chain(), VPSDE(t_min=1e-3)], ids=["levels", "bins"])
def test_probabilities_are_the_published_ones_of_the_last_losses(sde: SDE) -> None:
    """Steps of random sizes, against a list of the last three losses of each of four levels."""
    sampler, random = SecondMomentTime(bins=4, history=3, uniform=0.01), generator(0)
    state, lists = sampler.initial_state(sde), [[] for _ in range(4)]  # type: ignore[var-annotated]
    for step in range(30):
        count = int(torch.randint(1, 20, (), generator=random))
        levels = torch.randint(4 if step > 4 else 3, (count,), generator=random).tolist()
        losses = torch.rand(count, generator=random).double().tolist()
        before = state.clone()
        new = feed(sampler, sde, state, list(zip(levels, losses, strict=True)))
        assert torch.equal(state, before), "a state is a value"
        state = new
        for level, loss in zip(levels, losses, strict=True):
            lists[level] = [*lists[level], loss][-3:]
        warm = min(map(len, lists)) == 3
        expected = published(lists, 0.01) if warm else [0.25] * 4
        torch.testing.assert_close(sampler.probabilities(state), f64(expected), rtol=1e-10, atol=0)
        assert warm == (step > 6) or 4 < step <= 6
    assert state[:, 0].sum() > 200


def test_levels_of_a_chain_are_drawn_as_often_as_that_and_told_so() -> None:
    sde, sampler = Chain(), SecondMomentTime(history=2, uniform=0.2)
    state = feed(sampler, sde, sampler.initial_state(sde), [(k, loss) for k in range(4) for loss in (k, k)])
    expected = f64([0.05, 0.05 + 0.8 / 6, 0.05 + 0.8 * 2 / 6, 0.05 + 0.8 * 3 / 6])
    u = (torch.arange(6000, dtype=torch.float64) + 0.5) / 6000
    t, density = sampler.at(state).draw(sde, SimpleWeighting(), u)
    assert torch.equal(t.unique(), f64([0.25, 0.5, 0.75, 1.0]))
    level = (4 * t).long() - 1
    torch.testing.assert_close(torch.bincount(level) / 6000, expected.float(), rtol=0, atol=1 / 6000)
    torch.testing.assert_close(density, 4 * expected[level], rtol=1e-10, atol=0)


def test_by_itself_it_draws_as_at_the_start() -> None:
    for sde in (Chain(), VPSDE()):
        sampler, u = SecondMomentTime(bins=5), torch.rand(64, generator=generator(1), dtype=torch.float64)
        for a, b in zip(
            sampler.draw(sde, SimpleWeighting(), u),
            sampler.at(sampler.initial_state(sde)).draw(sde, SimpleWeighting(), u),
            strict=True,
        ):
            assert torch.equal(a, b)
        assert sampler.at(None) is sampler


def test_losses_of_zero_teach_nothing() -> None:
    sde, sampler = Chain(), SecondMomentTime(history=1)
    state = feed(sampler, sde, sampler.initial_state(sde), [(k, 0.0) for k in range(4)])
    assert sampler.probabilities(state).tolist() == [0.25] * 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bins": 0}, "`bins` must be > 0, got 0"),
        ({"history": 0}, "`history` must be > 0, got 0"),
        ({"uniform": 0.0}, r"`uniform` must be in \(0, 1\], got 0.0"),
        ({"uniform": 1.5}, r"`uniform` must be in \(0, 1\], got 1.5"),
    ],
)
def test_options_that_cannot_work(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SecondMomentTime(**options)


def test_a_run_too_short_to_learn_is_refused() -> None:
    message = r"must see each of 100 levels 10 times before it learns, got 999 draws in all; give more training.steps"
    with pytest.raises(InputError, match=message):
        SecondMomentTime().check(VPSDE(), SimpleWeighting(), draws=999)
    with pytest.raises(InputError, match="each of 4 levels 10 times"):
        SecondMomentTime().check(Chain(), SimpleWeighting(), draws=39)
    SecondMomentTime().check(Chain(), SimpleWeighting(), draws=40)
