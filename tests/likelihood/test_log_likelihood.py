"""The probability-flow likelihood against closed forms and reference numbers.

A solve in n steps of tolerance tol is held to n tol; n is at most the number of evaluations. Random directions are held
to 4 standard errors.
"""

import math
import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sde_diffusion.errors import InputError, SolveError
from sde_diffusion.likelihood import DIVERGENCES, Divergence, ExactTrace, Hutchinson, Likelihood, log_likelihood
from sde_diffusion.likelihood.divergence import Distribution, Probes, TraceFn
from sde_diffusion.likelihood.log_likelihood import full_precision
from sde_diffusion.oracle import GaussianMixture
from sde_diffusion.rng import generator
from sde_diffusion.runtime import cuda_graphs as graphs
from sde_diffusion.sde import SDE, VPSDE
from sde_diffusion.solvers import AdaptiveODE, PerSampleODE, ReverseProcess, ScipyODE, TorchdiffeqODE
from sde_diffusion.solvers.runge_kutta import Norm, Rhs, sample_rms
from tests.conftest import PROCESSES, f64, golden, golden_sde

TOLERANCE = 1e-10
TIGHT = TorchdiffeqODE(method="dopri8", rtol=TOLERANCE, atol=TOLERANCE)
TIGHT_ODES = (TIGHT, PerSampleODE(rtol=TOLERANCE, atol=TOLERANCE, compact=False))
LOOSE = TorchdiffeqODE()
GOLDEN_CASES = golden("04_likelihood")


def mixture(sde: SDE, shape: tuple[int, ...] = (4,)) -> GaussianMixture:
    """Three components, normalised like data: mean near 0 and variance near 1."""
    means = torch.randn(3, *shape, generator=generator(1), dtype=torch.float64)
    return GaussianMixture(sde, f64([0.2, 0.5, 0.3]), means, f64([0.3, 0.6, 0.4]))


def closed(oracle: GaussianMixture, x: Tensor, ode: TorchdiffeqODE, divergence: Divergence, **keys: int) -> Likelihood:
    """The likelihood closed with the oracle's own p_T, which leaves the error of the solve and of the trace."""

    def log_prob_at_end(z: Tensor) -> Tensor:
        return oracle.log_prob(z, f64(oracle.sde.t_max))

    sde = oracle.sde
    return log_likelihood(oracle.score, sde, x, divergence=divergence, ode=ode, prior_log_prob=log_prob_at_end, **keys)


@dataclass(frozen=True, kw_only=True)
class GivenDirections(Divergence):
    """Hutchinson with directions from a file, one for each sample."""

    directions: Tensor

    exact = False

    @property
    def estimates(self) -> int:
        return 1

    def bind(self, x: Tensor, *, seed: int, start: int) -> TraceFn:
        return Probes(self.directions[None])


def golden_oracle(case: dict[str, Any]) -> GaussianMixture:
    sde = golden_sde(case["params"], t_min=case["params"]["eps"])
    data = case["data_distribution"]
    if data["kind"] == "gaussian":
        return GaussianMixture.gaussian(sde, f64(data["m"]), data["s"])
    return GaussianMixture(sde, f64(data["w"]), f64(data["mu"]), f64(data["s"]))


def golden_bits(log_prob: Tensor, dims: int, offset: float) -> Tensor:
    return -log_prob / (dims * math.log(2)) + offset


@pytest.mark.parametrize("ode", TIGHT_ODES, ids=lambda ode: type(ode).__name__)
@pytest.mark.parametrize("case", GOLDEN_CASES, ids=lambda case: case["id"])
def test_golden_exact_trace(case: dict[str, Any], ode: AdaptiveODE) -> None:
    oracle, outputs = golden_oracle(case), case["outputs"]
    x = f64(case["inputs"]["x"])
    result = log_likelihood(oracle.score, oracle.sde, x, divergence=ExactTrace(), ode=ode)
    tolerance = {"rtol": 0, "atol": 1e-6}
    dims = x.shape[1]
    torch.testing.assert_close(result.log_prob, f64(outputs["logp_exact_trace"]), **tolerance)
    torch.testing.assert_close(result.delta[:, 0], f64(outputs["delta_logp_exact_trace"]), **tolerance)
    torch.testing.assert_close(result.prior, f64(outputs["prior_logp_z"]), **tolerance)
    for name, offset in (("identity", 8), ("centred", 7)):
        bits = f64(outputs[f"bits_per_dim_exact_trace_scaler_{name}"])
        torch.testing.assert_close(golden_bits(result.log_prob, dims, offset), bits, **tolerance)
    torch.testing.assert_close(result.z, f64(outputs["z_latent"]), rtol=0, atol=1e-6 * oracle.sde.prior_std)


@pytest.mark.parametrize("ode", TIGHT_ODES, ids=lambda ode: type(ode).__name__)
@pytest.mark.parametrize("case", GOLDEN_CASES, ids=lambda case: case["id"])
@pytest.mark.parametrize(("probe", "label"), [("rademacher_probe", "rademacher"), ("gaussian_probe", "gaussian_probe")])
def test_golden_probes(case: dict[str, Any], probe: str, label: str, ode: AdaptiveODE) -> None:
    """The reference probes the whole drift, f |v|² where we have f D; ∫ f dt is log a, so the difference is known."""
    oracle, x, v = golden_oracle(case), f64(case["inputs"]["x"]), f64(case["inputs"][probe])
    sde, dims = oracle.sde, x.shape[1]
    result = log_likelihood(oracle.score, sde, x, divergence=GivenDirections(directions=v), ode=ode)
    log_a = sde.log_mean_coef(f64([sde.t_min, sde.t_max]))
    log_prob = result.log_prob + (log_a[1] - log_a[0]) * ((v**2).sum(1) - dims)
    expected = f64(case["outputs"][f"bits_per_dim_{label}_scaler_identity"])
    torch.testing.assert_close(golden_bits(log_prob, dims, 8), expected, rtol=0, atol=1e-6)


def test_closed_with_the_end_density_it_is_exact(sde: SDE) -> None:
    """And with the prior instead it is off by exactly log N(z) − log p_T(z), up to 7e-2 nats for normalised data."""
    oracle = mixture(sde)
    x = oracle.sample(16, generator=generator(2))
    expected = oracle.log_prob(x, f64(sde.t_min))
    exact = closed(oracle, x, TIGHT, ExactTrace())
    error = float((exact.log_prob - expected).abs().max())
    assert error < exact.nfe * TOLERANCE < 1e-6
    with_prior = log_likelihood(oracle.score, sde, x, divergence=ExactTrace(), ode=TIGHT)
    gap = sde.prior_log_prob(exact.z) - oracle.log_prob(exact.z, f64(sde.t_max))
    torch.testing.assert_close(with_prior.log_prob - exact.log_prob, gap, rtol=0, atol=1e-12)
    assert gap.abs().max() < 7e-2


@pytest.mark.parametrize("tolerance", [1e-3, 1e-5, 1e-7])
def test_error_follows_the_tolerance(sde: SDE, tolerance: float) -> None:
    """n steps, each of whose scaled error of Δ/D is at most one: n (atol D + rtol |Δ|)."""
    oracle = mixture(sde, (1, 4, 4))
    x = oracle.sample(4, generator=generator(2))
    result = closed(oracle, x, TorchdiffeqODE(rtol=tolerance, atol=tolerance), ExactTrace())
    steps = result.nfe / 6
    bound = steps * tolerance * (16 + float(result.delta.abs().max()))
    assert (result.log_prob - oracle.log_prob(x, f64(sde.t_min))).abs().max() < bound


def test_float32_at_default_tolerances(sde: SDE) -> None:
    """n (atol D + rtol |Δ|) of the solve; rounding is far below it."""
    oracle = mixture(sde, (3, 4))
    x = oracle.sample(4, generator=generator(2))
    result = closed(oracle, x.float(), LOOSE, ExactTrace())
    assert result.log_prob.dtype == result.z.dtype == torch.float32
    bound = result.nfe / 6 * LOOSE.rtol * (12 + float(result.delta.abs().max()))
    assert (result.log_prob.double() - oracle.log_prob(x, f64(sde.t_min))).abs().max() < bound


@pytest.mark.parametrize("distribution", ["rademacher", "gaussian"])
def test_hutchinson_averages_to_the_exact_trace(sde: SDE, distribution: Distribution) -> None:
    oracle = mixture(sde)
    x = oracle.sample(3, generator=generator(2))
    ode = TorchdiffeqODE(rtol=1e-4, atol=1e-4)
    exact = closed(oracle, x, ode, ExactTrace()).log_prob
    estimate = closed(oracle, x, ode, Hutchinson(probes=100, distribution=distribution), seed=5)
    assert estimate.per_probe.shape == (3, 100)
    assert ((estimate.log_prob - exact).abs() < 4 * estimate.standard_error).all()


def test_forward_then_backward_is_the_identity(sde: SDE) -> None:
    """Both ways together take n steps, each with an error of at most atol + rtol |z|."""
    oracle = mixture(sde)
    x = oracle.sample(4, generator=generator(2))
    there = log_likelihood(oracle.score, sde, x, divergence=ExactTrace(), ode=TIGHT)
    process = ReverseProcess(sde, oracle.score)
    back = TIGHT.solve(process, there.z, sde.t_max, sde.t_min)
    bound = (there.nfe + process.nfe) * TOLERANCE * (1 + float(there.z.abs().max()))
    assert (back - x).abs().max() < bound < 1e-4


def test_a_batch_mate_changes_a_sample_within_the_tolerance_only(sde: SDE) -> None:
    """Directions are the same to the bit; the steps are shared, so the solve differs by its own error."""
    oracle = mixture(sde)
    x = oracle.sample(3, generator=generator(2))
    crowd = torch.cat([x, torch.full((1, 4), 30.0, dtype=torch.float64)])
    together = closed(oracle, crowd, LOOSE, Hutchinson(probes=2), seed=4, start=10)
    for i in range(3):
        alone = closed(oracle, x[i : i + 1], LOOSE, Hutchinson(probes=2), seed=4, start=10 + i)
        bound = together.nfe / 6 * LOOSE.rtol * (4 + float(alone.delta.abs().max()))
        assert (alone.per_probe[0] - together.per_probe[i]).abs().max() < bound


def test_an_error_of_the_log_density_is_not_drowned_by_the_dimensions() -> None:
    """The norm of a sample's step is the worst of its state (root mean square) and of every Δ/D (absolute)."""
    norms: list[Norm] = []

    class Recorder(TorchdiffeqODE):
        def integrate(
            self,
            rhs: Rhs,
            y: Tensor,
            t_from: float,
            t_to: float,
            *,
            norm: Norm = sample_rms,
            observe: Callable[[Tensor, float], None] | None = None,
        ) -> Tensor:
            norms.append(norm)
            return y

    divergence = Hutchinson(probes=2)
    log_likelihood(lambda x, t: -x, VPSDE(), torch.zeros(3, 10, 10), divergence=divergence, ode=Recorder())
    error = torch.zeros(3, 102)
    error[1, :50] = 2.0
    error[2, 101] = -3.0
    torch.testing.assert_close(norms[0](error), torch.tensor([0.0, math.sqrt(2), 3.0]))


def test_standard_error_and_means() -> None:
    delta = f64([[1.0, 2.0, 6.0], [3.0, 3.0, 3.0]])
    many = Likelihood(prior=f64([1.0, 0.0]), delta=delta, z=torch.zeros(2, 1), nfe=1, exact=False)
    torch.testing.assert_close(many.log_prob, f64([4.0, 3.0]))
    torch.testing.assert_close(many.standard_error, f64([math.sqrt(7 / 3), 0.0]))  # sample variance 7 of 3 values
    one = Likelihood(prior=many.prior, delta=delta[:, :1], z=many.z, nfe=1, exact=False)
    assert one.standard_error.isnan().all()
    exact = Likelihood(prior=many.prior, delta=delta[:, :1], z=many.z, nfe=1, exact=True)
    assert (exact.standard_error == 0).all()


class Network(nn.Module):
    """A small field with parameters; it counts its calls and sees whether earlier graphs are gone."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.calls = 0
        self.earlier: list[weakref.ref[Tensor]] = []

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        assert t.shape == x.shape[:1]
        self.calls += 1
        assert all(reference() is None for reference in self.earlier)
        hidden = torch.tanh(self.linear(x.flatten(1)))
        self.earlier = [weakref.ref(hidden)]
        return -x - 0.1 * hidden.reshape(x.shape)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_network_with_parameters_inside_no_grad(name: str) -> None:
    """Evaluations are counted, each graph is released before the next, no gradient reaches the parameters."""
    torch.manual_seed(0)
    net = Network()
    x = torch.randn(5, 2, 2, generator=generator(3))
    with torch.no_grad():
        result = log_likelihood(net, VPSDE(), x, divergence=DIVERGENCES[name](), ode=LOOSE)
    assert result.nfe == net.calls
    assert net.linear.weight.grad is None
    assert not result.log_prob.requires_grad
    assert result.z.shape == x.shape
    assert result.log_prob.shape == result.standard_error.shape == (5,)
    with torch.enable_grad():
        again = log_likelihood(net, VPSDE(), x, divergence=DIVERGENCES[name](), ode=LOOSE)
    assert torch.equal(again.log_prob, result.log_prob)


@pytest.mark.parametrize("x", [torch.zeros(0, 3), torch.zeros(3), torch.zeros(2, 3, dtype=torch.int64)])
def test_what_is_not_a_batch_is_refused(x: Tensor) -> None:
    oracle = mixture(PROCESSES["vp"])
    with pytest.raises(InputError, match=r"`x0` must be a floating-point batch \(B, \*D\) with B > 0, got torch"):
        log_likelihood(oracle.score, oracle.sde, x, divergence=ExactTrace(), ode=LOOSE)


def test_a_score_that_is_not_finite_is_refused() -> None:
    with pytest.raises(InputError, match=r"stopped at t = 1e-05: .*look for non-finite scores"):
        log_likelihood(lambda x, t: x * math.nan, VPSDE(), torch.zeros(2, 3), divergence=Hutchinson(), ode=LOOSE)


@pytest.mark.parametrize(
    ("ode", "who"), [(PerSampleODE(compact=False), " for sample 12"), (TorchdiffeqODE(), ""), (ScipyODE(), "")]
)
@pytest.mark.parametrize("divergence", [ExactTrace(), Hutchinson()])
def test_a_network_that_fails_is_named_by_time_and_sample(ode: AdaptiveODE, who: str, divergence: Divergence) -> None:
    def score(x: Tensor, t: Tensor) -> Tensor:
        wrong = (t > 0.4) & (torch.arange(len(x)) == 2)
        return torch.where(wrong[:, None], torch.nan, -0.5 * x)

    with pytest.raises(SolveError, match=rf"stopped at t = 0\.[34]\d*{who}: "):
        log_likelihood(score, VPSDE(), torch.ones(4, 2), divergence=divergence, ode=ode, start=10)


def test_products_are_in_full_precision_whatever_surrounds() -> None:
    """Neither autocast nor reduced products reach the score, nor a recording of it; afterwards all is as it was."""
    seen, x0 = set(), torch.zeros(2, 3)

    def score_fn(x: Tensor, t: Tensor) -> Tensor:
        product = x @ torch.eye(3)
        precision, recordings = torch.get_float32_matmul_precision(), not graphs._eager
        seen.add((product.dtype, precision, torch.backends.cudnn.allow_tf32, recordings))
        return -product

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            log_likelihood(score_fn, VPSDE(), x0, divergence=Hutchinson(), ode=PerSampleODE(rtol=0.1, atol=0.1))
            assert (x0 @ torch.eye(3)).dtype == torch.bfloat16
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert seen == {(torch.float32, "highest", False, False)}
    assert not graphs._eager


def test_a_torch_that_warns_of_its_switches_is_not_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch 2.9 to 2.11 warn of the switch of matrix products; warnings are errors here."""
    switch = torch.set_float32_matmul_precision

    def warns(precision: str) -> None:
        warnings.warn("Please use the new API settings to control TF32 behavior, such as …", stacklevel=2)
        switch(precision)

    monkeypatch.setattr(torch, "set_float32_matmul_precision", warns)
    with full_precision(torch.device("cpu")):
        assert torch.get_float32_matmul_precision() == "highest"
