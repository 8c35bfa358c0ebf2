"""The rules of the house, read from the source: who may import whom, and what may not appear at all."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import sde_diffusion
from sde_diffusion.sde import SDES

ROOT = Path(sde_diffusion.__file__).parent
MODULES = {".".join(("sde_diffusion", *p.relative_to(ROOT).with_suffix("").parts)): p for p in ROOT.rglob("*.py")}

# a module imports from lower ranks or from its own package
RANKS = {
    "docstrings": -1, "errors": -1, "fields": -1, "version": -1,
    "bin_mass": 0, "registry": 0, "rng": 0, "slerp": 0, "tensors": 0,
    "networks": 1, "pretrained": 1, "runtime": 1, "sde": 1,
    "arguments": 2, "grids": 2, "score": 2,
    "classifier": 3, "guidance": 3, "losses": 3, "model": 3, "oracle": 3, "projections": 3,
    "solvers.base": 3, "solvers.failures": 3, "solvers.noise": 3, "solvers.process": 3,
    "data": 4, "solvers": 4,
    "likelihood": 5, "pictures": 5, "sampling": 5,
    "training": 6,
    "config": 7,
    "checkpoints": 8,
    "continuing": 9, "exchange": 9, "verify": 9,
    "densities": 9, "guided": 9, "inference": 10, "api": 11,
    "commands": 12,
}  # fmt: skip


def place(module: str) -> str:
    """The most specific entry of `RANKS` for a module, without the package's own name."""
    name = module.removeprefix("sde_diffusion.").removesuffix(".__init__")
    while name not in RANKS and "." in name:
        name = name.rpartition(".")[0]
    return name


def parse(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text())


def imports(tree: ast.Module) -> Iterator[str]:
    """The full names of all modules imported, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own(module: str) -> Iterator[str]:
    """The modules of this package that a module imports."""
    for name in imports(parse(module)):
        if name in MODULES:
            yield name
        elif f"{name}.__init__" in MODULES and name != "sde_diffusion":
            yield f"{name}.__init__"


def calls(tree: ast.Module) -> Iterator[tuple[str, ast.Call]]:
    """Every call with the text of what is called."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


@pytest.fixture(params=sorted(MODULES))
def module(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_every_module_has_a_rank(module: str) -> None:
    assert module == "sde_diffusion.__init__" or place(module) in RANKS, f"give {module} a rank in `RANKS`"


def test_imports_go_down(module: str) -> None:
    if module == "sde_diffusion.__init__":  # the public face may name anything
        return
    here, package = place(module), module.split(".")[1]
    for target in own(module):
        there = place(target)
        assert RANKS[there] < RANKS[here] or target.split(".")[1] == package, f"{module} must not import {target}"


def test_no_process_is_told_by_its_type(module: str) -> None:
    """What differs between processes is a formula of theirs."""
    names = {cls.__name__ for cls in SDES.values()} | {"SDE"}
    for function, call in calls(parse(module)):
        if function in ("isinstance", "issubclass", "type"):
            assert not (names | {"sde"}) & {n.id for n in ast.walk(call) if isinstance(n, ast.Name)}, ast.unparse(call)


def test_the_library_does_not_print(module: str) -> None:
    if place(module) != "commands":
        assert "print" not in {function for function, _ in calls(parse(module))}


def test_nothing_is_unpickled(module: str) -> None:
    tree = parse(module)
    assert not {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve"} & {
        name.split(".")[0] for name in imports(tree)
    }
    for function, call in calls(tree):
        restricted = place(module) == "exchange" and ast.unparse(call).endswith("weights_only=True)")
        assert function not in ("torch.load", "torch.save") or restricted, ast.unparse(call)
        assert "allow_pickle=True" not in ast.unparse(call)


def forked(tree: ast.Module) -> set[ast.AST]:
    """Everything inside `with torch.random.fork_rng(…)`, which gives the global generator back as it was."""
    return {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.With) and any("fork_rng" in ast.unparse(item.context_expr) for item in node.items)
        for inner in ast.walk(node)
    }


def test_no_global_random_numbers(module: str) -> None:
    """Numbers come from generators that are passed in; what only the global one can seed is forked."""
    tree = parse(module)
    inside = forked(tree)
    for function, call in calls(tree):
        if function in ("torch.manual_seed", "torch.seed", "random.seed", "np.random.seed"):
            assert call in inside, ast.unparse(call)
        if function in ("torch.rand", "torch.randn", "torch.randint", "torch.randperm", "torch.multinomial"):
            assert "generator" in {keyword.arg for keyword in call.keywords}, ast.unparse(call)
