"""Jobs become pictures, each exactly once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import fewstep
from fewstep import GenerationError, OutputError, RequestError, batch, metadata, testing
from fewstep.batch import Outcome, points
from fewstep.errors import Failure, FewstepError
from fewstep.testing import FakeEngine
from tests import batch_crashes


@pytest.fixture
def fake() -> Iterator[FakeEngine]:
    with testing.fake() as engine:
        yield engine


def states(outcomes: Any) -> dict[str, int]:
    counted: dict[str, int] = {}
    for outcome in outcomes:
        counted[outcome.state] = counted.get(outcome.state, 0) + 1
    return counted


def records(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]


def test_lines_become_pictures_in_few_calls(fake: FakeEngine, tmp_path: Path) -> None:
    rows = [{"prompt": f"a {i}", "mode": ("lcm", "turbo")[i % 2], "seed": i} for i in range(10)]
    assert states(batch.run(rows, tmp_path)) == {"drawn": 10}
    assert [(request.mode, len(request.seeds)) for request in fake.requests] == [("lcm", 5), ("turbo", 5)]
    listed = records(tmp_path)
    assert [record["seed"] for record in listed] == list(range(10))
    for record in listed:
        facts = metadata.read(tmp_path / record["file_name"])
        assert facts["prompts"] == [record["prompt"]]
        assert facts["seeds"] == [record["seed"]]
    assert states(batch.run(rows, tmp_path)) == {"kept": 10}
    assert len(fake.requests) == 2


def test_a_picture_is_that_of_generate(tmp_path: Path) -> None:
    list(batch.run([{"prompt": "a red heart, flat style", "seed": 3, "steps": 2, "id": "heart"}], tmp_path))
    alone = fewstep.generate("a red heart, flat style", 2, seed=3)
    with Image.open(tmp_path / "heart.png") as image:
        assert image.tobytes() == alone[0].tobytes()
    assert (tmp_path / "heart.png").read_bytes() == alone.png()


def test_bad_lines_stop_nobody(fake: FakeEngine, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": "b", "steps": 99}\nx\n{"steps": 1}\n{"prompt": "c"}\n')
    out = tmp_path / "out"
    outcomes = list(batch.run(path, out))
    assert [outcome.line for outcome in outcomes if outcome.state == "failed"] == [2, 3, 4]
    assert states(outcomes) == {"drawn": 2, "failed": 3}
    assert [json.loads(line)["line"] for line in (out / "failed.jsonl").read_text().splitlines()] == [2, 3, 4]
    with pytest.raises(FewstepError, match="line 2: steps=99"):
        list(batch.run(path, tmp_path / "strict", strict=True))


def test_equal_lines_are_several_pictures_unless_they_say_the_seed(fake: FakeEngine, tmp_path: Path) -> None:
    rows = [{"prompt": "a"}, {"prompt": "a"}, {"prompt": "a", "seed": 1}, {"prompt": "a", "seed": 1}]
    outcomes = list(batch.run(rows, tmp_path))
    assert states(outcomes) == {"drawn": 3, "repeated": 1}
    assert len({record["seed"] for record in records(tmp_path)}) == 3
    more = [{"prompt": "new"}, *rows]
    assert states(batch.run(more, tmp_path)) == {"kept": 3, "repeated": 1, "drawn": 1}


def test_ids(fake: FakeEngine, tmp_path: Path) -> None:
    rows = [{"prompt": "a", "id": "x"}, {"prompt": "b", "id": "x"}, {"prompt": "c", "id": "y", "count": 2}]
    outcomes = list(batch.run(rows, tmp_path))
    assert states(outcomes) == {"drawn": 3, "failed": 1}
    assert {path.name for path in tmp_path.glob("*.png")} == {"x.png", "y-0.png", "y-1.png"}
    changed = list(batch.run([{"prompt": "another", "id": "x"}], tmp_path))
    assert changed[0].state == "failed"
    assert "delete that file" in changed[0].reason
    (tmp_path / "x.png").unlink()
    assert states(batch.run([{"prompt": "another", "id": "x"}], tmp_path)) == {"drawn": 1}


def test_set_and_sweep(fake: FakeEngine, tmp_path: Path) -> None:
    options: batch.BatchOptions = {
        "set": {"steps": 2},
        "sweep": {"mode": ["lcm", "turbo"], "seed": range(1, 4)},
    }
    assert states(batch.run([{"prompt": "a", "steps": 1}], tmp_path, **options)) == {"drawn": 6}
    listed = records(tmp_path)
    assert [(r["mode"], r["seed"], r["steps"]) for r in listed] == [
        (mode, seed, 2) for mode in ("lcm", "turbo") for seed in (1, 2, 3)
    ]


def test_what_it_wrote_may_be_jobs_again(fake: FakeEngine, tmp_path: Path) -> None:
    rows = [
        {"prompt": "a", "loras": [["fx", 0.5]], "label": "red"},
        {"prompt": "b", "mode": "base", "label": "blue"},
    ]
    list(batch.run(rows, tmp_path / "one", keep=["label"]))
    list(batch.run(tmp_path / "one" / "metadata.jsonl", tmp_path / "two", keep=["label"]))
    assert batch_crashes.hashes(tmp_path / "one") == batch_crashes.hashes(tmp_path / "two")


def test_a_picture_that_fails_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = FakeEngine.run

    def failing(engine: FakeEngine, job: Any, **keywords: Any) -> Any:
        result = run(engine, job, **keywords)
        bad = [place for place, prompt in enumerate(job.request.prompts) if prompt == "bad"]
        if "worse" in job.request.prompts:
            raise RuntimeError("of the library")
        if bad:
            failures = [Failure(picture=place, seed=1, stage="VAE", reason="not finite") for place in bad]
            kept = [place for place in range(len(result)) if place not in bad]
            survivors = replace(result.only(kept), places=tuple(kept))
            raise GenerationError("some", failures, survivors if kept else None)
        return result

    monkeypatch.setattr(FakeEngine, "run", failing)
    rows: list[dict[str, Any]] = [{"prompt": prompt} for prompt in ("a", "bad", "b")]
    rows += [{"prompt": prompt, "steps": 2} for prompt in ("c", "worse", "d")]
    with testing.fake():
        outcomes = list(batch.run(rows, tmp_path))
    reasons = {outcome.line: outcome.reason for outcome in outcomes if outcome.state == "failed"}
    assert reasons == {2: "not finite", 5: "RuntimeError: of the library"}
    assert states(outcomes) == {"drawn": 4, "failed": 2}
    with testing.fake():
        monkeypatch.setattr(FakeEngine, "run", run)
        assert states(batch.run(rows, tmp_path)) == {"kept": 4, "drawn": 2}


def test_models_that_are_not_here(fake: FakeEngine, tmp_path: Path) -> None:
    rows = [{"prompt": "a", "model": "no/where.safetensors"}, {"prompt": "b"}]
    assert states(batch.run(rows, tmp_path)) == {"drawn": 1, "failed": 1}


def test_a_full_disk_stops_it_and_it_goes_on(
    fake: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"prompt": f"a {i}"} for i in range(8)]
    list(batch.run(rows, tmp_path / "reference", batch=2))
    for point in ("file half written", "manifest half written", "files in place", "data set half written"):
        for time_of in (1, 2):
            count = 0

            def reached(name: str, point: str = point, time_of: int = time_of) -> None:
                nonlocal count
                count += name == point
                if name == point and count == time_of:
                    raise OSError(28, "No space left on device")

            out = tmp_path / f"{point} {time_of}"
            monkeypatch.setattr(points, "listener", reached)
            with pytest.raises(OSError, match="No space left"):
                list(batch.run(rows, out, batch=2))
            monkeypatch.setattr(points, "listener", str)
            list(batch.run(rows, out, batch=2))
            batch_crashes.check(out, batch_crashes.hashes(tmp_path / "reference"))


def test_the_folder_cannot_be(fake: FakeEngine, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        list(batch.run([{"prompt": "a"}], tmp_path / "file"))


def test_cancel(fake: FakeEngine, tmp_path: Path) -> None:
    token = fewstep.CancelToken()
    rows = [{"prompt": f"a {i}"} for i in range(6)]
    outcomes = batch.run(rows, tmp_path, batch=1, cancel=token)
    next(outcomes)
    token.cancel()
    with pytest.raises(fewstep.GenerationCancelledError):
        list(outcomes)
    assert states(batch.run(rows, tmp_path, batch=1))["drawn"] < 6
    assert len(list(tmp_path.glob("*.png"))) == 6


def test_four_runners_draw_the_same_set(fake: FakeEngine, tmp_path: Path) -> None:
    rows = batch_crashes.jobs(20)
    list(batch.run(rows, tmp_path / "one", batch=3))
    counts = [
        states(batch.run(rows, tmp_path / "four", batch=3, shard=(i, 4)))["drawn"] for i in (1, 2, 3, 4)
    ]
    assert sum(counts) == 19
    assert all(counts)
    ours = {
        "failed-1-of-4.jsonl",
        "failed-2-of-4.jsonl",
        "failed-3-of-4.jsonl",
        "failed-4-of-4.jsonl",
        "failed.jsonl",
    }
    four, one = (batch_crashes.hashes(tmp_path / name) for name in ("four", "one"))
    assert {n: h for n, h in four.items() if n not in ours} == {n: h for n, h in one.items() if n not in ours}


def test_a_stream_is_drawn_before_its_end(fake: FakeEngine, tmp_path: Path) -> None:
    outcomes: list[Outcome] = []

    def rows() -> Iterator[dict[str, Any]]:
        for i in range(7):
            yield {"prompt": f"a {i}", "mode": ("lcm", "turbo")[i % 2]}
            assert i < 6 or any(outcome.state == "drawn" for outcome in outcomes)

    outcomes.extend(())
    for outcome in batch.run(rows(), tmp_path, window=3):
        outcomes.append(outcome)
    assert states(outcomes) == {"drawn": 7}


@pytest.mark.parametrize(
    "change",
    [
        lambda: {"batch": -1}, lambda: {"window": True}, lambda: {"shard": (3, 2)}, lambda: {"quality": 101},
        lambda: {"name": "{nope}.png"}, lambda: {"set": {"stepz": 1}}, lambda: {"sweep": {"seed": []}},
        lambda: {"sweep": {"id": ["a"]}}, lambda: {"keep": ["prompt"]}, lambda: {"read_as": "xml"},
        lambda: {"dynamic": -1}, lambda: {"bach": 1},
    ],
)  # fmt: skip
def test_bad_settings(tmp_path: Path, change: Callable[[], Any]) -> None:
    with pytest.raises(RequestError):
        batch.run([], tmp_path, **change())


def test_killed_anywhere_it_goes_on(tmp_path: Path) -> None:
    """The command tests/batch_crashes.py does all of it; here a few kills of each kind."""
    command = [sys.executable, "-m", "tests.batch_crashes", "--middle", "--random", "2", "--resume", "2"]
    command += ["--races", "2"]
    root = Path(__file__).parent.parent.parent
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    ran = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "each time 13 files, 13 records, equal bytes" in ran.stdout
