"""`fewstep batch`: what it prints, and its exit codes."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fewstep import cli, testing
from fewstep.batch.lock import lock_job
from fewstep.batch.manifest import state_folder
from tests.test_cli import run


@pytest.fixture(autouse=True)
def fake() -> Iterator[None]:
    with testing.fake():
        yield


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("jobs.txt").write_text('a fox\n--prompt "an owl" --steps 2 --cfg_scale 3\n')
    return "jobs.txt"


def test_jobs_become_pictures(capsys: pytest.CaptureFixture[str], jobs: str) -> None:
    code, out, err = run(capsys, "batch", jobs, "-o", "out", "--name", "{prompt}.png")
    assert (code, out) == (0, "out  2 drawn\n")
    assert err == "fewstep: warning: cfg_scale is read as guidance\n"
    assert sorted(path.name for path in Path("out").glob("*.png")) == ["a-fox.png", "an-owl.png"]
    assert run(capsys, "batch", jobs, "-o", "out")[:2] == (0, "out  0 drawn, 2 kept\n")


def test_exit_codes(capsys: pytest.CaptureFixture[str], jobs: str) -> None:
    Path("bad.txt").write_text("a fox\n--steps 3\n")
    code, out, err = run(capsys, "batch", "bad.txt", "-o", "bad")
    assert code == 1
    assert "line 2: it has no --prompt" in err
    assert "bad/failed.jsonl" in out
    assert run(capsys, "batch", jobs)[0] == 2
    assert run(capsys, "batch")[0] == 2
    assert run(capsys, "batch", "no.jsonl", "-o", "x")[0] == 2
    assert run(capsys, "batch", jobs, "-o", "jobs.txt")[0] == 73
    with lock_job(state_folder(Path("out")), (1, 1)):
        code, _, err = run(capsys, "batch", jobs, "-o", "out")
        assert code == 75
        assert "another process" in err
        assert run(capsys, "batch", jobs, "-o", "out", "--shard", "1/2")[0] == 75
    for words in (
        ("--shard", "3/2"),
        ("--shard", "x"),
        ("--set", "steps"),
        ("--sweep", "seed"),
        ("--tars", "-1"),
    ):
        assert run(capsys, "batch", jobs, "-o", "out", *words)[0] == 2


def test_plan_and_status(capsys: pytest.CaptureFixture[str], jobs: str) -> None:
    code, out, _ = run(capsys, "batch", jobs, "--plan", "--sweep", "seed=1..3", "--measure", "1")
    assert code == 0
    assert out.startswith("pictures   6 in 2 calls, of 2 lines\nengine     tiny, lcm\ntime  ")
    assert json.loads(run(capsys, "batch", jobs, "--plan", "--json")[1])["pictures"] == 2
    run(capsys, "batch", jobs, "-o", "out")
    code, out, _ = run(capsys, "batch", "--status", "out")
    assert out.startswith("pictures   2, ")
    assert "ended; 2 planned, 0 failed" in out
    assert json.loads(run(capsys, "batch", "--status", "out", "--json")[1])["pictures"] == 2


def test_events(capsys: pytest.CaptureFixture[str], jobs: str) -> None:
    lines = run(capsys, "batch", jobs, "-o", "out", "--json")[1].splitlines()
    events = [json.loads(line) for line in lines]
    assert [event["event"] for event in events] == ["warning", "picture", "picture", "end"]
    assert {event["file"] for event in events[1:3]} == {path.name for path in Path("out").glob("*.png")}


def test_standard_input(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b'{"prompt": "a"}\n{"prompt": "b"}\n')))
    assert run(capsys, "batch", "-", "-o", str(tmp_path / "out"))[0] == 0
    assert len(list((tmp_path / "out").glob("*.png"))) == 2


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_it_tidily_and_it_goes_on(tmp_path: Path, number: int, code: int) -> None:
    (tmp_path / "jobs.txt").write_text("\n".join(f"a fox {i}" for i in range(200)))
    program = (
        "import sys; from fewstep import cli, testing\n"
        "words = ['batch', 'jobs.txt', '-o', 'out', '--batch', '2']\n"
        "with testing.fake(delay=0.1): sys.exit(cli.main(words))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=tmp_path, stderr=subprocess.PIPE, text=True, env={**os.environ}
    ) as process:
        deadline = time.monotonic() + 60
        while not list((tmp_path / "out").glob("*.png")) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert "the same command goes on" in err
    drawn = len(list((tmp_path / "out").glob("*.png")))
    assert 0 < drawn < 200
    assert len((tmp_path / "out" / "metadata.jsonl").read_text().splitlines()) == drawn
    assert (
        cli.main(["batch", str(tmp_path / "jobs.txt"), "-o", str(tmp_path / "out"), "--batch", "2", "-q"])
        == 0
    )
    assert len(list((tmp_path / "out").glob("*.png"))) == 200
