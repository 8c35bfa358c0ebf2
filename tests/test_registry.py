"""Look-up by name, with the nearest name in the error."""

import pytest

from sde_diffusion.errors import InputError
from sde_diffusion.registry import lookup, suggest
from sde_diffusion.solvers import SOLVERS, Ancestral

TABLE = {"dpmpp_2m": 1, "heun": 2}


def test_lookup() -> None:
    assert lookup(TABLE, "heun", "solver") == 2
    assert lookup(SOLVERS, "ancestral", "solver") is Ancestral


def test_the_nearest_name_is_suggested() -> None:
    with pytest.raises(InputError, match=r"^unknown solver 'dpm2m'; did you mean 'dpmpp_2m'\? known: dpmpp_2m, heun$"):
        lookup(TABLE, "dpm2m", "solver")


@pytest.mark.parametrize("name", ["", "xyz", 3])
def test_where_none_is_near_all_are_named(name: str) -> None:
    with pytest.raises(InputError, match=rf"^unknown solver {name!r}; known: dpmpp_2m, heun$"):
        lookup(TABLE, name, "solver")


def test_suggest_takes_any_iterable() -> None:
    assert suggest("heum", iter(TABLE)) == "; did you mean 'heun'? known: dpmpp_2m, heun"
