"""What a batch leaves: data sets that others read, shards, pages, sheets, tables of jobs from others."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from PIL import Image

from fewstep import OutputError, RequestError, batch, metadata, testing
from fewstep.batch import page
from fewstep.batch.expand import PromptMaker, read_assignment, read_sweep
from fewstep.testing import FakeEngine
from tests import batch_crashes

ROWS: list[dict[str, Any]] = [
    {"prompt": f"a cat {i}", "mode": ("lcm", "turbo")[i % 2], "label": f"=l{i}"} for i in range(9)
]


@pytest.fixture(autouse=True)
def fake() -> Iterator[FakeEngine]:
    with testing.fake() as engine:
        yield engine


def draw(jobs: Any, out: Path, **options: Any) -> list[batch.Outcome]:
    return list(batch.run(jobs, out, **options))


def opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image


def test_imagefolder_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(ROWS, tmp_path / "out", keep=["label"], name="{mode}/{id}.png")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import datasets

        datasets.disable_progress_bars()
        table = datasets.load_dataset(
            "imagefolder", data_dir=str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache")
        )
        rows = list(table)
    assert [row["prompt"] for row in rows] == [row["prompt"] for row in ROWS]
    assert [row["label"] for row in rows] == [row["label"] for row in ROWS]
    assert {row["image"].size for row in rows} == {(128, 128)}


def test_webdataset_reads_shards(tmp_path: Path) -> None:
    outcomes = draw(ROWS, tmp_path, keep=["label"], tars=3, batch=2, name="{id}.{seed}.png")
    assert {outcome.state for outcome in outcomes} == {"drawn"}
    shards = sorted(tmp_path.glob("shard-*.tar"))
    assert len(shards) == 3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import webdataset

        samples = list(
            webdataset.WebDataset([str(path) for path in shards], shardshuffle=False).decode("pil")
        )
    assert sorted(sample["txt"] for sample in samples) == sorted(row["prompt"] for row in ROWS)
    for sample in samples:
        assert sample["png"].size == (128, 128)
        assert sample["json"]["options"]["prompt"] == sample["txt"]
    assert {outcome.state for outcome in draw(ROWS, tmp_path, keep=["label"], tars=3, batch=2)} == {"kept"}
    with pytest.raises(OutputError, match="give another folder"):
        draw([{"prompt": "of another job"}], tmp_path, tars=3)


def test_shards_of_runners_are_those_of_one(tmp_path: Path) -> None:
    draw(ROWS, tmp_path / "one", keep=["label"], tars=3, batch=2)
    for index in (2, 1):
        draw(ROWS, tmp_path / "two", keep=["label"], tars=3, batch=2, shard=(index, 2))
    assert batch_crashes.hashes(tmp_path / "one") == batch_crashes.hashes(tmp_path / "two")


class _Page(HTMLParser):
    """The pictures and the words of a page, as a browser has them."""

    def __init__(self, text: str):
        super().__init__()
        self.sources, self.tags, self.words = list[str](), list[str](), ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if tag == "img" and name == "src"]

    def handle_data(self, data: str) -> None:
        self.words += data


def test_the_page_is_pictures_and_escaped_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "PICTURES", 4)
    hostile = [
        "<script>alert(1)</script>",
        '"><img src=x onerror=alert(1)>',
        "' onmouseover=alert(1) '",
        "&lt;b&gt;",
    ]
    draw([{"prompt": text} for text in [*hostile, "a", "b"]], tmp_path, name="{id} #%.png")
    pages = [_Page((tmp_path / name).read_text()) for name in ("index.html", "index-2.html")]
    assert [len(one.sources) for one in pages] == [4, 2]
    assert "script" not in pages[0].tags
    assert pages[0].tags.count("img") == 4
    assert all(text in pages[0].words for text in hostile)
    from urllib.parse import unquote

    assert all((tmp_path / unquote(source)).is_file() for one in pages for source in one.sources)
    assert "default-src 'none'" in (tmp_path / "index.html").read_text()


def test_contact_sheets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "SHEET", (3, 2))
    draw(ROWS[:8], tmp_path / "out", keep=["label"], sheet=tmp_path / "sheet.png")
    sizes = [opened(tmp_path / name).size for name in ("sheet.png", "sheet-2.png")]
    assert sizes == [
        (3 * page.THUMB, 2 * (page.THUMB + page.LABEL)),
        (2 * page.THUMB, page.THUMB + page.LABEL),
    ]
    for sheet in (tmp_path / "out" / "sheet.png", tmp_path / "sheet.gif"):
        with pytest.raises(RequestError, match="sheet"):
            draw(ROWS, tmp_path / "out", keep=["label"], sheet=sheet)


def test_timings(tmp_path: Path) -> None:
    draw(ROWS, tmp_path, keep=["label"])
    table = pd.read_csv(tmp_path / "timings.csv")
    assert len(table) == 9
    assert (table["seconds"] >= 0).all()
    assert set(table["mode"]) == {"lcm", "turbo"}


@pytest.mark.parametrize("kind", [pd.DataFrame, pl.DataFrame, pa.table])
def test_tables(tmp_path: Path, kind: Any) -> None:
    table = kind({"prompt": ["a", "b", "c"], "seed": [1, 2, 3], "steps": [2, 1, 2]})
    assert [outcome.line for outcome in draw(table, tmp_path)] == [1, 3, 2]


def test_dynamic_prompts_are_the_same_every_time(tmp_path: Path) -> None:
    wildcards = tmp_path / "wildcards"
    wildcards.mkdir()
    (wildcards / "animal.txt").write_text("cat\nowl\n")
    rows = [{"prompt": "a {red|blue|green} __animal__, {2$$big|old|sad}"}]
    counts = [
        {outcome.state for outcome in draw(rows, tmp_path / "out", dynamic=5, wildcards=wildcards)}
        for _ in "ab"
    ]
    assert "drawn" in counts[0]
    assert counts[1] <= {"kept", "repeated"}
    prompts = [
        json.loads(line)["prompt"] for line in (tmp_path / "out" / "metadata.jsonl").read_text().splitlines()
    ]
    assert all("{" not in prompt and "__" not in prompt for prompt in prompts)
    every = PromptMaker("all", wildcards).make({"prompt": "a {red|blue} __animal__"})
    assert sorted(every) == ["a blue cat", "a blue owl", "a red cat", "a red owl"]
    with pytest.raises(RequestError, match="over 10000"):
        PromptMaker("all").make({"prompt": "{a|b|c|d|e|f|g|h|i|j}" * 5})
    with pytest.raises(RequestError, match="no folder"):
        PromptMaker(1, tmp_path / "nowhere")


def test_formats(tmp_path: Path) -> None:
    for ending, kind in (("jpg", "JPEG"), ("webp", "WEBP")):
        draw(ROWS[:2], tmp_path / ending, keep=["label"], name=f"{{id}}.{ending}", quality=80)
        paths = sorted((tmp_path / ending).glob(f"*.{ending}"))
        assert [opened(path).format for path in paths] == [kind, kind]
        assert metadata.read(paths[0])["prompts"][0] in ("a cat 0", "a cat 1")


def test_sweeps_are_read() -> None:
    assert read_sweep("seed=3..5") == ("seed", [3, 4, 5])
    assert read_sweep("mode=lcm,turbo") == ("mode", ["lcm", "turbo"])
    assert read_sweep('prompt=["a, b", "c"]') == ("prompt", ["a, b", "c"])
    assert read_sweep("guidance=1,2.5") == ("guidance", [1.0, 2.5])
    assert read_assignment("prompt=a=b") == ("prompt", "a=b")
    for text in ("seed", "=1", "seed=5..3", "prompt=[1", "seed=1..99999999"):
        with pytest.raises(RequestError):
            read_sweep(text)


def test_plan_says_what_a_run_would_do(fake: FakeEngine, tmp_path: Path) -> None:
    rows = [*ROWS, {"prompt": "x", "steps": 99}, ROWS[0]]
    planned = batch.plan(rows, keep=["label"], batch=4)
    assert (planned.lines, planned.pictures, planned.failed, planned.calls) == (11, 10, 1, 3)
    assert planned.faults[0].line == 10
    assert planned.engines == ("tiny, lcm", "tiny, turbo")
    assert planned.seconds is None
    assert fake.requests == []
    assert list(tmp_path.iterdir()) == []
    measured = batch.plan(rows, keep=["label"], measure=2)
    assert measured.seconds is not None
    assert measured.bytes > 0
    draw(ROWS[:5], tmp_path, keep=["label"])
    later = batch.plan(rows, tmp_path, keep=["label"])
    assert (later.kept, later.pictures, later.measured) == (5, 5, 5)
    assert json.dumps(later.to_dict())


def test_status(tmp_path: Path) -> None:
    draw(ROWS, tmp_path, keep=["label"])
    next(tmp_path.glob("*.png")).unlink()
    state = batch.status(tmp_path)
    assert (state.pictures, state.missing) == (8, 1)
    assert [(runner.running, runner.ended, runner.planned) for runner in state.runners] == [(False, True, 9)]
    with pytest.raises(OutputError, match="no batch"):
        batch.status(tmp_path / "nothing")
