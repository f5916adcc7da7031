"""`fewstep compare` writes a sheet and a table, and says what it draws."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from fewstep import cli
from fewstep.testing import FakeEngine, fake


@pytest.fixture(autouse=True)
def drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeEngine]:
    monkeypatch.chdir(tmp_path)
    with fake() as engine:
        yield engine


def test_a_sheet_and_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compare", "a cat", "--mode", "turbo,lcm,base", "--steps", "1, 8", "--seed", "3"]
    assert cli.main([*words, "-o", "cats.png", "--plot", "plot.png"]) == 0
    printed, told = capsys.readouterr()
    assert printed.splitlines()[-3:] == ["cats.png", "cats.csv", "plot.png"]
    assert "mode turbo, steps 8: steps=8 is outside what mode 'turbo' was made for" in told
    with Image.open("cats.png") as sheet, Image.open("plot.png") as plot:
        assert (sheet.width > 256, plot.size) == (True, (800, 520))
    with Path("cats.csv").open(newline="") as file:
        rows = [*csv.DictReader(file)]
    assert [(row["mode"], row["steps"]) for row in rows][:3] == [("turbo", "1"), ("turbo", "8"), ("lcm", "1")]
    assert cli.main([*words, "-o", "cats.png"]) == 73
    assert cli.main([*words, "-o", "cats.png", "--overwrite", "-q"]) == 0


def test_axes_of_every_kind(drawn: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compare", "a cat", "an owl", "--lora", "none,fx,fx:0.5", "--guidance", "2,3.5", "--mode", "lcm"]
    assert cli.main([*words, "--json", "-q", "--against", "loras=none,guidance=2"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 12
    assert [row["loras"] for row in rows if row["distance"] == 0] == ["none", "none"]
    assert {request.loras for request in drawn.requests} == {(), (("fx", 1.0),), (("fx", 0.5),)}


def test_what_distances_are_to(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compare", "a cat", "--steps", "1,2", "--seed", "1", "-q", "--json"]
    assert cli.main([*words, "-o", "a.png", "--against", "steps=1"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["distance"] == 0
    Image.new("RGB", (64, 64)).save("black.png")
    assert cli.main([*words, "-o", "b.png", "--against", "black.png"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["distance"] > 0
    assert cli.main([*words, "-o", "c.png", "--against", "steps=x"]) == 2
    assert "give a whole number" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a cat"], "nothing to compare"),
        (["a cat", "--mode", "tubro,lcn"], "did you mean mode='turbo'"),
        (["a cat", "--steps", "1,x"], "--steps 'x': give a whole number"),
        (["--steps", "1,2"], "the prompt is missing"),
        (["a cat", "--steps", "1,2", "-o", "x.txt"], "pictures are saved as"),
        (["a cat", "--steps", "1,2", "-o", "nowhere/x.png"], "there is no folder"),
    ],
)
def test_mistakes_are_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compare", *words]) != 0
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1
