"""How the command line has OpenMP's threads wait."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import sde_diffusion_cli.openmp as cli

ROOT = Path(cli.__file__).parents[1]


@pytest.fixture(autouse=True)
def _two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*cli.SET_BY_USER, "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "to be restored")  # what the function sets is undone with it
        monkeypatch.delenv(name)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)


def running(monkeypatch: pytest.MonkeyPatch, count: float) -> None:
    monkeypatch.setattr(cli, "running_elsewhere", lambda: count)


@pytest.mark.parametrize(("others", "expected"), [(0, None), (1, "PASSIVE"), (7, "PASSIVE")])
def test_threads_sleep_where_others_take_their_cores(
    monkeypatch: pytest.MonkeyPatch, others: int, expected: str | None
) -> None:
    running(monkeypatch, others)
    cli.choose_waiting()
    assert os.environ.get("OMP_WAIT_POLICY") == expected


@pytest.mark.parametrize(
    ("threads", "expected"), [("1", None), ("2", "PASSIVE"), ("2,1", "PASSIVE"), ("all", "PASSIVE")]
)
def test_the_number_of_threads_that_is_asked_for_counts(
    monkeypatch: pytest.MonkeyPatch, threads: str, expected: str | None
) -> None:
    running(monkeypatch, 1)
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    cli.choose_waiting()
    assert os.environ.get("OMP_WAIT_POLICY") == expected


def test_others_do_not_matter_where_there_are_cores_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cores of 64 are ours, and 40 threads run on the others."""
    running(monkeypatch, 40)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    cli.choose_waiting()
    assert "OMP_WAIT_POLICY" not in os.environ


@pytest.mark.parametrize("name", cli.SET_BY_USER)
def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    running(monkeypatch, 7)
    monkeypatch.setenv(name, "own")
    cli.choose_waiting()
    assert os.environ[name] == "own"
    assert name == "OMP_WAIT_POLICY" or "OMP_WAIT_POLICY" not in os.environ


@pytest.mark.parametrize(("text", "expected"), [("0.10 0.20 0.30 4/123 99\n", 3), ("0.1 0.2", 0), ("a b c d/e f", 0)])
def test_others_are_counted_without_this_thread(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, expected: int
) -> None:
    monkeypatch.setattr(cli, "LOAD", tmp_path / "loadavg")
    assert cli.running_elsewhere() == 0  # no such file
    cli.LOAD.write_text(text)
    assert cli.running_elsewhere() == expected


@pytest.mark.skipif(sys.platform != "linux", reason="the load is read as Linux tells it")
def test_a_busy_process_is_noticed() -> None:
    code = "print('up', flush=True)\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as busy:
        assert busy.stdout is not None
        busy.stdout.readline()
        found = cli.running_elsewhere()
        busy.kill()
    assert found >= 1


def test_it_is_chosen_before_pytorch_is_imported() -> None:
    code = (
        "import sys, sde_diffusion_cli as start, sde_diffusion_cli.openmp as cli\n"
        "cli.choose_waiting = lambda: print('torch' in sys.modules)\n"
        "sys.argv = ['cli.py', 'train', '--sde', 'vpp']\n"
        "start.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "False\n"
    assert done.stderr.startswith("error: unknown sde 'vpp'")
