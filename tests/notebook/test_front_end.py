"""The browser's half, as text: it agrees with Python's half, and needs nothing from elsewhere."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from fewstep import notebook
from fewstep.notebook.studio import SETTINGS, Studio
from fewstep.testing import FakeEngine
from tests.notebook.conftest import half_mask, say

FOLDER = Path(notebook.__file__).parent
SCRIPT, STYLE = (FOLDER / "studio.js").read_text(), (FOLDER / "studio.css").read_text()


def test_both_halves_know_the_same_settings() -> None:
    (listed,) = re.findall(r"const SETTINGS = \[(.*?)\]", SCRIPT, re.DOTALL)
    assert tuple(re.findall(r'"(\w+)"', listed)) == SETTINGS


def test_it_reads_and_sets_what_there_is(fake: FakeEngine) -> None:
    synced = {*Studio().traits(sync=True)}
    assert {*re.findall(r'get\("(\w+)"\)', SCRIPT)} <= synced
    assert {*re.findall(r'(?:change|model\.set)\("(\w+)"', SCRIPT)} <= {*SETTINGS}


def test_python_does_all_that_it_asks_for(fake: FakeEngine) -> None:
    asked = {*re.findall(r'(?:send|improve)\("(\w+)"', SCRIPT)}
    assert {"draft", "refine", "vary", "inpaint", "stop", "show", "back", "set"} == asked
    studio = Studio("a fox", 1, "turbo", count=2)
    assert studio.wait(60)
    for action in asked:
        say(studio, action, number=0, mask=half_mask(128), settings={"picked": [0]})
        assert studio.problem == "", action


@pytest.mark.parametrize("text", [SCRIPT, STYLE], ids=["script", "style"])
def test_nothing_comes_from_elsewhere(text: str) -> None:
    addresses = set(re.findall(r"https?://[^\"'\s)]+", text))
    assert addresses <= {"http://www.w3.org/2000/svg"}  # a name, which nobody fetches
    for loads in (
        "import ",
        "import(",
        "@import",
        "@font-face",
        "url(",
        "fetch(",
        "XMLHttpRequest",
        "innerHTML",
    ):
        assert loads not in text


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node, to read the script")
def test_it_is_a_module_that_shows_a_widget() -> None:
    code = f"import face from {str(FOLDER / 'studio.js')!r}; console.log(Object.keys(face).join())"
    command = ["node", "--experimental-default-type=module", "--input-type=module", "-e", code]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.stdout.strip() == "render", ran.stderr
