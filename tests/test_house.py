"""The house rules of the source tree: floors, circles, sizes, and what may never appear."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from types import ModuleType

import pytest

import fewstep

SRC = Path(__file__).parent.parent / "src" / "fewstep"
FILES = sorted(SRC.rglob("*.py"))

# Imports go down only: files and folders of the package, from the ground up.
FLOORS = (
    "errors", "cancel", "streaming", "progress", "values", "noise_process",
    "files",  # untrusted bytes
    "schedulers", "samplers", "recipe", "prompts", "images",
    "catalog", "modes", "inspection", "request",  # words
    "torch_state", "devices", "denoiser", "tiles", "architectures",  # matter, torch
    "runtimes", "codec", "loading", "addons",
    "upscaling", "metadata", "workflow", "result", "saved", "loop", "engine_base", "engine", "budget",
    "engine_cache", "api", "reproduction",  # running
    "testing", "checking", "batch", "comparison", "notebook", "__init__", "bench",  # doors
    "train", "evaluation",  # annexes
    "cli", "__main__",
)  # fmt: skip
ANNEXES = {"train", "evaluation"}
WITHOUT_TORCH = (
    *FLOORS[: FLOORS.index("torch_state")], "checking", "metadata", "workflow", "result", "saved", "testing",
    "engine_base", "engine_cache", "api", "batch", "budget", "comparison", "notebook",
)  # fmt: skip
FORBIDDEN_CALLS = {"eval", "exec", "print", "input", "breakpoint"}
FORBIDDEN_IMPORTS = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}

# A file is a thing that a user or a paper has a word for: 60 to 400 lines, but for modes, faces, and these.
LEAST, MOST = 60, 400
SMALL = {
    "__main__.py",
    "progress.py",  # a bar
    "runtimes/eager.py",  # the runtime that all others are held to
    "architectures/sdxl.py", "architectures/sd.py",  # one small table each
    "train/outputs.py",
    "catalog/runtimes.py",
    "metadata/xmp.py",  # one packet
    "batch/points.py",  # names of moments
    "cli/inspect.py",  # three commands that ask and print
}  # fmt: skip
# Public calls name every choice: an editor completes from them.
MANY_PARAMETERS = {"generate", "load", "save", "check", "compare", "refine", "inpaint", "_step_to_level"}


def module(path: Path) -> str:
    """A file's dotted name within the package; a folder's face is the folder."""
    parts = path.relative_to(SRC).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


MODULES = {module(path): path for path in FILES}


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, anywhere in it, for types too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@cache
def graph() -> Mapping[str, set[str]]:
    """Each module of the package → those that it imports."""
    found: dict[str, set[str]] = {}
    for name, path in MODULES.items():
        inner = (target.removeprefix("fewstep.") for target in imports(path) if target.startswith("fewstep."))
        known = (n if n in MODULES else n.rpartition(".")[0] for n in inner)
        found[name] = {target for target in known if target in MODULES and target != name}
    found["__init__"] = set()  # a list of names, resolved when they are asked for
    return found


def test_every_file_has_a_floor() -> None:
    assert {name.split(".")[0] for name in MODULES} == set(FLOORS)


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_down_only(name: str) -> None:
    own = FLOORS.index(name.split(".")[0])
    above = {target for target in graph()[name] if FLOORS.index(target.split(".")[0]) > own}
    assert not above


@pytest.mark.parametrize(
    "name", [name for name in MODULES if name.split(".")[0] not in {*ANNEXES, "cli", "__main__"}]
)
def test_only_the_command_leads_to_the_annexes(name: str) -> None:
    assert not {target for target in graph()[name] if target.split(".")[0] in ANNEXES}


def test_no_circles() -> None:
    """Within a folder too, and counting what is imported for types alone."""
    try:
        TopologicalSorter(graph()).prepare()
    except CycleError as error:
        pytest.fail(f"these import each other: {error.args[1]}")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_files_are_neither_crumbs_nor_heaps(path: Path) -> None:
    lines, name = path.read_text().count("\n"), str(path.relative_to(SRC))
    assert lines <= MOST
    free = path.name == "__init__.py" or path.parent.name == "modes" or name in SMALL
    assert free or lines >= LEAST


def test_no_exception_is_needless() -> None:
    assert {name for name in SMALL if (SRC / name).read_text().count("\n") < LEAST} == SMALL


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_functions_stay_small(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert _lines(node) <= 40, f"{node.name} has {_lines(node)} lines"
            given = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            count = len([name for name in given if name not in ("self", "cls")])
            assert count <= 6 or node.name in MANY_PARAMETERS, f"{node.name} has {count} parameters"


def _lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Length without signature and docstring."""
    body = node.body[1:] if ast.get_docstring(node) is not None else node.body
    return (node.end_lineno or 0) - body[0].lineno + 1 if body else 0


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_nothing_forbidden(path: Path) -> None:
    tree = ast.parse(path.read_text())
    used = {name.split(".")[0] for name in imports(path)}
    assert not used & FORBIDDEN_IMPORTS
    calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert "torch.load" not in calls
    allowed = {"print"} if path.parent.name == "cli" else set()
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
    public = {*fewstep.__all__, *fewstep._MODULES}
    assert [name for name in dir(fewstep) if not name.startswith("__")] == sorted(public)
    assert all(isinstance(fewstep.__getattr__(name), ModuleType) for name in fewstep._MODULES)


def test_words_need_no_torch() -> None:
    """Each module alone, in one process: none of them brings torch."""
    words = [
        name for name in MODULES
        if name.split(".")[0] in WITHOUT_TORCH and name != "__init__"
    ]  # fmt: skip
    code = f"""
import importlib, sys
for name in {words!r}:
    importlib.import_module("fewstep." + name)
    if "torch" in sys.modules:
        print(name)
        break
"""
    assert run_python(code) == ""


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
