"""The weighted loss: what it is made of, its distances and shapes."""

import pytest
import torch
from torch import Tensor

from sde_diffusion.errors import InputError
from sde_diffusion.losses import (
    DISTANCES,
    ImportanceTime,
    LikelihoodWeighting,
    SimpleWeighting,
    UniformTime,
    denoising_error,
    dsm_loss,
)
from sde_diffusion.rng import generator
from sde_diffusion.sde import SDE, VPSDE
from tests.conftest import f64


def wrong(x: Tensor, t: Tensor) -> Tensor:
    return -0.5 * x


def data(count: int = 6, shape: tuple[int, ...] = (2, 3)) -> Tensor:
    return torch.randn(count, *shape, generator=generator(0))


@pytest.mark.parametrize("weighting", [SimpleWeighting(), LikelihoodWeighting()])
def test_loss_is_the_weighted_error_at_drawn_times(sde: SDE, weighting: SimpleWeighting | LikelihoodWeighting) -> None:
    """λ/(σ² r) · error, with t and then ε from the one generator."""
    sampler, x0 = ImportanceTime(), data()
    result = dsm_loss(wrong, sde, x0, weighting=weighting, time_sampler=sampler, generator=generator(1))
    rng = generator(1)
    t, density = sampler(sde, weighting, len(x0), generator=rng)
    eps = torch.randn(x0.shape, generator=rng)
    error = denoising_error(wrong, sde, x0, t, eps)
    assert torch.equal(result.t, t)
    torch.testing.assert_close(result.error, error)
    assert torch.equal(result.density, density)
    torch.testing.assert_close(result.loss, weighting.of_eps(sde, t) / density * error)
    assert result.loss.dtype == torch.float32


@pytest.mark.parametrize(
    ("distance", "expected"), [("l2", (0.25 + 4) / 2), ("l1", (0.5 + 2) / 2), ("huber", (0.125 + 1.5) / 2)]
)
def test_distances(sde: SDE, distance: str, expected: float) -> None:
    """With a score of zero the error is ε itself."""
    eps, x0, t = f64([[0.5, -2.0]]), f64([[1.0, 1.0]]), f64([0.3])
    error = denoising_error(lambda x, t: torch.zeros_like(x), sde, x0, t, eps, distance=distance)
    torch.testing.assert_close(error, f64([expected]), rtol=1e-10, atol=0)


def test_every_distance_is_tested_and_an_unknown_one_is_refused() -> None:
    assert set(DISTANCES) == {"l2", "l1", "huber"}
    with pytest.raises(InputError, match=r"unknown distance 'hubert'; did you mean 'huber'\? known: l2, l1, huber"):
        denoising_error(wrong, VPSDE(), data(), torch.full((6,), 0.5), data(), distance="hubert")


def test_the_score_of_a_point_has_no_error(sde: SDE) -> None:
    """∇ log p(x_t | x_0) = −ε/σ, at every t and in float32 down to t_min."""
    x0, eps = data(), torch.randn(6, 2, 3, generator=generator(2))
    t = torch.tensor([sde.t_min, 1e-4, 1e-2, 0.3, 0.7, 1.0])
    error = denoising_error(lambda x, t: -eps / sde.std(t)[:, None, None], sde, x0, t, eps)
    assert error.max() < (4 * 2**-23) ** 2 * eps.abs().max() ** 2


def test_the_network_is_asked_once_at_the_noisy_state(sde: SDE) -> None:
    calls = []

    def score(x: Tensor, t: Tensor) -> Tensor:
        calls.append((x, t))
        return wrong(x, t)

    x0, eps, t = data(), torch.randn(6, 2, 3, generator=generator(2)), torch.linspace(0.1, 1, 6)
    denoising_error(score, sde, x0, t, eps)
    [(x, asked)] = calls
    torch.testing.assert_close(x, sde.perturb(x0, t, eps))
    assert torch.equal(asked, t)


@pytest.mark.parametrize("shape", [(2,), (1, 4, 3), (2, 2, 2, 2)])
def test_any_event_shape(sde: SDE, shape: tuple[int, ...]) -> None:
    result = dsm_loss(
        wrong,
        sde,
        data(5, shape),
        weighting=SimpleWeighting(),
        time_sampler=UniformTime(),
        generator=generator(1),
    )
    assert result.loss.shape == result.error.shape == result.t.shape == (5,)


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    dsm_loss(wrong, VPSDE(), data(), weighting=SimpleWeighting(), time_sampler=UniformTime(), generator=generator(1))
    assert torch.equal(torch.get_rng_state(), before)
