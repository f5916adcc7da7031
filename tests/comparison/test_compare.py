"""`fewstep.compare`: lists are axes, cells are drawn engine by engine, mistakes stay in their cells."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterator
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import fewstep
from fewstep import Engine, GenerationError, RequestError, api, metadata
from fewstep.cancel import CancelToken
from fewstep.comparison import Comparison, Table, rmse
from fewstep.request.options import OPTIONS
from fewstep.testing import FakeEngine, fake

Load = Callable[..., Engine]


@pytest.fixture
def drawn() -> Iterator[FakeEngine]:
    with fake() as engine:
        yield engine


def settings(comparison: Comparison) -> list[tuple[Any, ...]]:
    return [tuple(cell.settings.values()) for cell in comparison.cells]


def test_it_takes_every_option_of_generate() -> None:
    parameters = signature(fewstep.compare).parameters
    own = {name: option.default for name, option in OPTIONS.items() if name not in ("count", "budget_ms")}
    assert {*parameters} == {"prompt", "steps", "mode", *own, "repeats", "cancel"}
    assert {name: parameters[name].default for name in own} == own


def test_pictures_are_those_of_generate(engine: Load, sdxl_folder: Path) -> None:
    place: Any = {"model": sdxl_folder, "device": "cpu", "precision": "fp32"}
    comparison = fewstep.compare("a red fox", [1, 2], ["turbo", "base"], seed=3, **place)
    for cell in comparison:
        assert cell.image is not None
        expected = engine(cell.settings["mode"]).generate("a red fox", cell.settings["steps"], seed=3)
        assert cell.image.tobytes() == expected[0].tobytes()
        assert cell.milliseconds > 0
    assert settings(comparison) == [("turbo", 1), ("turbo", 2), ("base", 1), ("base", 2)]


@pytest.mark.usefixtures("drawn")
def test_lists_are_axes() -> None:
    draw = fewstep.compare
    assert settings(draw("a fox", mode=["lcm", "turbo"])) == [("lcm",), ("turbo",)]
    assert settings(draw("a fox", (1, 2), seed=range(2))) == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert [*draw(["a fox", "an owl"], seed=1).axes] == ["prompt"]
    three = draw("a fox", [1, 4], ["turbo", "lcm"], seed=[5, 6, 7])
    assert ([*three.axes], len(three)) == (["mode", "steps", "seed"], 12)
    assert settings(draw("a fox", mode="lcm", guidance=[2, 3.5])) == [(2,), (3.5,)]
    assert settings(draw("a fox", vae=["", "tiny"], runtime=["eager"])) == [("", "eager"), ("tiny", "eager")]


@pytest.mark.usefixtures("drawn")
def test_what_is_a_list_itself_is_an_axis_as_a_list_of_lists() -> None:
    axes = fewstep.compare("a fox", loras=[[], ["fx"], [("fx", 0.5)]], steps=[1, 2], seed=1).axes
    assert [*axes["loras"]] == [[], ["fx"], [("fx", 0.5)]]
    levels = fewstep.compare("a fox", mode="lcm", timesteps=[[999], [999, 499]], seed=1)
    assert [cell.result.timesteps for cell in levels if cell.result] == [(999,), (999, 499)]
    assert [*fewstep.compare("a fox", [1, 2], loras=["fx"], seed=1).axes] == ["steps"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "nothing to compare: give a list"),
        ({"steps": []}, r"steps=\[\] has no values"),
        ({"steps": [1, 2, 1]}, "names a value twice"),
        (
            {"steps": [1], "seed": [1], "mode": ["lcm"], "guidance": [3]},
            "mode, guidance, steps, seed are lists: a",
        ),
        ({"seed": range(2000)}, "2000 pictures: at most 1024"),
        ({"mode": ["tubro", "lcn"]}, "'tubro' is not installed"),
        ({"steps": [1, 2], "repeats": 0}, "repeats=0: give a whole number"),
        ({"steps": [99, 999], "mode": "lcm"}, "steps=99 is outside"),
    ],
)
def test_mistakes_of_the_whole_are_refused_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        fewstep.compare("a fox", **options)


def test_mistakes_of_a_cell_stay_in_it(drawn: FakeEngine) -> None:
    comparison = fewstep.compare("a fox", [1, 8, 25], ["turbo", "base"], seed=1)
    errors = {tuple(cell.settings.values()): str(cell.error or "") for cell in comparison}
    assert {key for key, error in errors.items() if error} == {("turbo", 8), ("turbo", 25)}
    assert "steps=25 is outside what mode 'turbo' was made for" in errors["turbo", 25]
    rows = {(row["mode"], row["steps"]): row for row in comparison.table()}
    assert rows["turbo", 25]["error"] == errors["turbo", 25]
    assert math.isnan(rows["turbo", 25]["milliseconds"])
    assert len(drawn.requests) == 4 + 2  # and a first call of each engine


def test_errors_while_drawing_stay_in_their_cells() -> None:
    with fake(error=GenerationError("no luck")):
        comparison = fewstep.compare("a fox", [1, 2], seed=1)
        assert [str(cell.error) for cell in comparison] == ["no luck", "no luck"]
        assert comparison.sheet().width > 100
        with pytest.raises(RequestError, match="nothing to plot"):
            comparison.plot()


def test_an_engine_is_loaded_once_and_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []

    def load(choice: Any) -> FakeEngine:
        loaded.append(choice.recipe.mode)
        engine = FakeEngine(choice.recipe.mode)
        monkeypatch.setattr(engine, "close", lambda: loaded.append(f"{choice.recipe.mode} closed"))
        return engine

    with api.engines_from(load):
        comparison = fewstep.compare(["a fox", "an owl"], [1, 2], ["lcm", "turbo"], seed=1)
        order = [(cell.settings["mode"]) for cell in comparison]
    assert loaded == ["lcm", "lcm closed", "turbo", "turbo closed"]
    assert order == ["lcm"] * 4 + ["turbo"] * 4


def test_the_first_call_of_an_engine_is_not_timed(drawn: FakeEngine) -> None:
    (cell,) = fewstep.compare("a fox", [4], "lcm", seed=1, repeats=3)
    assert [request.steps for request in drawn.requests] == [1, 4, 4, 4]
    assert cell.milliseconds < 1000


def test_it_draws_while_it_is_read_and_once(drawn: FakeEngine) -> None:
    comparison = fewstep.compare("a fox", [1, 2, 3], "lcm", seed=1)
    assert (len(comparison), drawn.requests) == (3, [])
    cells = iter(comparison)
    first = next(cells)
    assert len(drawn.requests) == 2
    assert comparison.cell(steps=1) is first
    assert "1 of 3 cells" in repr(comparison)
    assert comparison.cell(steps=3).settings == {"steps": 3}
    assert [cell.settings["steps"] for cell in comparison] == [1, 2, 3]
    comparison.sheet(), comparison.table()
    assert len(drawn.requests) == 4
    with pytest.raises(RequestError, match="0 cells have"):
        comparison.cell(steps=9)


@pytest.mark.usefixtures("drawn")
def test_cancelling_keeps_what_is_drawn() -> None:
    token = CancelToken()
    comparison = fewstep.compare("a fox", [1, 2, 3], "lcm", seed=1, cancel=token)
    cells = iter(comparison)
    next(cells)
    token.cancel()
    with pytest.raises(fewstep.GenerationCancelledError):
        next(cells)
    assert [cell.settings["steps"] for cell in comparison] == [1]
    assert len(comparison.table()) == 1
    assert comparison.sheet().width > 300  # with two cells that are not drawn
    with pytest.raises(fewstep.FewstepError, match="is not drawn"):
        comparison.cell(steps=3)


def test_one_seed_is_drawn_for_all(drawn: FakeEngine) -> None:
    seeds = {row["seed"] for row in fewstep.compare("a fox", [1, 2], ["lcm", "turbo"]).table()}
    assert len(seeds) == 1
    assert {request.seeds[0] for request in drawn.requests if request.steps == 2} == seeds


@pytest.mark.usefixtures("drawn")
def test_distances_are_to_the_costliest_cell_of_the_same_seed() -> None:
    comparison = fewstep.compare("a fox", [1, 4], ["turbo", "base"], seed=[1, 2])
    rows = {(row["mode"], row["steps"], row["seed"]): row["distance"] for row in comparison.table()}
    assert rows["base", 4, 1] == rows["base", 4, 2] == 0
    near, far = (comparison.cell(mode=mode, steps=4, seed=2).image for mode in ("turbo", "base"))
    assert near is not None
    assert far is not None
    assert rows["turbo", 4, 2] == rmse(near, far) > 0
    rows = {
        tuple(row.values())[:3]: row["distance"] for row in comparison.table({"mode": "turbo", "steps": 1})
    }
    assert rows["turbo", 1, 1] == rows["turbo", 1, 2] == 0
    rows = {tuple(row.values())[:3]: row["distance"] for row in comparison.table({"seed": 1})}
    assert rows["turbo", 1, 1] == 0 < rows["turbo", 1, 2]
    assert comparison.table(far, lambda one, other: float(one is other))[0]["distance"] == 0
    for against, message in (({"modes": "lcm"}, "choose from the axes, mode"), ({"steps": 3}, "is no cell")):
        with pytest.raises(RequestError, match=message):
            comparison.table(against)


def test_rmse_is_of_colours_and_of_any_size() -> None:
    black, white = (Image.new("RGB", (300, 200), colour) for colour in ("black", "white"))
    assert rmse(black, white) == 1
    assert rmse(black, black.resize((150, 100))) == 0
    assert rmse(black, Image.new("L", (30, 20), 51)) == pytest.approx(0.2)


@pytest.mark.usefixtures("drawn")
def test_what_is_saved(tmp_path: Path) -> None:
    comparison = fewstep.compare("a fox", [1, 25], ["turbo", "base"], seed=1)
    png, table = comparison.save(tmp_path / "fox.png")
    assert (png.name, table.name) == ("fox.png", "fox.csv")
    rows = [*csv.DictReader(io.StringIO(table.read_text()))]
    assert [*rows[0]] == ["mode", "steps", "seed", "milliseconds", "distance", "error"]
    assert len(rows) == 4
    assert (rows[1]["milliseconds"], rows[3]["distance"]) == ("", "0.0")
    facts = metadata.read(png)["comparison"]
    assert [(fact["mode"], fact["steps"]) for fact in facts] == [("turbo", 1), ("base", 1), ("base", 25)]
    for name in ("fox.png", "fox.csv"):
        (tmp_path / "other.csv").write_text("mine")
        with pytest.raises(fewstep.OutputError, match="exists"):
            comparison.save(tmp_path / name.replace("fox.csv", "other.png"))
    comparison.save(tmp_path / "fox.png", overwrite=True)
    with pytest.raises(fewstep.OutputError, match="sheets are saved as PNG"):
        comparison.save(tmp_path / "fox.jpg")


@pytest.mark.usefixtures("drawn")
def test_notebooks_show_sheet_and_table() -> None:
    comparison = fewstep.compare(["<b>", "an owl"], [1], seed=1)
    page = comparison._repr_html_()
    assert page.count("data:image/png") == 1
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    assert "<th>milliseconds</th>" in page
    assert (Table().csv(), Table().text()) == ("", "")


@pytest.mark.usefixtures("drawn")
def test_the_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    comparison = fewstep.compare("a fox", [1, 4], ["turbo", "lcm", "base"], seed=1)
    assert comparison.plot(path=tmp_path / "plot.png").size == (800, 520)
    with Image.open(tmp_path / "plot.png") as plot:
        assert plot.size == (800, 520)
    monkeypatch.setattr("fewstep.comparison.plot.find_spec", lambda _: None)
    with pytest.raises(fewstep.FewstepError, match=r"pip install 'fewstep\[plot\]'"):
        comparison.plot()
