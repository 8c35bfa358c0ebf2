"""Scoring to a tolerance, on a nested model with known components: no network, no solve."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sde_diffusion.errors import InputError
from sde_diffusion.likelihood import Hutchinson
from sde_diffusion.likelihood.audit.tolerance import LADDER, Goal, Outcome, Request, Scoring, Tolerance
from sde_diffusion.rng import generator


class Model:
    """y_ijk = μ + A_i + D_ij + P_ijk + bias(rtol): what a score is asked for, and the true mean over all images."""

    def __init__(
        self,
        repeat: int,
        population: int,
        variances: tuple[float, float, float],
        *,
        bias: Callable[[float], float] = lambda rtol: 0.0,
        skewed: bool = False,
    ) -> None:
        self.repeat, self.bias, self.asked = repeat, bias, list[Request]()
        normal = generator(repeat, 1)
        self.images = torch.randn(population, generator=normal, dtype=torch.float64)
        if skewed:
            self.images = self.images.exponential_(generator=normal) - 1
        self.images = 3 + math.sqrt(variances[0]) * self.images
        self.d, self.p = variances[1:]
        self.mean = float(self.images.mean())

    def __call__(self, request: Request) -> Tensor:
        """The same numbers for the same image, replicate and probe."""
        self.asked.append(request)
        stop = request.first + request.count
        rows = [self._noise(request.replicate, row)[request.first : stop] for row in range(1 + request.probes)]
        noise = torch.stack(rows)
        cells = self.images[request.first : stop] + math.sqrt(self.d) * noise[0] + self.bias(request.ode.rtol)
        return (cells + math.sqrt(self.p) * noise[1:]).T

    def _noise(self, *keys: int) -> Tensor:
        return torch.randn(len(self.images), generator=generator(self.repeat, 2, *keys), dtype=torch.float64)


def scored(model: Model, tol: float, max_solves: int | None = None, **options: bool | float) -> Outcome:
    return Scoring(model, len(model.images), Goal(tol=tol, max_solves=max_solves), **options).run()  # type: ignore[arg-type]


CASES = {  # population, (S², d, p), tolerance
    "a subset": (2000, (0.25, 0.05, 0.05), 0.04),
    "all images, then replicates": (200, (0.25, 0.1, 0.1), 0.03),
    "probes": (300, (0.01, 0.002, 0.5), 0.04),
    "the pilot is enough": (500, (0.25, 0.01, 0.01), 0.2),
    "few images": (5, (0.25, 0.1, 0.1), 0.1),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_mean_is_within_the_half_width_as_often_as_stated(case: tuple[int, tuple[float, ...], float]) -> None:
    """Stopping looks at the data, so the coverage of the interval at the end is what must be seen; 4 errors of 300."""
    population, variances, tol = case
    hits = 0
    for repeat in range(300):
        model = Model(repeat, population, variances)  # type: ignore[arg-type]
        outcome = scored(model, tol)
        assert outcome.status == "met"
        assert outcome.half_width <= tol
        hits += abs(outcome.split.mean - model.mean) <= outcome.half_width
    assert hits / 300 >= 0.95 - 4 * math.sqrt(0.95 * 0.05 / 300)


@pytest.mark.slow
@pytest.mark.parametrize("skewed", [False, True])
@pytest.mark.parametrize("case", list(CASES.values())[:3], ids=list(CASES)[:3])
def test_sequential_coverage(case: tuple[int, tuple[float, ...], float], skewed: bool) -> None:
    population, variances, tol = case
    hits = 0
    for repeat in range(1000):
        model = Model(repeat, population, variances, skewed=skewed)  # type: ignore[arg-type]
        outcome = scored(model, tol)
        hits += abs(outcome.split.mean - model.mean) <= outcome.half_width
    assert 930 <= hits <= 970


def test_images_come_before_replicates_and_the_pilot_before_all() -> None:
    model = Model(0, 300, (0.25, 0.1, 0.02))
    outcome = scored(model, 0.02)
    pilot = [request for request in model.asked if request.count == 64 and request.first == 0]
    assert [(request.replicate, request.probes) for request in pilot[:3]] == [(0, 2), (0, 2), (1, 2)]
    later = model.asked[len(pilot) :]
    assert [request.replicate for request in later] == sorted(request.replicate for request in later)
    assert sum(request.count for request in later if request.replicate == 0) == 300 - 64
    assert any(request.replicate == 1 and request.first == 64 for request in later)
    assert outcome.solves == sum(request.count for request in model.asked)


def test_probes_are_bought_where_they_pay() -> None:
    few, many = Model(0, 5000, (0.25, 0.05, 0.01)), Model(0, 5000, (0.001, 0.001, 2.0))
    assert scored(few, 0.02).probes == 1
    assert (cheap := scored(many, 0.02).probes) > 4
    dear = scored(Model(0, 5000, (0.001, 0.001, 2.0)), 0.02, probe_cost=Hutchinson(mode="forward").probe_cost).probes
    assert 1 < dear < cheap


def test_the_loosest_ode_tolerance_that_is_good_enough() -> None:
    tol = 0.05
    for bias, expected in [(0.0, 1e-2), (1.0, 1e-3), (100.0, 1e-5)]:
        model = Model(0, 1000, (0.25, 0.01, 0.01), bias=lambda rtol, bias=bias: bias * rtol)  # type: ignore[misc]
        outcome = scored(model, tol)
        assert outcome.tolerance == Tolerance(expected, expected)
        assert outcome.ode.mean == pytest.approx(0.9 * bias * expected, abs=1e-12), "against ten times tighter"
        assert outcome.half_width == pytest.approx(outcome.split.half_width + abs(outcome.ode.mean), rel=1e-9)
        asked = {request.ode.rtol for request in model.asked}
        assert asked == {rung.rtol for rung in LADDER if rung.rtol >= expected / 11}
        assert {request.ode.rtol for request in model.asked[len(asked) :]} == {expected}


def test_an_ode_error_beyond_the_tolerance_stops_the_run_honestly() -> None:
    model = Model(0, 1000, (0.25, 0.01, 0.01), bias=lambda rtol: 0.2 * (round(math.log10(rtol)) % 2))
    outcome = scored(model, 0.1)
    assert outcome.status == "ode"
    assert outcome.half_width > 0.2


def test_met_counts_the_ode_error_with_the_half_width() -> None:
    tol = 0.04
    two = (Tolerance(1e-2, 1e-2), Tolerance(1e-3, 1e-3))  # the first is taken, and its error of half the tolerance
    model = Model(0, 2000, (0.25, 0.05, 0.05), bias=lambda rtol: 0.02 if rtol == 1e-2 else 0.0)
    outcome = Scoring(model, 2000, Goal(tol=tol), ladder=two).run()
    assert outcome.status == "met"
    assert outcome.ode_share == pytest.approx(0.02)
    assert outcome.split.half_width + 0.02 <= tol


def test_an_ode_error_that_only_its_mean_hides_is_not_good_enough() -> None:
    class Scattered(Model):
        """The loosest solve errs by ±1, which cancels in the mean of the pilot and in no other."""

        def __call__(self, request: Request) -> Tensor:
            sign = 1 - 2 * (torch.arange(request.first, request.first + request.count) % 2)
            return super().__call__(request) + (request.ode.rtol == LADDER[0].rtol) * sign[:, None]

    outcome = scored(Scattered(0, 1000, (0.25, 0.01, 0.01)), 0.05)
    assert outcome.tolerance.rtol < LADDER[0].rtol
    assert outcome.status == "met"


def test_a_budget_is_kept_and_the_half_width_reached_is_told() -> None:
    model = Model(0, 1000, (0.25, 0.01, 0.01))
    outcome = scored(model, 0.01, max_solves=300)
    assert outcome.status == "budget"
    assert outcome.solves == 300 == sum(request.count for request in model.asked)
    assert 0.01 < outcome.half_width < 0.2
    assert scored(model, 0.01, max_solves=192).solves == 192, "the least there can be"
    twice = scored(Model(0, 1000, (0.25, 0.01, 0.01)), 0.01, max_solves=401, draws=2)
    assert twice.solves == 400, "an image in a replicate is as many solves as draws"


@pytest.mark.parametrize("dequantised", [True, False])
@pytest.mark.parametrize("probed", [True, False])
def test_only_what_is_random_is_repeated(dequantised: bool, probed: bool) -> None:
    model = Model(0, 100, (0.25, 0.1 * dequantised, 0.1 * probed))
    outcome = scored(model, 0.05, dequantised=dequantised, probed=probed)
    assert outcome.status == "met"
    assert (max(request.probes for request in model.asked) > 1) == probed
    assert dequantised or probed or {request.replicate for request in model.asked} == {0}
    if not (dequantised or probed):
        assert outcome.split.mean == pytest.approx(model.mean) or outcome.half_width > 0


def test_a_repeated_run_asks_the_same() -> None:
    first, second = Model(3, 400, (0.25, 0.1, 0.3)), Model(3, 400, (0.25, 0.1, 0.3))
    assert scored(first, 0.03) == scored(second, 0.03)
    assert first.asked == second.asked


def test_errors() -> None:
    for tol in (0.0, -1.0, math.nan):
        with pytest.raises(InputError, match="`tol` must be > 0"):
            Goal(tol=tol)
    with pytest.raises(InputError, match=r"`confidence` must be in \(0, 1\), got 1"):
        Goal(tol=1, confidence=1)
    with pytest.raises(InputError, match="`max_solves` must be ≥ 192, what the pilot of 64 examples takes, got 191"):
        scored(Model(0, 100, (1, 1, 1)), 0.1, max_solves=191)
