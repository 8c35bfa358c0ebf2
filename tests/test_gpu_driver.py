"""`make gpu`: pieces that fail, take too long or go on later, and what is carried away."""

import json
import os
import sys
import time
from pathlib import Path

import pytest
import torch

import sde_diffusion

sys.path.insert(0, str(Path(sde_diffusion.__file__).parents[1] / "benchmarks"))

import gpu
from gpu import AGAIN, Piece


def piece(name: str, code: str, minutes: float = 0.0) -> Piece:
    return Piece(name, ("-c", code), minutes)


def call(folder: Path, todo: list[Piece], minutes: float = 1.0, *more: str) -> int:
    own = ["--out", str(folder / "out"), "--work", str(folder / "work"), "--minutes", str(minutes), *more]
    return gpu.main(own, todo)


def states(folder: Path) -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = json.loads((folder / "out" / "state.json").read_text())["pieces"]
    return found


def test_a_failure_does_not_stop_the_others_and_is_tried_once_more(tmp_path: Path) -> None:
    todo = [piece("bad", "print('why'); raise SystemExit(3)"), piece("good", "print('fine')")]
    assert call(tmp_path, todo) == AGAIN
    assert {name: one["status"] for name, one in states(tmp_path).items()} == {"bad": "failed", "good": "done"}
    assert call(tmp_path, todo) == 1, "all was tried, and one piece failed"
    assert states(tmp_path)["bad"] | {"seconds": 0} == {"status": "failed", "code": 3, "failures": 2, "seconds": 0}
    log = (tmp_path / "out" / "log.txt").read_text()
    assert log.count("why") == 2 * 2, "the command and what it printed, twice"
    assert log.count("\nfine\n") == 1


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    file = tmp_path / "calls"
    todo = [piece("once", f"open({str(file)!r}, 'a').write('x')")]
    assert call(tmp_path, todo) == 0
    assert call(tmp_path, todo) == 0
    assert file.read_text() == "x"


def test_work_that_goes_on_is_called_until_it_is_done(tmp_path: Path) -> None:
    file = tmp_path / "calls"
    code = f"f = open({str(file)!r}, 'a+'); f.write('x'); f.seek(0); raise SystemExit(75 if len(f.read()) < 3 else 0)"
    assert call(tmp_path, [piece("long", code)]) == 0
    assert file.read_text() == "xxx"


def ends(status: Path, seconds: float) -> bool:
    """Whether a process that has been killed is gone, or waits to be taken note of, within `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if status.read_text().split()[2] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.02)
    return False


def test_a_piece_that_outlasts_the_call_is_stopped_with_its_children(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    child = "import time; time.sleep(60)"
    code = f"import subprocess, sys; c = subprocess.Popen([sys.executable, '-c', {child!r}]);"
    code += f"open({str(file)!r}, 'w').write(str(c.pid)); c.wait()"
    todo = [piece("slow", code), piece("next", "pass")]
    assert call(tmp_path, todo, 1.5 / 60) == AGAIN
    assert states(tmp_path)["slow"]["code"] == 124
    assert "next" not in states(tmp_path), "no time was left"
    assert ends(Path("/proc", file.read_text(), "stat"), seconds=5), "the child outlives its piece"
    assert call(tmp_path, todo, 1.5 / 60) == AGAIN
    assert states(tmp_path)["next"]["status"] == "done", "what failed comes last"


def test_a_piece_is_not_begun_with_too_little_time_left(tmp_path: Path) -> None:
    todo = [piece("first", "pass"), piece("large", "pass", minutes=5), piece("small", "pass")]
    assert call(tmp_path, todo) == AGAIN
    assert set(states(tmp_path)) == {"first", "small"}
    assert call(tmp_path, todo) == 0, "alone it is begun"


def test_one_that_had_too_little_time_has_not_failed(tmp_path: Path) -> None:
    todo = [piece("first", "pass"), piece("late", "import time; time.sleep(60)")]
    assert call(tmp_path, todo, 1.5 / 60) == AGAIN
    assert states(tmp_path)["late"]["status"] == "again"
    assert states(tmp_path)["late"]["failures"] == 0


def test_results_are_packed_flat_and_survive_the_working_files(tmp_path: Path) -> None:
    work = tmp_path / "work"
    write = "import json, os; os.makedirs({0!r}, exist_ok=True); json.dump({1}, open({0!r} + '/{2}.json', 'w'))"
    weights = f"open({str(work / 'reference' / 'w.safetensors')!r}, 'wb').write(b'0' * 9)"
    todo = [
        piece("one", write.format(str(work), {"a": 1}, "one")),
        piece("two", write.format(str(work / "reference"), {"b": 2}, "two") + f"; {weights}"),
    ]
    assert call(tmp_path, todo) == 0
    out = tmp_path / "out"
    assert json.loads((out / "results.json").read_text()) == {"one": {"a": 1}, "reference/two": {"b": 2}}
    assert sorted(os.listdir(out)) == ["log.txt", "results.json", "state.json", "w.safetensors"]
    (work / "one.json").unlink()
    assert call(tmp_path, todo) == 0
    assert "one" in json.loads((out / "results.json").read_text())


def test_a_result_that_a_kill_cut_short_is_left_out(tmp_path: Path) -> None:
    work = tmp_path / "work"
    assert call(tmp_path, [piece("cut", f"open({str(work / 'cut.json')!r}, 'w').write('[1, ')")]) == 0
    assert "cut" not in json.loads((tmp_path / "out" / "results.json").read_text())


def test_a_folder_of_another_device_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(tmp_path, [piece("one", "pass")]) == 0
    with pytest.raises(SystemExit) as error:
        call(tmp_path, [piece("one", "pass")], 1.0, "--device", "cpu", "--quick")
    assert error.value.code == 2
    assert "holds results of cuda, not of cpu_quick; choose another" in capsys.readouterr().err


def test_every_piece_is_bounded_and_its_script_is_named(tmp_path: Path) -> None:
    found = gpu.pieces("cpu", tmp_path, quick=True)
    assert len({one.name for one in found}) == len(found)
    assert all(0 < one.minutes <= 9 for one in found)
    for part in ("tests", "verify", "throughput-train-tiny-float32", "overhead", "train_reference"):
        assert part in {one.name for one in found}


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(gpu, "NEEDED", ("torch", "no_such_package"))
    with pytest.raises(SystemExit) as error:
        gpu.check_machine("cpu")
    assert error.value.code == 2
    assert "not installed: no_such_package: nothing runs without it" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_machine_without_cuda_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        gpu.check_machine("cuda")
    assert error.value.code == 2
    assert "PyTorch sees no CUDA device" in capsys.readouterr().err
