"""What every prediction must satisfy: with the right F plugged in, the score is the right score, for every process.

For data N(m, s² I) all that a network could be asked for is known: V = α² s² + σ² is the variance of x_t and
ε̂ = σ (x − α m)/V, x̂0 = m + α s² (x − α m)/V.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sde_diffusion.errors import InputError
from sde_diffusion.model import NOISE_CONDITIONINGS, PREDICTIONS, ScoreModel
from sde_diffusion.networks import MLP
from sde_diffusion.rng import generator
from sde_diffusion.score import ahead
from sde_diffusion.sde import DDPM, SDE
from tests.conftest import f64

TIMES = f64([1e-3, 0.01, 0.1, 0.3, 0.7, 1.0])
SIGMA_DATA = 0.7
MEAN, STD = f64([0.5, -1.0, 2.0]), 0.6

Estimate = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def karras(a: Tensor, std: Tensor, x: Tensor, eps: Tensor, x0: Tensor) -> Tensor:
    """F of Karras et al. 2022, eq. 7 and table 1, in their variables: D(y; σ) = c_skip y + c_out F with y = x/a."""
    y, sigma = x / a, std / a
    total = sigma**2 + SIGMA_DATA**2
    return (x0 - SIGMA_DATA**2 / total * y) / (sigma * SIGMA_DATA / total.sqrt())


TARGETS: dict[str, Estimate] = {  # what F estimates, from a, std, x, ε̂, x̂0
    "eps": lambda a, std, x, eps, x0: eps,
    "x0": lambda a, std, x, eps, x0: x0,
    "v": lambda a, std, x, eps, x0: (a * eps - std * x0) / (a**2 + std**2).sqrt(),
    "edm": karras,
}


class Answer(nn.Module):
    """A network that knows the answer and remembers the question."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = answer
        self.x = self.c_noise = torch.empty(0)

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None) -> Tensor:
        self.x, self.c_noise = x, c_noise
        return self.answer


def gaussian(sde: SDE, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x_t, ε̂ and x̂0, (B, 3), for data N(m, s² I)."""
    generator = torch.Generator().manual_seed(0)
    a, std = sde.mean_coef(t)[:, None], sde.std(t)[:, None]
    variance = a**2 * STD**2 + std**2
    x = a * MEAN + variance.sqrt() * torch.randn(len(t), 3, generator=generator, dtype=t.dtype)
    return x, std * (x - a * MEAN) / variance, MEAN + a * STD**2 * (x - a * MEAN) / variance


@pytest.fixture(params=PREDICTIONS)
def prediction(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_every_prediction_has_a_closed_form_here() -> None:
    assert TARGETS.keys() == PREDICTIONS.keys()


def test_the_right_estimate_gives_the_right_score(sde: SDE, prediction: str) -> None:
    x, eps, x0 = gaussian(sde, TIMES)
    a, std = sde.mean_coef(TIMES)[:, None], sde.std(TIMES)[:, None]
    net = Answer(TARGETS[prediction](a, std, x, eps, x0))
    score = ScoreModel(net, sde, prediction=prediction, sigma_data=SIGMA_DATA)(x, TIMES)
    # x0 and edm at small σ are differences of numbers 1/σ as large as the result
    torch.testing.assert_close(-std * score, eps, rtol=1e-10, atol=1e-11)


def test_a_time_for_all_is_a_time_for_each(sde: SDE, prediction: str) -> None:
    t = f64(0.3)
    x, eps, _ = gaussian(sde, t.expand(4))
    model = ScoreModel(Answer(eps), sde, prediction=prediction)
    torch.testing.assert_close(model(x, t), model(x, t.expand(4)), rtol=1e-10, atol=1e-12)


def test_the_input_of_the_network_has_unit_variance(sde: SDE, prediction: str) -> None:
    """Data of standard deviation σ_d make x_t one of √(α²σ_d² + σ²)."""
    x = (sde.mean_coef(TIMES) ** 2 * SIGMA_DATA**2 + sde.std(TIMES) ** 2).sqrt()[:, None].expand(-1, 3)
    net = Answer(x)
    ScoreModel(net, sde, prediction=prediction, sigma_data=SIGMA_DATA)(x, TIMES)
    torch.testing.assert_close(net.x, torch.ones_like(x), rtol=1e-10, atol=0)


def test_a_zero_network_under_edm_is_the_score_of_a_gaussian(sde: SDE) -> None:
    x, _, _ = gaussian(sde, TIMES)
    score = ScoreModel(Answer(torch.zeros_like(x)), sde, prediction="edm", sigma_data=SIGMA_DATA)(x, TIMES)
    variance = sde.mean_coef(TIMES) ** 2 * SIGMA_DATA**2 + sde.std(TIMES) ** 2
    torch.testing.assert_close(score, -x / variance[:, None], rtol=1e-10, atol=0)


def test_float32_is_as_good_as_its_inputs(sde: SDE, prediction: str) -> None:
    """ε̂ in float32 is off by the coefficients' 4e-6, twice, and a few roundings, of each of its two terms."""
    t = torch.cat([f64([sde.t_min, 1e-4]), TIMES]).float()
    x, eps, _ = (part.float() for part in gaussian(sde, t.double()))
    exact_t, options = t.double(), {"prediction": prediction, "sigma_data": SIGMA_DATA}
    score = ScoreModel(Answer(eps), sde, **options)(x, t)
    exact = ScoreModel(Answer(eps.double()), sde, **options)(x.double(), exact_t)
    assert score.dtype == torch.float32
    a, std = sde.mean_coef(exact_t), sde.std(exact_t)
    c_skip, c_out = PREDICTIONS[prediction](a, std, SIGMA_DATA)
    terms = c_skip.abs()[:, None] * x.abs() + c_out.abs()[:, None] * eps.abs()
    assert ((score - exact).abs() * std[:, None] <= 1e-5 * terms).all()


@pytest.mark.parametrize("prediction", ["eps", "v", "edm"])
def test_but_for_x0_no_term_is_large(sde: SDE, prediction: str) -> None:
    """|c_skip x| and |c_out F| stay of order one for all t, so float32 is enough for these down to t_min."""
    t = torch.linspace(sde.t_min, 1, 101, dtype=torch.float64)
    a, std = sde.mean_coef(t), sde.std(t)
    c_skip, c_out = PREDICTIONS[prediction](a, std, SIGMA_DATA)
    size = (a**2 * SIGMA_DATA**2 + std**2).sqrt()
    assert (c_skip.abs() * size).max() < 1.5
    assert c_out.abs().max() <= 1


@pytest.mark.parametrize("conditioning", NOISE_CONDITIONINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_network_is_told_the_noise_level(sde: SDE, conditioning: str, dtype: torch.dtype) -> None:
    """One finite number a sample, strictly monotonous in t, in the dtype of x even where t is () in float64."""
    t = torch.linspace(sde.t_min, 1, 9, dtype=torch.float64)
    x = torch.ones(9, 2, dtype=dtype)
    net = Answer(x)
    if conditioning == "step" and sde.levels is None:
        with pytest.raises(InputError, match=r"`model\.conditioning` = step counts the levels of a chain"):
            ScoreModel(net, sde, conditioning=conditioning)
        return
    model = ScoreModel(net, sde, conditioning=conditioning)
    model(x, t)
    assert net.c_noise.shape == (9,)
    assert net.c_noise.dtype == dtype
    assert (net.c_noise.diff() > 0).all()
    told = {
        "log_snr": -0.25 * sde.half_log_snr(t),
        "time": 999 * t,
        "std": sde.std(t),
        "step": (sde.levels or 0) * t - 1,
    }
    expected = told[conditioning]
    torch.testing.assert_close(net.c_noise, expected.to(dtype))
    model(x, t[4])
    assert torch.equal(net.c_noise, expected[4].to(dtype).expand(9))


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("conditioning", NOISE_CONDITIONINGS)
def test_times_known_beforehand_give_the_same_scores(prediction: str, conditioning: str) -> None:
    sde, net = DDPM(steps=20), MLP((3,), width=8, classes=2)
    model = ScoreModel(net, sde, prediction=prediction, conditioning=conditioning).double()
    x = torch.randn(4, 3, generator=generator(1), dtype=torch.float64)
    times = torch.tensor([0.05, 0.3, 1.0], dtype=torch.float64)
    for score_fn in (model, model.bind(torch.tensor([0, 1, -1, 1])), model.bind(1)):
        for t, known in zip(times, ahead(score_fn, times, x), strict=True):
            torch.testing.assert_close(known(x), score_fn(x, t.expand(4)), rtol=1e-10, atol=1e-10)
