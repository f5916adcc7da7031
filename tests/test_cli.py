"""The command line: its output, its exit codes, and one-line errors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fewstep import cli

PROMPT = "a red heart, flat style"


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    try:
        code = cli.main(words)
    except SystemExit as stop:  # argparse ends the process for --help and bad usage
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
    assert {line.split()[0] for line in out.splitlines() if not line.startswith(" ")} == {
        "base", "lcm", "lcm-lora", "turbo",
    }  # fmt: skip
    _, out, _ = run(capsys, "modes", "--json")
    assert {recipe["mode"]: recipe["steps"]["default"] for recipe in json.loads(out)}["lcm"] == 4


BAD = [
    (("generate", "x", "--steps", "0"), "steps=0"),
    (("generate", "x", "--steps", "9"), "1 to 8"),
    (("generate", "x", "--mode", "lmc"), "did you mean mode='lcm'"),
    (("generate", "x", "--model", "nowhere"), "model='nowhere'"),
    (("generate", "x", "--mode", "turbo"), "no weights for model='tiny'"),
    (("generate", "x", "--guidance", "20"), "1 to 6"),
    (("generate", "x", "--guidance", "nan"), "guidance=nan"),
    (("generate", "x", "--negative-prompt", "y"), "mode='base'"),
    (("generate", "x", "--width", "100"), "in eights"),
    (("generate", "x", "--width", "1024"), "128x128"),
    (("generate", "x", "--seed", "-1"), "seed=-1"),
    (("generate", "x", "--count", "0"), "count=0"),
    (("generate", "x", "--strength", "0.5"), "give image="),
    (("generate", "x", "--mask", "none.png"), "no such file"),
    (("generate", "x", "--image", "none.png"), "no such file"),
    (("generate", "x", "--sampler", "euler"), "choose one of lcm"),
    (("generate", "x", "--scheduler", "karras"), "choose one of lcm, trailing"),
    (("generate", "x", "--timesteps", "5", "10"), "999 down to 0"),
    (("generate", "x", "--eta", "0.5"), "leave eta out"),
    (("generate", "x", "--device", "tpu"), "auto, cuda, mps, cpu"),
    (("generate", "x", "--precision", "int3"), "fp32"),
    (("plan", "x", "--mode", "base", "--steps", "999"), "1 to 200"),
]


@pytest.mark.parametrize(("words", "says"), BAD, ids=lambda v: " ".join(v) if isinstance(v, tuple) else "")
def test_mistakes_are_one_line_with_a_way_out(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], says: str
) -> None:
    code, out, err = run(capsys, *words)
    assert code in (1, 2)
    assert out == ""
    assert says in err
    assert err.startswith("fewstep: ")
    assert err.count("\n") == 1


def test_unwritable_is_73(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, _, err = run(capsys, "generate", PROMPT, "-o", str(tmp_path / "no" / "such" / "a.png"))
    assert code == 73
    assert "a.png" in err


def test_interrupt_is_130(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fewstep.plan", stop, raising=False)
    assert run(capsys, "plan", "x")[0] == 130


@pytest.mark.parametrize(
    ("stage", "says"), [("all", "data, vae, base, lcm, export"), ("vae", "type fewstep train data")]
)
def test_training_stages_out_of_order(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, stage: str, says: str
) -> None:
    code, _, err = run(capsys, "train", stage, "--work", str(tmp_path))
    assert code == 2
    assert says in err
    assert err.count("\n") == 1
