"""The notebook runs from top to bottom in a kernel of its own, and shows what it says."""

from __future__ import annotations

import io
import subprocess
import sys
from base64 import b64decode
from pathlib import Path
from typing import Any

import nbformat
import pytest
from PIL import Image

NOTEBOOK = Path(__file__).parent.parent / "examples" / "tour.ipynb"
RUN = """
import sys, nbformat, nbclient
notebook = nbformat.read(sys.argv[1], as_version=4)
nbclient.execute(notebook, timeout=240)
nbformat.write(notebook, sys.argv[2])
"""


def shown(cell: Any, kind: str) -> list[str]:
    """What a cell displayed, of one kind."""
    return [output.data[kind] for output in cell.outputs if kind in output.get("data", {})]


def printed(cell: Any) -> str:
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """The notebook's code with what it gave; run in a process of its own, as its sockets are."""
    notebook: Any = nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]
    assert not any(cell.get("outputs") for cell in notebook.cells)  # kept clean in git
    done = tmp_path_factory.mktemp("notebook") / "done.ipynb"
    subprocess.run([sys.executable, "-c", RUN, NOTEBOOK, done], check=True, timeout=280)
    executed: Any = nbformat.read(done, as_version=4)  # type: ignore[no-untyped-call]
    return [cell for cell in executed.cells if cell.cell_type == "code"]


def test_a_result_shows_its_pictures(cells: list[Any]) -> None:
    (page,) = shown(cells[0], "text/html")
    assert page.count("data:image/png") == 2
    assert "grinning face" in page


def test_a_grid_is_a_picture(cells: list[Any]) -> None:
    for cell, size in ((cells[1], (512, 256)), (cells[5], (512, 128))):
        (png,) = shown(cell, "image/png")
        assert Image.open(io.BytesIO(b64decode(png))).size == size


def test_previews_come_with_every_step(cells: list[Any]) -> None:
    assert len(set(shown(cells[2], "image/png"))) == 8


def test_calls_stop(cells: list[Any]) -> None:
    assert "cancelled by its CancelToken" in printed(cells[3])
    assert "the task was cancelled" in printed(cells[4])


def test_the_story_goes_from_drafts_to_a_large_picture(cells: list[Any]) -> None:
    """Drafts, refined, inpainted, enlarged: each on its sheet, the last alone, with its parents."""
    sizes = []
    for cell in cells[6:10]:
        (png,) = shown(cell, "image/png")
        sizes.append(Image.open(io.BytesIO(b64decode(png))).size)
    assert sizes[0][0] > 8 * 128
    assert sizes[3] == (256, 256)
    assert printed(cells[9]) == "[('base', 8), ('base', 4), ('turbo', 1)]\n"


def test_nothing_is_said_on_stderr(cells: list[Any]) -> None:
    assert [out.text for cell in cells for out in cell.outputs if out.get("name") == "stderr"] == []
