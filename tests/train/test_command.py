"""`fewstep train` on a user's pictures: its words, its refusals, its exit codes. Nothing is trained here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fewstep import cli
from fewstep.train import run as custom
from fewstep.train.config import TrainConfig
from fewstep.train.encode import EncodingProgress
from fewstep.train.loop import Progress


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    (tmp_path / "in").mkdir()
    return ["train", "lcm-lora", "--images", str(tmp_path / "in"), "--out", str(tmp_path / "out")]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[TrainConfig]:
    """The orders that are run."""
    orders: list[TrainConfig] = []

    def run(order: TrainConfig) -> Iterator[EncodingProgress | Progress]:
        orders.append(order)
        yield from (EncodingProgress(done, 2) for done in (1, 2))
        yield from (Progress(step, 0.5, 1e-4) for step in range(1, 31))
        if order.seed == 13:
            raise KeyboardInterrupt

    monkeypatch.setattr(custom, "run_training", run)
    return orders


def test_options_become_an_order(
    words: list[str], asked: list[TrainConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = (
        "--rank 4 --guidance 2,5 --prompt a --prompt b --fp32 --checkpointing --save-every 7 --rate 1e-3"
    )
    assert cli.main([*words, *options.split(), "--steps", "30"]) == 0
    [made] = asked
    assert (made.rank, made.guidance, made.prompts, made.bf16) == (4, (2.0, 5.0), ("a", "b"), False)
    assert (made.checkpointing, made.save_every, made.rate, made.steps) == (True, 7, 1e-3, 30)
    out, err = capsys.readouterr()
    assert out == f"{tmp_path / 'out'}\n"
    lines = err.splitlines()
    assert lines[0] == "picture 2 of 2 encoded"
    assert [line.split("  ")[0] for line in lines[1:]] == [f"step {n} of 30" for n in (1, 25, 30)]


def test_other_processes_are_silent(
    words: list[str],
    asked: list[TrainConfig],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert cli.main(words) == 0
    assert capsys.readouterr() == ("", "")


def test_an_interrupted_run_says_how_to_go_on(
    words: list[str], asked: list[TrainConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*words, "--seed", "13"]) == 130
    assert "interrupted after step 30; the same command goes on from the state in" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--steps", "-5"], "steps=-5"),
        (["--guidance", "much"], "--guidance 'much': give one number or two"),
        (["--work", "x"], "--work is of the bundled model's stages"),
        (["--rate", "fast"], "give a number; see fewstep train --help"),
        (["--ranc", "4"], "did you mean --rank"),
    ],
)
def test_mistakes(
    words: list[str], asked: list[TrainConfig], capsys: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    assert cli.main([*words, *more]) == 2
    assert said in capsys.readouterr().err
    assert not asked


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("train lcm --images {}", "--out is missing"),
        ("train lcm --rate 1", "give --images PATH as well"),
        ("train lcm --dry-run", "give --images PATH as well"),
        ("train data --images {} --out x", "stage='data' is not known"),
        ("train lcm --images {}/no --out x", "there is no such folder"),
    ],
)
def test_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, said: str) -> None:
    assert cli.main(line.format(tmp_path).split()) == 2
    assert said in capsys.readouterr().err


def test_help_reads_well(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    told = capsys.readouterr().out
    assert all(stage in told for stage in ("vae ", "base ", "lcm ", "lcm-lora ", "add "))
    assert "accelerate launch -m fewstep train" in told
