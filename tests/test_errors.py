"""The checks at the public door."""

import math

import pytest

from sde_diffusion.errors import InputError, RunError, require, require_one_of, require_positive


def test_require() -> None:
    require(True, "never")
    with pytest.raises(InputError, match=r"^the rule$"):
        require(False, "the rule")


@pytest.mark.parametrize("value", [0, -1, 0.0, -1e-300, math.nan, math.inf, -math.inf])
def test_require_positive_names_the_value(value: float) -> None:
    with pytest.raises(InputError, match=rf"^`steps` must be > 0, got {value}$"):
        require_positive(rtol=1e-5, steps=value)


def test_require_positive_passes() -> None:
    require_positive(steps=1, rtol=1e-300)


def test_require_one_of() -> None:
    require_one_of("variance", "small", ["small", "large"])
    with pytest.raises(InputError, match=r"^`variance` must be one of small, large, got 'big'$"):
        require_one_of("variance", "big", iter(["small", "large"]))


def test_bad_input_is_a_value_error_and_a_failed_run_is_not() -> None:
    assert issubclass(InputError, ValueError)
    assert issubclass(RunError, RuntimeError)
    assert not issubclass(RunError, InputError)
