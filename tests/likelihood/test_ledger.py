"""The proof of the ledger, to 4 standard errors, paired by example.

With the exact score all rows agree where the theory says so and every inequality holds; with a wrong score every row
stays above the entropy of the data. The data are a mixture of isotropic Gaussians in 3 dimensions, binned to 16 levels:
P(n) is a sum of products of differences of erf.
"""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sde_diffusion.data import DataSpec
from sde_diffusion.errors import InputError
from sde_diffusion.likelihood import (
    Divergence,
    ExactTrace,
    Hutchinson,
    LedgerOptions,
    Points,
    chain_bound,
    ledger,
    mean_interval,
)
from sde_diffusion.likelihood.audit.ledger import Entry, ledger_entries
from sde_diffusion.model import ScoreModel
from sde_diffusion.networks import MLP
from sde_diffusion.oracle import GaussianMixture
from sde_diffusion.rng import generator
from sde_diffusion.score import ScoreFn
from sde_diffusion.sde import DDPM, SDE, VPSDE, CosineBetas
from sde_diffusion.sde.chain import DiscreteChain
from sde_diffusion.solvers import PerSampleODE
from sde_diffusion.verify.problems import MEAN, STD, KnownVariance
from tests.conftest import PROCESSES, f64

SPEC = DataSpec("arrays", (1, 3), levels=16)
COUNT = 150
ODE = PerSampleODE(rtol=1e-3, atol=1e-3)
OPTIONS = LedgerOptions(draws=16, importance_draws=4, chain_steps=(20, 200))


FLOW, WEIGHTED, TRUNCATED = "flow, uniform", "flow, 4 weighted draws", "flow, truncated normal"
DENSITY, DECODER, PRIOR = "SDE bound, uniform", "SDE bound, decoder", "prior"
PUBLISHED = ("DDPM, Σ = β̃", "DDPM, Σ = β")
BOUNDS = (FLOW, WEIGHTED, TRUNCATED, DENSITY, DECODER, "chain of 20", "chain of 200")


def mixture(sde: SDE) -> GaussianMixture:
    """Well inside [−1, 1]: less than 1e-8 of it falls outside."""
    return GaussianMixture(sde, f64([0.4, 0.6]), f64([[[-0.2, 0.1, 0.3]], [[0.2, -0.1, 0.0]]]), f64([0.1, 0.08]))


def draw(oracle: GaussianMixture, count: int = COUNT) -> Tensor:
    return SPEC.from_model(oracle.sample(count, generator=generator(4)))


def log_mass(oracle: GaussianMixture, values: Tensor, t: float | None = None) -> Tensor:
    """log P(n) of the data, or of the marginal at t, (B,)."""
    means, variances = oracle.means.flatten(1), oracle.stds**2
    if t is not None:
        a = oracle.sde.mean_coef(f64(t))
        means, variances = a * means, a**2 * variances + oracle.sde.std(f64(t)) ** 2
    low = 2 * values.flatten(1).double() / 16 - 1
    edges = torch.stack([low, low + 0.125])[:, :, None]
    mass = 0.5 * torch.erf((edges - means) / variances.sqrt()[:, None] / math.sqrt(2)).diff(dim=0)[0]
    return (oracle.weights.log() + mass.log().sum(2)).logsumexp(1)


def bits(log_prob: Tensor) -> Tensor:
    return -log_prob / (3 * math.log(2))


def truncated(oracle: GaussianMixture, values: Tensor, draws: int = 100) -> Tensor:
    """Mean bits over noise N(a c, σ²) cut off at the bin, at the time at which its edges are at 3σ/a, (B,)."""
    sde = oracle.sde
    t = f64(max(sde.t_min, float(sde.time_at(f64(math.log(48.0))))))
    a, std = sde.mean_coef(t), sde.std(t)
    centre = (2 * values.double() + 1) / 16 - 1
    below, above = (torch.special.ndtr(((1 - a) * centre + edge) / std) for edge in (-1 / 16, 1 / 16))
    u = torch.rand(draws, *values.shape, generator=generator(5), dtype=torch.float64)
    z = torch.special.ndtri(below + u * (above - below))
    log_q = -0.5 * z**2 - (math.sqrt(2 * math.pi) * (above - below) * std).log()
    log_p = oracle.log_prob((a * centre + std * z).flatten(0, 1), t).reshape(draws, -1)
    return bits(log_p - log_q.flatten(2).sum(2)).mean(0)


def entries(score_fn: ScoreFn, sde: SDE, spec: DataSpec = SPEC, options: LedgerOptions = OPTIONS) -> dict[str, Entry]:
    found = ledger_entries(score_fn, sde, spec, divergence=ExactTrace(), ode=ODE, options=options, seed=3)
    return {entry.name: entry for entry in found}


def scored(score_fn: ScoreFn, sde: SDE, values: Tensor) -> dict[str, Tensor]:
    return {name: entry.score(values, 0).bits for name, entry in entries(score_fn, sde).items()}


def scored_bounds(oracle: GaussianMixture, values: Tensor) -> dict[str, Tensor]:
    """The rows that solve nothing."""
    found = entries(oracle.score, oracle.sde)
    return {name: found[name].score(values, 0).bits for name in (DENSITY, DECODER, "chain of 20", "chain of 200")}


def excess(over: Tensor, under: Tensor) -> tuple[float, float]:
    """Mean of the paired difference and 4 of its standard errors."""
    difference = over.double() - under.double()
    return float(difference.mean()), 4 * float(difference.std()) / math.sqrt(len(difference))


@pytest.mark.parametrize("name", ["vp", *(pytest.param(n, marks=pytest.mark.slow) for n in PROCESSES if n != "vp")])
def test_with_the_exact_score_rows_agree_and_every_inequality_holds(name: str) -> None:
    sde = PROCESSES[name]
    oracle = mixture(sde)
    values = draw(oracle)
    rows = scored(oracle.score, sde, values)
    published = () if sde.levels is None else PUBLISHED
    assert set(rows) == {*BOUNDS, PRIOR, *published}
    for name in published:  # a bound of the data themselves; β̃ is nearly right for these, which are nearly points
        mean, error = excess(rows[name], bits(log_mass(oracle, values)))
        assert mean > -error, name
    entropy, at_t_min = bits(log_mass(oracle, values)), bits(log_mass(oracle, values, sde.t_min))
    # the noise at t_min, at most 0.01 of 0.08 (VE), widens the density by ½ log(1 + 1/64) a dimension; the prior gap,
    # KL(p_T ‖ prior), is far below it for data within [−1, 1]; the solve is right to 1e-3 nats a step
    known = 0.5 * math.log2(1 + 1 / 64) + 0.005
    ordered = [
        (WEIGHTED, at_t_min),  # P(n) ≤ weighted ≤ uniform, of the flow's marginal
        (FLOW, rows[WEIGHTED]),
        (TRUNCATED, entropy),
        ("chain of 20", rows["chain of 200"]),  # few steps ≥ many ≥ the limit ≥ −log P
        ("chain of 200", rows[DECODER]),
        (DECODER, entropy),
        (DENSITY, at_t_min),
    ]
    for over, under in ordered:
        mean, error = excess(rows[over], under)
        assert mean > -error - known, over
    # the ODE and the bound give one density, on the same dequantised examples
    mean, error = excess(rows[DENSITY], rows[FLOW])
    assert abs(mean) < error + known
    # and many steps are nearly the limit
    (many, error), (few, _) = (excess(rows[f"chain of {steps}"], rows[DECODER]) for steps in (200, 20))
    assert abs(many) < few / 4 + error
    # the truncated normal gives what its noise and the marginal at its own time do; no other is looser
    mean, error = excess(rows[TRUNCATED], truncated(oracle, values))
    assert abs(mean) < error + 0.005
    for bound in (FLOW, WEIGHTED, DENSITY, DECODER, "chain of 200"):
        assert excess(rows[bound], rows[TRUNCATED])[0] < excess(rows[bound], rows[TRUNCATED])[1], bound


@pytest.mark.parametrize(
    ("name", "factor", "shift"),
    [("vp", 0.8, 0.0), pytest.param("ve", 1.2, 0.0, marks=pytest.mark.slow), ("subvp", 1.0, 0.1)],
)
def test_with_a_wrong_score_every_row_stays_above_the_entropy(name: str, factor: float, shift: float) -> None:
    """Too small, too large, or of data with another mean: Gibbs' inequality, whatever the model."""
    sde = PROCESSES[name]
    oracle = mixture(sde)
    values = draw(oracle)
    truth = bits(log_mass(oracle, values))
    other = replace(oracle, means=oracle.means + shift)
    rows = scored(lambda x, t: factor * other.score(x, t), sde, values)
    right = scored_bounds(oracle, values)
    for bound in BOUNDS:
        mean, error = excess(rows[bound], truth)
        assert mean > -error, bound
    for bound, row in right.items():  # and the wrong score costs something, on the same noise
        mean, error = excess(rows[bound], row)
        assert mean > error, bound


@pytest.mark.slow
def test_importance_weighting_tends_to_the_probability() -> None:
    """The excess of K draws over −log P(n) is about 1/K of that of one."""
    sde = VPSDE()
    oracle = mixture(sde)
    values = draw(oracle)
    truth = bits(log_mass(oracle, values, sde.t_min))
    means = []
    for count in (1, 4, 16):
        options = replace(OPTIONS, importance_draws=count)
        row = entries(oracle.score, sde, options=options)[f"flow, {count} weighted draws"].score(values, 0)
        means.append(excess(row.bits, truth))
    (one, _), (four, error), (sixteen, last) = means
    assert one > four - error > sixteen - last
    assert abs(sixteen) < last + one / 8
    assert one > 0.05, "or there is nothing to gain"


def test_the_weighted_row_takes_two_probes_of_the_same_kind_and_says_what_they_may_cost() -> None:
    sde = VPSDE()
    oracle = mixture(sde)
    values = draw(oracle, 3)

    def row(divergence: Divergence) -> tuple[str, Tensor]:
        found = ledger_entries(oracle.score, sde, SPEC, divergence=divergence, ode=ODE, options=OPTIONS, seed=3)
        (entry,) = (entry for entry in found if entry.name == WEIGHTED)
        return entry.bounds, entry.score(values, 0).bits

    assert row(ExactTrace())[0].endswith("on average ≤ the uniform row")
    forward, reverse = (Hutchinson(distribution="gaussian", mode=mode) for mode in ("forward", "reverse"))
    bounds, by_one = row(reverse)
    assert bounds.endswith("on average ≤ the uniform row + log₂ 4/D")
    assert torch.equal(by_one, row(replace(reverse, probes=2))[1])
    assert not torch.allclose(by_one, row(Hutchinson())[1], atol=1e-3), "the distribution is kept"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sde_diffusion.likelihood.divergence.quadratic_forms", None)  # what reverse mode would call
        torch.testing.assert_close(row(forward)[1], by_one, rtol=0, atol=1e-2)  # of two solves to a tolerance of 1e-3


def test_rows_say_what_they_are_and_what_they_cost() -> None:
    sde = VPSDE()
    oracle = mixture(sde)
    values = draw(oracle, 8)
    rows = ledger(oracle.score, sde, SPEC, values, divergence=Hutchinson(), ode=ODE, options=OPTIONS, seed=3)
    by_name = {row.name: row for row in rows}
    assert list(by_name) == [FLOW, TRUNCATED, WEIGHTED, DENSITY, DECODER, "chain of 20", "chain of 200", PRIOR]
    assert by_name[DENSITY].nfe == by_name[DECODER].nfe == by_name["chain of 200"].nfe == 17
    assert by_name[PRIOR].nfe == 0
    assert by_name[WEIGHTED].nfe > 3 * by_name[FLOW].nfe > 30
    expected = {entry: value for entry, value in scored(oracle.score, sde, values).items() if entry in (DECODER, PRIOR)}
    for name, value in expected.items():
        assert (by_name[name].mean, by_name[name].half_width) == pytest.approx(mean_interval(value), rel=1e-12)
    assert all(row.units == "bits/dim of n" and row.seconds >= 0 for row in rows)
    assert all("P(n)" in row.bounds for row in rows if row.name != PRIOR)


def test_an_example_does_not_depend_on_its_companions() -> None:
    sde = VPSDE()
    oracle = mixture(sde)
    values = draw(oracle, 12)
    for entry in entries(oracle.score, sde).values():
        whole, part = entry.score(values, 60).bits, entry.score(values[5:7], 65).bits
        torch.testing.assert_close(part, whole[5:7], rtol=1e-4, atol=1e-4)


def test_continuous_data_have_rows_of_their_density(sde: SDE) -> None:
    """Of y = shift + scale x, against the closed form."""
    spec = DataSpec("arrays", (1, 3), levels=None, shift=1.0, scale=3.0)
    oracle = mixture(sde)
    x = oracle.sample(COUNT, generator=generator(4))
    truth = spec.bits_per_dim(oracle.log_prob(x))
    options = replace(OPTIONS, chain_steps=(20,))
    found = entries(oracle.score, sde, spec, options)
    assert list(found) == ["flow", "SDE bound", "chain of 20", *(() if sde.levels is None else PUBLISHED), PRIOR]
    rows = {name: entry.score(spec.from_model(x), 0).bits for name, entry in found.items()}
    for name in ("flow", "SDE bound"):
        mean, error = excess(rows[name], truth)
        assert abs(mean) < error + 0.02, name
    mean, error = excess(rows["chain of 20"], rows["SDE bound"])
    assert mean > -error
    row = ledger(oracle.score, sde, spec, spec.from_model(x[:2]), divergence=ExactTrace(), ode=ODE, options=options)[0]
    assert row.units == "bits/dim of y"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (torch.zeros(2, 3, 1, dtype=torch.uint8), r"`values` must be a batch of shape \(B, 1, 3\), got \(2, 3, 1\)"),
        (torch.zeros(0, 1, 3, dtype=torch.uint8), r"got \(0, 1, 3\)"),
        (torch.full((2, 1, 3), 16), r"must be whole numbers from 0 to 15, not dequantised, got torch.int64 from 16"),
        (torch.zeros(2, 1, 3), "not dequantised, got torch.float32"),
    ],
)
def test_values_that_are_no_such_data_are_refused(values: Tensor, message: str) -> None:
    oracle = mixture(VPSDE())
    with pytest.raises(InputError, match=message):
        ledger(oracle.score, VPSDE(), SPEC, values, divergence=ExactTrace(), ode=ODE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chain_steps": (100, 1)}, "`chain_steps` must be ≥ 2, got 1"),
        ({"draws": 0}, "`draws` must be > 0, got 0"),
        ({"importance_draws": 0}, "`importance_draws` must be > 0, got 0"),
        ({"decoder_width": 0.0}, "`decoder_width` must be > 0, got 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        LedgerOptions(**options)  # type: ignore[arg-type]


def test_the_published_chain_has_a_row_for_each_variance_that_the_model_knows() -> None:
    """Bits of the bound with the published decoder; with the right variance of each step no row is lower."""
    sde = DDPM(steps=10, beta=CosineBetas(cap=0.9))
    oracle = KnownVariance(sde, f64(DiscreteChain.of_levels(sde).times[1:]))
    spec, options = DataSpec("arrays", (3,), levels=None), LedgerOptions(draws=8, chain_steps=())
    values = MEAN + STD * torch.randn(300, 3, generator=generator(1), dtype=torch.float64)
    found = entries(oracle, sde, spec, options)
    assert [name for name in found if "DDPM" in name] == [*PUBLISHED, "DDPM, Σ learned"]
    rows = {name: found[name].score(values, 0) for name in (*PUBLISHED, "DDPM, Σ learned")}
    assert {row.nfe for row in rows.values()} == {9}
    chain = DiscreteChain.of_levels(sde)
    width = float(torch.exp(0.5 * chain.clipped_log_variance[0]))
    bound = chain_bound(oracle, chain, Points(values.float()), variance="large", draws=8, decoder_std=width, seed=3)
    torch.testing.assert_close(rows["DDPM, Σ = β"].bits, bits(bound.log_prob), rtol=1e-10, atol=0)
    for name in PUBLISHED:
        mean, error = excess(rows[name].bits, rows["DDPM, Σ learned"].bits)
        assert mean > -error
    assert excess(rows["DDPM, Σ = β"].bits, rows["DDPM, Σ learned"].bits)[0] > 0
    one_head = ScoreModel(MLP((3,), width=8), sde).double()
    assert [name for name in entries(one_head, sde, spec, options) if "DDPM" in name] == [*PUBLISHED]
    assert not [name for name in entries(oracle, VPSDE(), spec, options) if "DDPM" in name]
