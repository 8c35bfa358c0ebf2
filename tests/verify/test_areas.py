"""Every check of `verify` holds here, and each sees what it is for."""

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from sde_diffusion.sde import BETA_SEQUENCES, BETAS, SDES, VPSDE
from sde_diffusion.solvers import CORRECTORS, SOLVERS, Ancestral
from sde_diffusion.verify import CHECKS, Check, Outcome, Setting, collect, run
from sde_diffusion.verify.check import Measured, NotShown, mean_off, order
from sde_diffusion.verify.problems import processes, solvers, variants

SHARE = {"solvers": 6, "losses": 3, "likelihood": 2}  # of these areas the fast suite runs each n-th check


def outcomes(area: str, setting: Setting, *, every: int = 1) -> Iterator[Outcome]:
    return (run(area, check) for check in collect(area, CHECKS[area], setting)[::every])


def failures(area: str, setting: Setting, *, every: int = 1) -> list[Outcome]:
    return [outcome for outcome in outcomes(area, setting, every=every) if outcome.status == "failed"]


@pytest.mark.parametrize("area", CHECKS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_share_of_each_area_holds(area: str, dtype: torch.dtype) -> None:
    every = SHARE.get(area, 1) * (2 if dtype == torch.float32 else 1)
    assert failures(area, Setting(dtype=dtype), every=every) == []


@pytest.mark.slow
@pytest.mark.parametrize("area", CHECKS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_each_area_holds(area: str, dtype: torch.dtype) -> None:
    assert failures(area, Setting(dtype=dtype)) == []


def test_a_dtype_that_cannot_show_an_order_says_so() -> None:
    checks = [c for c in collect("solvers", CHECKS["solvers"], Setting(dtype=torch.float32)) if c.case == "vp unipc"]
    skipped = [outcome for outcome in (run("solvers", check) for check in checks) if outcome.status == "skipped"]
    assert [outcome.family for outcome in skipped] == ["order of convergence"]
    assert "is rounding in torch.float32" in skipped[0].note


def test_every_row_and_option_that_changes_a_formula_is_checked() -> None:
    cases = {check.case for area in CHECKS for check in collect(area, CHECKS[area], Setting())}
    for sde in SDES:
        for solver in SOLVERS:
            assert f"{sde} {solver}" in cases
    assert {"vp ancestral variance=large", "ve ddim eta=0.5", "subvp unipc p=3", "vp deis lower_final=always"} <= cases
    assert {"vp exact chunk=3", "vp large", "ve stochastic", "gaussian of width 0.4"} <= cases
    assert {f"vp pc corrector={corrector.__name__}" for corrector in CORRECTORS.values()} & cases
    assert len(processes()) == len(SDES) + 2 * (len(BETAS) - 1) + len(BETA_SEQUENCES) - 1
    assert list(variants(Ancestral)) == ["", " variance=large"]
    assert solvers()["ancestral variance=large"] == Ancestral(variance="large")


def test_a_row_that_is_new_is_checked_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    class HalfHearted(Ancestral):
        """Adds half of its noise."""

        def update(self, process, x, now, state):  # type: ignore[no-untyped-def]
            mean = super().update(process, x, now, state)[0]
            return mean - 0.5 * (mean - x), None

    monkeypatch.setitem(SOLVERS, "new", HalfHearted)
    checks = [check for check in collect("solvers", CHECKS["solvers"], Setting()) if check.case == "vp new"]
    failed = {outcome.family for outcome in (run("solvers", check) for check in checks) if outcome.status == "failed"}
    assert {"order of convergence", "moments of the mixture"} <= failed


@pytest.mark.parametrize(
    ("measure", "status", "note"),
    [
        (lambda: Measured(1.0, 1.0), "ok", ""),
        (lambda: Measured(1.1, 1.0), "failed", ""),
        (lambda: Measured(math.nan, 1.0), "failed", ""),
        (lambda: 1 / 0, "failed", "ZeroDivisionError: division by zero"),
    ],
)
def test_a_check_is_judged_and_never_raises(measure: object, status: str, note: str) -> None:
    outcome = run("area", Check("family", "case", measure))  # type: ignore[arg-type]
    assert (outcome.status, outcome.note) == (status, note)


def test_what_cannot_be_shown_is_skipped_and_what_cannot_be_listed_fails() -> None:
    def measure() -> Measured:
        raise NotShown("too coarse")

    assert run("area", Check("family", "case", measure)).status == "skipped"

    def checks(setting: Setting) -> Iterator[Check]:
        yield Check("first", "case", lambda: Measured(0.0, 0.0))
        raise ValueError("no such row")

    found = [run("area", check) for check in collect("area", checks, Setting())]
    assert [(outcome.family, outcome.status) for outcome in found] == [
        ("first", "ok"),
        ("area can be set up", "failed"),
    ]
    assert found[1].note == "ValueError: no such row"


def test_slope_and_standard_errors() -> None:
    assert order([10, 20, 40], [1.0, 0.25, 0.0625]) == pytest.approx(2)
    values = torch.tensor([1.0, 3.0, 1.0, 3.0])
    assert mean_off(values, 2.5) == pytest.approx((0.5, 4.5 * math.sqrt(4 / 3) / 2))


def test_a_wrong_process_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_half(self: VPSDE, t: Tensor) -> Tensor:
        return -self.beta.rate(t)

    monkeypatch.setattr(VPSDE, "drift_coef", without_half)
    assert {o.family for o in failures("sde", Setting())} == {"f and g² against autograd of a and std"}
    assert "continuity equation of the flow" in {o.family for o in failures("score", Setting())}
