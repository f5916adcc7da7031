"""`fewstep bench`: its arithmetic, and its suites on the small random model, with few repeats."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fewstep import cli
from fewstep.bench import Settings, Timing, measure, report
from fewstep.bench.arms import default_arms
from fewstep.bench.children import run_child
from fewstep.bench.random_weights import MODELS, _model_index, _write_network
from fewstep.bench.timing import compare_pictures, compare_times, time_in_turn
from tests.conftest import SIDE

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:diffusers")


def timing(arm: str, *seconds: float) -> Timing:
    return Timing(arm=arm, seconds=seconds)


def test_figures_are_ratios_of_medians() -> None:
    arms = [timing("a", 2.0, 2.0, 9.0), timing("b", 1.0, 0.5, 1.0)]
    assert compare_times("s", "n", arms).figures == {"b": 2.0}
    assert compare_times("s", "n", arms, figure="time").figures == {"b": 0.5}
    assert timing("a", 1.0, 2.0, 3.0, 4.0, 5.0).quartiles == (2.0, 4.0)
    assert timing("a", 3.0).quartiles == (3.0, 3.0)


def test_arms_take_turns_after_the_warm_up() -> None:
    calls: list[tuple[str, int]] = []

    def note(name: str, turn: int) -> tuple[str, int]:
        calls.append((name, turn))
        return calls[-1]

    timings, answers = time_in_turn({name: partial(note, name) for name in "ab"}, 3, warm_up=1)
    assert calls[:2] == [("b", 0), ("a", 0)]  # not counted
    assert calls[2:] == [("a", 0), ("b", 0), ("b", 1), ("a", 1), ("a", 2), ("b", 2)]
    assert [(t.arm, len(t.seconds)) for t in timings] == [("a", 3), ("b", 3)]
    assert answers == {"a": ("a", 0), "b": ("b", 0)}


def test_pictures_are_compared_without_overflow() -> None:
    black, white = np.zeros((1, 2, 2, 3), np.uint8), np.full((1, 2, 2, 3), 255, np.uint8)
    assert (compare_pictures(black, white).largest, compare_pictures(black, white).psnr) == (255, 0.0)
    assert compare_pictures(black, black).psnr == 99.0
    with pytest.raises(ValueError, match="pictures of"):
        compare_pictures(black, white[:, :1])


def test_against_diffusers_on_the_same_files(sdxl_folder: Path) -> None:
    """The same pictures but for rounding, and a table, JSON and a plot of the row."""
    settings = Settings(model=str(sdxl_folder), repeats=1, threads=1)
    (row,) = measure(["quick"], settings)
    assert [t.arm for t in row.timings] == default_arms()
    assert row.baseline.arm == "diffusers"
    assert row.differences["fewstep auto"].largest <= 1
    assert row.figures["fewstep auto"] == row.timings[0].median / row.timings[-1].median
    machine = report.machine_facts(1)
    assert "fewstep auto" in report.table([row])
    assert {"torch", "fewstep"} <= set(machine["versions"])
    facts = json.loads(json.dumps(report.rows_as_json([row], machine)))
    assert facts["rows"][0]["arms"][-1]["difference"]["largest"] <= 1


def test_an_arm_in_a_process_of_its_own(sdxl_folder: Path) -> None:
    case = Settings(model=str(sdxl_folder)).case("turbo", 1)
    run = run_child("fewstep auto", case, draws=1, threads=1)
    assert run.first > run.loading > 0
    assert len(run.draws) == 1
    assert run.pictures.shape == (1, SIDE, SIDE, 3)


def test_the_command_prints_what_a_suite_measured(
    sdxl_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["bench", "--suite", "text", "writing", "busy", "floor", "--model", str(sdxl_folder), "--alone"]
    words += [
        "--repeats",
        "1",
        "--threads",
        "1",
        "--pictures",
        "2",
        "--json",
        "--plot",
        str(tmp_path / "a.png"),
    ]
    assert cli.main(words) == 0
    facts = json.loads(capsys.readouterr().out)
    figures = {row["suite"]: row["figure"] for row in facts["rows"]}
    assert figures == {"text": "speed", "writing": "share", "busy": "time", "floor": "time"}
    shares = next(row["arms"][-1]["figure"] for row in facts["rows"] if row["suite"] == "writing")
    assert 0 <= shares <= 1
    assert (tmp_path / "a.png").stat().st_size > 1000


@pytest.mark.parametrize("words", [["--suite", "slow"], ["--repeats", "0"], ["--threads", "-1"]])
def test_what_cannot_be_measured_is_refused(words: list[str]) -> None:
    assert cli.main(["bench", *words]) == 2


def test_a_random_model_is_written_as_diffusers_would(tmp_path: Path) -> None:
    """Of small networks; those of real size are written when they are asked for."""
    import diffusers
    from safetensors import safe_open

    config: dict[str, Any] = {"block_out_channels": [8, 8, 8, 8], "norm_num_groups": 4}
    for key in ("down_block_types", "up_block_types", "latent_channels"):
        config[key] = MODELS["random-sdxl"][1]["vae"][1][key]
    _write_network(tmp_path / "vae", "AutoencoderKL", config)
    loaded = diffusers.AutoencoderKL.from_pretrained(tmp_path / "vae")
    with safe_open(tmp_path / "vae" / "diffusion_pytorch_model.safetensors", "pt") as file:
        assert set(file.keys()) == {name for name, _ in loaded.named_parameters()}
    for pipeline, networks in MODELS.values():
        index = _model_index(pipeline, networks)
        assert set(index) >= {"unet", "vae", "text_encoder", "tokenizer", "scheduler", "_class_name"}
