"""The probability flow in every sample's own steps: sampling, likelihoods, observers and failures."""

import math
from typing import get_args, get_type_hints

import pytest
import torch
from torch import Tensor, nn

from sde_diffusion.errors import InputError
from sde_diffusion.likelihood import ExactTrace, Hutchinson, Likelihood, log_likelihood
from sde_diffusion.model import ScoreModel
from sde_diffusion.oracle import GaussianMixture
from sde_diffusion.rng import generator
from sde_diffusion.sde import SDE, VPSDE
from sde_diffusion.solvers import PerSampleODE, ReverseProcess, TorchdiffeqODE
from sde_diffusion.solvers.ode import WATCHED
from sde_diffusion.solvers.runge_kutta import Status
from sde_diffusion.solvers.tableaux import TABLEAUX
from tests.conftest import f64
from tests.solvers.reference import golden_file, golden_oracle

GOLDEN = golden_file("03_samplers_mixture")


def start(count: int = 5) -> Tensor:
    return torch.randn(count, 3, generator=generator(0), dtype=torch.float64)


def mixture(sde: SDE) -> GaussianMixture:
    return GaussianMixture(sde, f64([0.3, 0.7]), f64([[1.0, 0.0, -1.0], [-0.5, 0.4, 0.2]]), f64([0.1, 0.3]))


def steep(x: Tensor, t: Tensor) -> Tensor:
    """A nonlinear score whose every entry is a function of that entry and the time alone."""
    return -x - torch.tanh(4 * x) / (0.1 + t.reshape(-1, *(1,) * (x.ndim - 1)))


def score_log_likelihood(x: Tensor, ode: PerSampleODE, *, start: int = 0) -> Likelihood:
    return log_likelihood(steep, VPSDE(), x, divergence=Hutchinson(probes=2), ode=ode, seed=3, start=start)


def test_order_is_that_of_the_pair() -> None:
    assert {name: PerSampleODE(method=name).order for name in TABLEAUX} == {"dopri5": 5, "tsit5": 5, "dop853": 8}
    assert set(get_args(get_type_hints(PerSampleODE)["method"])) == set(TABLEAUX)


@pytest.mark.parametrize("method", TABLEAUX)
def test_golden_flow(method: str) -> None:
    case = next(case for case in GOLDEN["cases"] if case["id"].startswith("ode-") and case["params"]["sde"] == "vp")
    oracle = golden_oracle(GOLDEN["data_distribution"], VPSDE(t_min=case["params"]["eps"]))
    solver = PerSampleODE(method=method, rtol=1e-11, atol=1e-11)
    x = solver.solve(ReverseProcess(oracle.sde, oracle.score), f64(case["inputs"]["x_T"]), 1.0, oracle.sde.t_min)
    torch.testing.assert_close(x, f64(case["outputs"]["x_eps"]), rtol=0, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_likelihood_is_the_same_to_the_bit_in_any_company(dtype: torch.dtype) -> None:
    """Random directions follow their samples when others leave, or the divergence would be another's."""
    x = (2 * torch.randn(6, 2, 2, generator=generator(1), dtype=torch.float64)).to(dtype)
    whole = score_log_likelihood(x, PerSampleODE())
    still = score_log_likelihood(x, PerSampleODE(compact=False))
    for i in range(6):
        alone = score_log_likelihood(x[i : i + 1], PerSampleODE(), start=i)
        assert torch.equal(alone.per_probe[0], whole.per_probe[i])
        assert torch.equal(alone.z[0], whole.z[i])
        assert alone.nfe <= whole.nfe
    assert torch.equal(still.per_probe, whole.per_probe)


@pytest.mark.parametrize("method", TABLEAUX)
def test_the_likelihood_keeps_the_tolerance(sde: SDE, method: str) -> None:
    """n steps, each whose scaled error is at most one: n (atol + rtol |Δ|), the log-density's error for itself."""
    oracle, tolerance = mixture(sde), 1e-4
    x = oracle.sample(8, generator=generator(2))
    solver = PerSampleODE(method=method, rtol=tolerance, atol=tolerance)
    result = log_likelihood(
        oracle.score,
        sde,
        x,
        divergence=ExactTrace(),
        ode=solver,
        prior_log_prob=lambda z: oracle.log_prob(z, f64(sde.t_max)),
    )
    bound = result.nfe / 6 * tolerance * (1 + float(result.delta.abs().max()))
    assert (result.log_prob - oracle.log_prob(x, f64(sde.t_min))).abs().max() < bound


@pytest.mark.parametrize("compact", [True, False])
def test_labels_stay_with_their_samples(compact: bool) -> None:
    """When samples leave the batch, those that stay keep their labels, and all evaluations are counted."""

    class Pull(nn.Module):
        classes = 3

        def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None) -> Tensor:
            assert label is not None
            return x * (1.0 + 3 * label.to(x)[:, None])

    model, labels, calls = ScoreModel(Pull(), VPSDE()), torch.tensor([0, 2, 1, 0, 2]), []

    def solve(rows: Tensor) -> Tensor:
        process = ReverseProcess(VPSDE(), model.bind(labels[rows]))
        end = PerSampleODE(compact=compact).solve(process, start()[rows], 1e-5, 1.0)
        calls.append(process.nfe)
        return end

    whole = solve(torch.arange(5))
    for i in range(5):
        assert torch.equal(solve(torch.tensor([i])), whole[i : i + 1])
    assert calls[0] == max(calls[1:]) > min(calls[1:])


def test_the_observer_sees_both_ends_and_the_way() -> None:
    """Watched or not, the result is the same to the bit; on the way the states are right to 1 % of their size."""
    oracle, seen = GaussianMixture.gaussian(VPSDE(), f64([0.5, -0.3, 0.1]), 0.6), []
    process = ReverseProcess(oracle.sde, oracle.score, observer=lambda x, t: seen.append((x, t)))
    end = PerSampleODE().solve(process, start(), 1.0, 1e-5)
    assert torch.equal(end, PerSampleODE().solve(ReverseProcess(oracle.sde, oracle.score), start(), 1.0, 1e-5))
    assert len(seen) == WATCHED + 1
    times = [t for _, t in seen]
    assert (times[0], times[-1]) == (1.0, 1e-5)
    assert times == sorted(set(times), reverse=True)
    assert torch.equal(seen[0][0], start())
    assert torch.equal(seen[-1][0], end)
    for x, t in seen:
        torch.testing.assert_close(x, oracle.flow(start(), f64(1.0), f64(t)), rtol=0, atol=2e-2)


def test_no_gradient_is_kept() -> None:
    weight = torch.ones((), requires_grad=True)
    assert not PerSampleODE().solve(ReverseProcess(VPSDE(), lambda x, t: -weight * x), start(), 1.0, 0.5).requires_grad


def fails(below: float, *rows: int) -> ReverseProcess:
    """A score that is NaN for some samples of a batch of five that stays whole, at times below a given one."""
    bad = torch.zeros(5, 1, dtype=torch.bool)
    bad[list(rows)] = True
    return ReverseProcess(VPSDE(), lambda x, t: torch.where(bad & (t[:, None] < below), math.nan, -2 * x))


REMEDY = "; loosen rtol = 1e-05 and atol = 1e-05, or look for non-finite scores there"


def test_a_failure_names_the_time_and_the_sample() -> None:
    told = r"the ODE solve by 'tsit5' stopped at t = 0\.35\d* for sample 2 and 1 more: the state or its drift is not"
    with pytest.raises(InputError, match=told + " finite" + REMEDY):
        PerSampleODE(compact=False).solve(fails(0.35, 2, 4), start(), 1.0, 1e-5)
    with pytest.raises(InputError, match=r"stopped at t = 1 for sample 1: the state or its drift is not finite"):
        PerSampleODE(compact=False).solve(fails(2.0, 1), start(), 1.0, 1e-5)


def test_out_of_evaluations() -> None:
    oracle = mixture(VPSDE())
    with pytest.raises(
        InputError, match=r"t = 0\.\d+ for sample 0 and 4 more: max_nfe = 10 were not enough; raise max_nfe, loo"
    ):
        PerSampleODE(max_nfe=10).solve(ReverseProcess(oracle.sde, oracle.score), start(), 1.0, 1e-5)


def test_failed_samples_may_be_nan_and_the_others_untouched() -> None:
    solver = PerSampleODE(compact=False, on_failure="nan")
    x = solver.solve(fails(0.35, 2, 4), start(), 1.0, 1e-5)
    assert x.isnan().all(1).tolist() == [False, False, True, False, True]
    sound = PerSampleODE(compact=False).solve(fails(0.0), start(), 1.0, 1e-5)
    assert torch.equal(x[[0, 1, 3]], sound[[0, 1, 3]])


def test_a_likelihood_with_one_sample_lost() -> None:
    """In the whole chain: NaN for one image, the same bits as ever for the others."""
    x = 2 * torch.randn(4, 3, generator=generator(1))
    broken = x.clone()
    broken[1] = math.nan
    solver = PerSampleODE(on_failure="nan")
    result, sound = score_log_likelihood(broken, solver), score_log_likelihood(x, solver)
    assert result.log_prob.isnan().tolist() == [False, True, False, False]
    assert torch.equal(result.log_prob[[0, 2, 3]], sound.log_prob[[0, 2, 3]])
    with pytest.raises(InputError, match=r"stopped at t = 1e-05 for sample 1: the state or its drift is not finite"):
        score_log_likelihood(broken, PerSampleODE())


def test_attempt_tells_of_each_sample() -> None:
    oracle = mixture(VPSDE())
    process = ReverseProcess(oracle.sde, oracle.score)
    solution = PerSampleODE().attempt(lambda t, x: process.drift(x, t, eta=0.0), start(), 1.0, 1e-5)
    assert (solution.status == Status.DONE).all()
    assert int(solution.nfe.max()) == process.nfe
    assert ((solution.nfe - 2) % 6 == 0).all()


def test_agrees_with_the_common_step() -> None:
    """Two independent implementations, n steps of the tolerance each."""
    oracle = mixture(VPSDE())
    process = ReverseProcess(oracle.sde, oracle.score)
    own, common = (
        solver.solve(process, start(), 1.0, 1e-5)
        for solver in (PerSampleODE(rtol=1e-8, atol=1e-8), TorchdiffeqODE(rtol=1e-8, atol=1e-8))
    )
    torch.testing.assert_close(own, common, rtol=0, atol=process.nfe / 6 * 2e-8)


@pytest.mark.parametrize("option", ["rtol", "atol", "max_nfe"])
@pytest.mark.parametrize("value", [0, -1, math.nan])
def test_bad_numbers(option: str, value: float) -> None:
    with pytest.raises(InputError, match=f"`{option}` must be > 0, got {value}"):
        PerSampleODE(**{option: value})


def test_bad_names() -> None:
    with pytest.raises(InputError, match="unknown method 'dopri'; did you mean 'dopri5'"):
        PerSampleODE(method="dopri")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="`on_failure` must be one of raise, nan, got 'ignore'"):
        PerSampleODE(on_failure="ignore")  # type: ignore[arg-type]
