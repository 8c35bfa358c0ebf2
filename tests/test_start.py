"""The start of the command line: what is answered without PyTorch, by what name, and Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import click
import pytest

import sde_diffusion
from sde_diffusion.commands import cli
from sde_diffusion.sde import SDES
from sde_diffusion.solvers import SOLVERS
from sde_diffusion_cli.configs import shipped
from sde_diffusion_cli.declared import TABLE, build, version
from tools.command_table import text

ROOT = Path(__file__).parents[1]
MOST_MODULES = 180  # imported in all, those of Python among them; PyTorch alone has 1,500
CODE = """
import sys
sys.argv = sys.argv[1:]
import sde_diffusion_cli
try:
    sde_diffusion_cli.main()
finally:
    print(len(sys.modules), "torch" in sys.modules, "numpy" in sys.modules, file=sys.stderr)
"""


def start(
    *arguments: str, name: str = "sde-diffusion", **variables: str
) -> tuple[subprocess.CompletedProcess[str], str]:
    """Start the program in a process of its own; also the line on its modules."""
    command = [sys.executable, "-c", CODE, name, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | variables)
    return done, done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "code", "shown"),
    [
        (["--help"], 0, "Train a score model"),
        (["-h"], 0, "sde-diffusion train"),
        (["--version"], 0, sde_diffusion.__version__),
        *(([name, "--help"], 0, f"Usage: sde-diffusion {name}") for name in cli.commands),
        (["configs"], 0, "fashion_mnist_vp"),
        (["configs", "digits_vp"], 0, "data: digits"),
        ([], 2, "Usage:"),
        (["trian"], 2, "No such command 'trian'"),
        (["train", "--stepz", "3"], 2, "No such option"),
        (["train", "--steps", "many"], 2, "'many' is not a valid integer"),
        (["train", "--config", "fashion_mnist_pv"], 2, "did you mean 'fashion_mnist_vp'? known: celeba"),
        (
            ["train", "--config", "none/digits_vp.yaml"],
            2,
            "one of that name comes with the package: --config digits_vp",
        ),
        (["sample", "a", "b"], 2, "unexpected extra argument"),
        (["decode"], 2, "Missing option '--latents'"),
        (["import"], 2, "Missing argument 'PATH'"),
        (["likelihood", "--rtol"], 2, "requires an argument"),
        (["encode", "--split", "tset"], 2, "'tset' is not one of 'train', 'validation', 'test'"),
    ],
)
def test_it_is_answered_without_pytorch(arguments: list[str], code: int, shown: str) -> None:
    done, modules = start(*arguments)
    assert done.returncode == code
    assert shown in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    count, *heavy = modules.split()
    assert heavy == ["False", "False"]
    assert int(count) < MOST_MODULES


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("sde-diffusion lik", ["plain,likelihood"]),
        ("sde-diffusion train --st", ["plain,--steps"]),
        ("sde-diffusion train --config digits_v", ["plain,digits_ve", "plain,digits_vp", "file,digits_v"]),
        ("sde-diffusion encode --split t", ["plain,train", "plain,test"]),
    ],
)
def test_a_shell_completes_without_pytorch(words: str, expected: list[str]) -> None:
    variables = {"COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    done, modules = start(_SDE_DIFFUSION_COMPLETE="bash_complete", **variables)
    assert done.stdout.split() == expected
    assert modules.split()[1:] == ["False", "False"]


def test_the_table_of_commands_is_that_of_the_commands() -> None:
    assert TABLE.read_text(encoding="utf-8") == text(), "write it: python -m tools.command_table"
    assert version() == sde_diffusion.__version__


@pytest.mark.parametrize("name", [None, *cli.commands])
def test_it_shows_what_the_commands_themselves_show(name: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["sde-diffusion"])

    def shown(group: click.Group) -> str:
        outer = click.Context(group, info_name="sde-diffusion", **group.context_settings)
        command = group if name is None else group.commands[name]
        context = outer if name is None else click.Context(command, info_name=name, parent=outer)
        return command.get_help(context)

    assert shown(build(json.loads(TABLE.read_text(encoding="utf-8")))) == shown(cli)


def test_it_shows_the_rows_of_the_registries() -> None:
    assert f"{', '.join(SDES)}." in start("train", "--help")[0].stdout
    assert ", ".join(SOLVERS) in " ".join(start("sample", "--help")[0].stdout.split())


def test_the_program_has_the_name_by_which_it_was_started() -> None:
    for name, expected in (("/usr/bin/sde-diffusion", "sde-diffusion"), ("cli.py", "python cli.py")):
        page = start("train", "--help", name=name)[0].stdout
        assert f"Usage: {expected} train" in page
        assert f"  {expected} train --sde vp" in page
        assert ("python cli.py" in page, "sde-diffusion" in page) == (name == "cli.py", name != "cli.py")


@pytest.mark.parametrize("after", [0.05, 0.3, 1.0])
def test_ctrl_c_while_it_starts_is_silent(after: float) -> None:
    """Also in the midst of the imports, which take longer than a second on most machines."""
    code = (
        "import sys, sde_diffusion_cli as start\n"
        "print('up', flush=True)\n"
        "sys.argv = ['x', 'train', '--sde', 'vpp']\n"
        "start.main()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(after)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    assert (process.returncode, err) == (130, "") or "unknown sde" in err, "on a machine that was faster"


def test_the_configs_that_come_with_the_package_are_those_of_the_folder() -> None:
    assert {path.name for path in shipped().values()} == {path.name for path in (ROOT / "configs").glob("*.yaml")}


@pytest.mark.slow
def test_the_wheel_has_configs_and_the_table(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {f"sde_diffusion_cli/configs/{path.name}" for path in shipped().values()} <= set(names)
    assert {"sde_diffusion_cli/commands.json", "sde_diffusion/py.typed"} <= set(names)
