"""The house rules of the source tree: floors, room sizes, and what may never appear."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fewstep

SRC = Path(__file__).parent.parent / "src" / "fewstep"
FILES = sorted(SRC.rglob("*.py"))

# Imports go down only: a module may import from lines above its own, and from its own.
FLOORS = (
    "errors",
    "cancel",
    "prompts",
    "schedulers",
    "samplers",
    "recipe",
    "picture",
    "limits",
    "request",
    "key",
    "devices",
    "weighting",
    "conditioning",
    "text",
    "denoiser",
    "runtimes",
    "codec",
    "models",
    "backends",
    "inspection",
    "metadata",
    "result",
    "progress",
    "calls",
    "loop",
    "checking",
    "engine",
    "api",
    "testing",
    "__init__",
    "arguments",
    "cli",
    "__main__",
)
ANNEXES = {"train", "evaluation"}
WORDS = FLOORS[: FLOORS.index("devices")]  # the floors that need no torch
FORBIDDEN_CALLS = {"eval", "exec", "print", "input", "breakpoint"}
FORBIDDEN_IMPORTS = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}


def room(path: Path) -> str:
    """The floor that a file belongs to."""
    return path.relative_to(SRC).parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> Iterator[str]:
    """Every module that a file imports at run time, anywhere in it."""
    for node in ast.walk(_without_type_checking(tree)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _without_type_checking(tree: ast.AST) -> ast.AST:
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = [ast.Pass()]
    return tree


def floors_used(path: Path) -> set[str]:
    names = (name.split(".") for name in imports(ast.parse(path.read_text())))
    used = {parts[1] for parts in names if parts[0] == "fewstep" and len(parts) > 1}
    return used & {*FLOORS, *ANNEXES}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_imports_go_down_only(path: Path) -> None:
    own = room(path)
    if own in ANNEXES:
        return
    above = set(FLOORS[FLOORS.index(own) + 1 :])
    above |= ANNEXES if own != "cli" else set()  # only the command's door leads to the annexes
    # `__init__` is a list of names, resolved when they are asked for.
    assert own == "__init__" or not floors_used(path) & above


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_rooms_stay_small(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert _lines(node) <= 40, f"{node.name} has {_lines(node)} lines"


def _lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Length without signature and docstring."""
    body = node.body[1:] if ast.get_docstring(node) is not None else node.body
    return (node.end_lineno or 0) - body[0].lineno + 1 if body else 0


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_nothing_forbidden(path: Path) -> None:
    tree = ast.parse(path.read_text())
    used = {name.split(".")[0] for name in imports(tree)}
    assert not used & FORBIDDEN_IMPORTS
    calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert "torch.load" not in calls
    allowed = {"print"} if room(path) == "cli" else set()
    assert not calls & (FORBIDDEN_CALLS - allowed)


def run_python(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_import_is_cheap_and_bare() -> None:
    code = (
        "import sys, time; t = time.process_time(); import fewstep; "
        "print(time.process_time() - t, 'torch' in sys.modules, 'diffusers' in sys.modules)"
    )
    best = min(float(run_python(code).split()[0]) for _ in range(3))
    assert best < 0.3  # seconds
    assert run_python(code).split()[1:] == ["False", "False"]


def test_only_public_names_are_listed() -> None:
    """Whatever has been imported."""
    assert [name for name in dir(fewstep) if not name.startswith("__")] == sorted(fewstep.__all__)


@pytest.mark.parametrize(
    "floor",
    [
        *WORDS,
        "backends",
        "checking",
        "inspection",
        "models.assets",
        "models.licences",
        "models.hub",
        "models.weights",
        "metadata",
        "result",
        "testing",
    ],
)
def test_words_need_no_torch(floor: str) -> None:
    code = f"import sys, fewstep.{floor}; print('torch' in sys.modules)"
    assert run_python(code) == "False"


def test_planning_needs_no_torch() -> None:
    code = (
        "import sys, fewstep; fewstep.plan('a fox', 4, 'turbo', model='sdxl'); print('torch' in sys.modules)"
    )
    assert run_python(code) == "False"


def test_import_changes_no_global() -> None:
    code = """
import logging, os, signal, sys, warnings
def look():
    root = logging.getLogger()
    return (root.level, list(root.handlers), list(warnings.filters), dict(os.environ), os.getcwd(),
            [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)], sys.excepthook, sys.stdout)
before = look()
import fewstep
print(look() == before)
"""
    assert run_python(code) == "True"
