"""The faults of `benchmarks/mutants.py` still apply: a refactoring that moves their text must move them too."""

import sys
from pathlib import Path

import pytest

import sde_diffusion
from sde_diffusion.verify import CHECKS

ROOT = Path(sde_diffusion.__file__).parent
sys.path.insert(0, str(ROOT.parent / "benchmarks"))

from faults import FAULTS, Fault, read_faults  # noqa: E402


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_the_text_of_a_fault_stands_once(fault: Fault) -> None:
    text = (ROOT / fault.file).read_text()
    assert text.count(fault.old) == 1
    compile(text.replace(fault.old, fault.new), fault.file, "exec")


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_what_is_run_first_exists(fault: Fault) -> None:
    """A missing file would look like a caught fault."""
    assert all((ROOT.parent / "tests" / path).exists() for path in fault.tests.split(","))
    assert set(fault.area.split(",")) <= set(CHECKS)


def test_there_are_enough_of_them_and_each_has_its_name() -> None:
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 40


@pytest.mark.parametrize("text", ["name ¦ file ¦ old ¦ new ¦ breaks", "[sde; sde]\nname ¦ file ¦ old ¦ breaks"])
def test_a_line_that_is_not_a_fault_is_named(text: str) -> None:
    with pytest.raises(ValueError, match=r"faults\.txt:\d must be"):
        read_faults(text)
