"""The command line: its output and its exit codes. What it says to mistakes is in test_mistakes.py."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import fewstep
from fewstep import cli, modes, testing
from fewstep.errors import FewstepError
from fewstep.testing import FakeEngine

PROMPT = "a red heart, flat style"


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    try:
        code = cli.main(words)
    except SystemExit as stop:  # argparse ends the process for --help and --version
        code = int(stop.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_help_needs_no_torch() -> None:
    code = (
        "import sys; from fewstep import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: print('torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip().endswith("False")
    assert "generate" in out


def test_alone_it_shows_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys)
    assert (code, err) == (0, "")
    assert all(
        f"\n    {command} " in out for command in ("generate", "plan", "modes", "models", "inspect", "train")
    )


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_asking_is_no_mistake(capsys: pytest.CaptureFixture[str], option: str) -> None:
    code, out, err = run(capsys, option)
    assert (code, err) == (0, "")
    assert "fewstep" in out


def test_options_go_before_and_after_prompts(capsys: pytest.CaptureFixture[str]) -> None:
    asked = [
        json.loads(run(capsys, "plan", "--json", *words)[1])
        for words in (
            ("a", "b", "--steps", "2", "--seed", "3"),
            ("--steps", "2", "a", "b", "--seed", "3"),
            ("--steps", "2", "--seed=3", "a", "b"),
            ("--steps=2", "--seed", "3", "--", "a", "b"),
        )
    ]
    assert asked[0]["prompts"] == ["a", "b"]
    assert all(one == asked[0] for one in asked)


def test_the_output_is_checked_before_the_work(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("owl-1.png").touch()
    with testing.fake() as engine:
        for output, count in (("owl.gif", "1"), ("no/owl.png", "1"), ("owl.png", "2")):
            code, _, err = run(capsys, "generate", PROMPT, "--count", count, "-o", output)
            assert code == 73
            assert err.count("\n") == 1
        assert engine.requests == []
        assert run(capsys, "generate", PROMPT, "--count", "2", "-o", "owl.png", "--overwrite")[0] == 0
        assert run(capsys, "generate", PROMPT, "-o", "owl.png")[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["owl-0.png", "owl-1.png", "owl.png"]


def test_warnings_of_the_library_go_to_stderr(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def warns(mode: str) -> None:
        logging.getLogger("fewstep").warning("look at %s", mode)
        raise FewstepError("and stop")

    monkeypatch.setattr("fewstep.modes.find_recipe", warns)
    handlers = list(logging.getLogger("fewstep").handlers)
    code, _, err = run(capsys, "plan", "x", "--mode", "lcm")
    assert (code, err) == (1, "fewstep: warning: look at lcm\nfewstep: and stop\n")
    assert logging.getLogger("fewstep").handlers == handlers


def test_generate_writes_the_picture(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    target = tmp_path / "heart.png"
    code, out, err = run(capsys, "generate", PROMPT, "--steps", "2", "--seed", "3", "-o", str(target))
    assert code == 0
    assert target.read_bytes().startswith(b"\x89PNG")
    assert out.strip() == f"{target}  (seed 3)"
    assert err.strip().endswith("mode lcm")


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, err = run(capsys, "generate", PROMPT, "-q", "--steps", "1", "-o", str(tmp_path / "a.png"))
    assert (code, out, err) == (0, "", "")


def test_json_is_one_object(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = (
        "generate",
        PROMPT,
        "an owl",
        "--json",
        "--seed",
        "5",
        "--count",
        "2",
        "-o",
        str(tmp_path / "a.png"),
    )
    code, out, _ = run(capsys, *words)
    report = json.loads(out)
    assert code == 0
    assert [p["seeds"] for p in report["pictures"]] == [[5], [6], [7], [8]]
    assert [p["prompts"] for p in report["pictures"]] == [[PROMPT], [PROMPT], ["an owl"], ["an owl"]]
    assert all(Path(p["path"]).is_file() for p in report["pictures"])


def test_existing_files_stay(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    target = tmp_path / "a.png"
    target.write_bytes(b"mine")
    code, _, err = run(capsys, "generate", PROMPT, "-o", str(target))
    assert code == 73
    assert "--overwrite" in err
    assert target.read_bytes() == b"mine"
    assert run(capsys, "generate", PROMPT, "-q", "-o", str(target), "--overwrite")[0] == 0
    assert target.read_bytes().startswith(b"\x89PNG")


def test_plan_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "plan", "a fox", "--steps", "4", "--mode", "turbo", "--model", "sdxl")
    assert code == 0
    assert "999, 749, 499, 249" in out
    assert "512x512" in out


def test_plan_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "plan", "a fox", "--steps", "4", "--json")
    assert json.loads(out)["schedule"]["timesteps"] == [999, 759, 499, 259]


def test_modes(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "modes")
    blocks = [[lines[0], *lines[1:4]] for lines in _blocks(out)]
    assert [block[0].split()[0] for block in blocks] == modes.mode_names()
    assert ["                " + line for line in (
        "steps 2, 4 or 8 (4), guidance none",
        "trailing levels, euler; 4 are 999, 749, 499, 249",
        "ByteDance/SDXL-Lightning; licence: openrail++",
    )] in [block[1:] for block in blocks]  # fmt: skip
    _, out, _ = run(capsys, "modes", "--json")
    assert {recipe["mode"]: recipe["steps"]["default"] for recipe in json.loads(out)}["lcm"] == 4


def _blocks(out: str) -> list[list[str]]:
    """Lines, each that is not indented with the indented ones under it."""
    blocks: list[list[str]] = []
    for line in out.splitlines():
        blocks += [] if line.startswith(" ") else [[]]
        blocks[-1].append(line)
    return blocks


# --- options that are given several times, or not at all


@pytest.fixture
def passed(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `fewstep plan` hands to `fewstep.plan`."""
    seen: dict[str, Any] = {}

    def plan(prompt: object, **options: Any) -> None:
        seen.update(options)
        raise FewstepError("enough")

    monkeypatch.setattr("fewstep.plan", plan, raising=False)
    return seen


def test_what_is_not_given_is_not_passed(capsys: pytest.CaptureFixture[str], passed: dict[str, Any]) -> None:
    run(capsys, "plan", "a fox", "--steps", "4")
    assert passed == {"steps": 4}


def test_options_that_repeat(capsys: pytest.CaptureFixture[str], passed: dict[str, Any]) -> None:
    run(
        capsys, "plan", "a fox", "--lora", "a.safetensors", "--lora", "b:1.safetensors:0.5", "--lora", ":2",
        "--control", "owner/canny", "edges.png", "0.5", "--control", "./depth", "far.png", "1",
        "--reference", "owner/ip", "face.png", "0.7",
    )  # fmt: skip
    assert passed == {
        "loras": ["a.safetensors", ("b:1.safetensors", 0.5), ":2"],
        "control": [("owner/canny", "edges.png", 0.5), ("./depth", "far.png", 1.0)],
        "reference": [("owner/ip", "face.png", 0.7)],
    }


def test_options_that_choose_the_engine(
    capsys: pytest.CaptureFixture[str], passed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--embedding", "a.safetensors", "--embedding", "b", "--revision", "main", "--commercial")
    monkeypatch.setattr("fewstep.generate", fewstep.plan, raising=False)
    monkeypatch.setattr("fewstep.plan", lambda said, **_: FakeEngine().plan(said), raising=False)
    run(capsys, "generate", "a fox", *words, "-o", "no-such-fox.png")
    assert passed == {"embeddings": ["a.safetensors", "b"], "revision": "main", "commercial": True}


def test_a_scale_that_is_no_number(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "plan", "a fox", "--control", "model", "edges.png", "much")
    assert (code, err) == (2, "fewstep: --control 'much': give a number; see fewstep plan --help\n")


def test_unwritable_is_73(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, _, err = run(capsys, "generate", PROMPT, "-o", str(tmp_path / "no" / "such" / "a.png"))
    assert code == 73
    assert "a.png" in err


def test_interrupt_is_130(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fewstep.plan", stop, raising=False)
    assert run(capsys, "plan", "x")[0] == 130


def test_a_reader_that_leaves_is_no_fault() -> None:
    """As `head` does; an end of a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    ran = subprocess.run(
        [sys.executable, "-m", "fewstep", "modes"], stdout=writing, stderr=subprocess.PIPE, check=False
    )
    os.close(writing)
    assert (ran.returncode, ran.stderr) == (141, b"")


@pytest.mark.parametrize(
    ("stage", "says"), [("all", "data, vae, decoder, base, lcm"), ("vae", "type fewstep train data")]
)
def test_training_stages_out_of_order(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, stage: str, says: str
) -> None:
    code, _, err = run(capsys, "train", stage, "--work", str(tmp_path))
    assert code == 2
    assert says in err
    assert err.count("\n") == 1
