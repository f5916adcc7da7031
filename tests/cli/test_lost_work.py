"""Finished work is kept, and that it cannot be told of fails nothing."""

from __future__ import annotations

import errno
import io
import json
import os
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fewstep import cli, metadata, testing
from fewstep.testing import FakeEngine

PROMPT = "a red heart"
needs_dev_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux' /dev/full")


@pytest.fixture
def engine() -> Iterator[FakeEngine]:
    with testing.fake() as faked:
        yield faked


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the command runs, and puts what it rescues."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    return tmp_path


def unread_stream(kind: str) -> io.TextIOWrapper:
    """A stream that takes nothing: on a full disk, or a pipe whose reader has left."""
    if kind == "full":
        return open("/dev/full", "w")
    reading, writing = os.pipe()
    os.close(reading)
    return os.fdopen(writing, "w")


# --- printing


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "cp932", "latin-1", "utf-8"])
@pytest.mark.parametrize("words", [[], ["--json"]], ids=["words", "json"])
def test_any_encoding(
    encoding: str, words: list[str], engine: FakeEngine, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, err = io.BytesIO(), io.BytesIO()
    for name, buffer in (("stdout", out), ("stderr", err)):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(buffer, encoding=encoding))
    assert cli.main(["generate", "猫 🦊", "-o", "猫🦊.png", *words]) == 0
    assert (folder / "猫🦊.png").is_file()
    assert (sys.stdout.errors, sys.stderr.errors) == ("strict", "strict")  # as they were
    said = out.getvalue().decode(encoding)
    if words:
        assert json.loads(said)["pictures"][0]["path"] == "猫🦊.png"
    else:
        shown = "猫🦊".encode(encoding, "backslashreplace").decode(encoding)
        assert said.startswith(f"{shown}.png  (seed ")
    assert cli.main(["plan", "a fox", "--model", "模型.safetensors"]) == 1
    sys.stderr.flush()
    assert b"safetensors" in err.getvalue()


@needs_dev_full
@pytest.mark.parametrize("kind", ["full", "left"])
@pytest.mark.parametrize("words", [[], ["--json"], ["--quiet"]], ids=["words", "json", "quiet"])
def test_stdout_that_takes_nothing(
    kind: str, words: list[str], engine: FakeEngine, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    err = io.StringIO()
    monkeypatch.setattr(sys, "stderr", err)
    with unread_stream(kind) as out:
        monkeypatch.setattr(sys, "stdout", out)
        assert cli.main(["generate", PROMPT, "-o", "heart.png", *words]) == 0
    assert metadata.read("heart.png")["prompts"] == [PROMPT]
    warned = "it is done, but stdout cannot be written: No space" in err.getvalue()
    assert warned == (kind == "full" and "--quiet" not in words)


@needs_dev_full
@pytest.mark.parametrize(("kind", "code"), [("full", 73), ("left", 141)])
def test_what_only_prints_has_failed(kind: str, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with unread_stream(kind) as out:
        monkeypatch.setattr(sys, "stdout", out)
        assert cli.main(["plan", PROMPT]) == code


@needs_dev_full
@pytest.mark.parametrize("kind", ["full", "left", "none"])
def test_no_stderr(
    kind: str, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with nullcontext() if kind == "none" else unread_stream(kind) as err:
        monkeypatch.setattr(sys, "stderr", err)
        assert cli.main(["generate", PROMPT, "-o", "heart.png"]) == 0
        assert cli.main(["generate", PROMPT, "-o", "heart.png"]) == 73  # it exists
    assert [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()] == ["heart.png"]


def test_no_stdout(engine: FakeEngine, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert cli.main(["generate", PROMPT, "-o", "heart.png"]) == 0
    assert cli.main(["plan", PROMPT]) == 0
    assert cli.main(["generate", PROMPT, "-o", "-"]) == 73
    assert [path.name for path in folder.iterdir()] == ["heart.png"]


# --- writing


def test_a_picture_on_stdout(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out))
    assert cli.main(["generate", PROMPT, "-o", "-"]) == 0
    with Image.open(io.BytesIO(out.getvalue())) as image:
        assert {"fewstep", "XML:com.adobe.xmp"} <= image.info.keys()
    assert cli.main(["generate", PROMPT, "--count", "2", "-o", "-"]) == 73
    assert len(engine.requests) == 1


def test_the_longest_names(engine: FakeEngine, folder: Path) -> None:
    """255 bytes; one more is refused before the work."""
    assert cli.main(["generate", PROMPT, "-q", "-o", "a" * 251 + ".png"]) == 0
    assert cli.main(["generate", PROMPT, "-q", "-o", "a" * 252 + ".png"]) == 73
    assert cli.main(["generate", PROMPT, "-q", "--count", "2", "-o", "a" * 250 + ".png"]) == 73  # -0
    assert len(engine.requests) == 1
    assert [len(path.name) for path in folder.iterdir()] == [255]


@pytest.mark.skipif(
    not Path("/proc/self").exists(), reason="a folder that nobody can write to is Linux' /proc"
)
@pytest.mark.parametrize("place", ["/proc/x.png", "/sys/x.png", "folder.png"])
def test_places_that_cannot_be_written(
    place: str, engine: FakeEngine, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "folder.png").mkdir()
    assert cli.main(["generate", PROMPT, "--overwrite", "-o", place]) == 73
    assert engine.requests == []
    assert f"{place}' cannot be written" in capsys.readouterr().err


@needs_dev_full
def test_a_disk_that_is_full_before_the_work(
    engine: FakeEngine, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = Path.open

    def fills(path: Path, mode: str = "r", *rest: Any, **named: Any) -> Any:
        return open("/dev/full", "wb") if mode == "xb" else opened(path, mode, *rest, **named)

    monkeypatch.setattr(Path, "open", fills)
    assert cli.main(["generate", PROMPT, "-o", "heart.png"]) == 73
    assert (engine.requests, [*folder.iterdir()]) == ([], [])
    assert "No space left on device" in capsys.readouterr().err


@pytest.mark.parametrize("count", [1, 2])
def test_a_folder_that_goes_while_it_draws(
    count: int, engine: FakeEngine, folder: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (folder / "out").mkdir()
    draw = FakeEngine.run

    def draw_and_lose(*given: Any, **options: Any) -> Any:
        (folder / "out").rmdir()
        return draw(*given, **options)

    monkeypatch.setattr(FakeEngine, "run", draw_and_lose)
    assert cli.main(["generate", PROMPT, "--count", str(count), "-o", "out/heart.png"]) == 73
    said = capsys.readouterr().err
    assert "there is no folder" in said
    rescued = sorted(folder.glob("fewstep-*/*.png"))
    assert len(rescued) == count
    assert str(rescued[0].parent) in said
    assert metadata.read(rescued[0])["prompts"] == [PROMPT]


def test_nowhere_at_all(
    engine: FakeEngine, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("fewstep.files.output._give_final_name", fails)
    monkeypatch.setattr("tempfile.mkdtemp", fails)
    assert cli.main(["generate", PROMPT, "--seed", "5", "-o", "heart.png"]) == 73
    assert "seeds [5] draw them again" in capsys.readouterr().err
