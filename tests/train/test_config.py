"""An order for a user's run: completed from presets, checked before anything is loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fewstep.errors import FewstepError, RequestError
from fewstep.train.config import BUNDLED_STAGES, PRESETS, STAGES, check_stage, make_config


def _images(folder: Path) -> Path:
    (folder / "in").mkdir()
    return folder / "in"


def test_presets_fill_in(tmp_path: Path) -> None:
    _images(tmp_path)
    made = make_config("lcm-lora", tmp_path / "in", tmp_path / "out", model="sdxl", steps=7)
    assert (made.size, made.rank, made.batch, made.rate, made.steps) == (1024, 64, 12, 1e-4, 7)
    assert make_config("lcm", tmp_path / "in", tmp_path / "out", model="sdxl").guidance == (3.0, 15.0)
    assert make_config("vae", tmp_path / "in", tmp_path / "out").size == 96
    assert all(make_config(stage, tmp_path / "in", tmp_path / "out").size in (96, 128) for stage in STAGES)
    assert all(preset.keys() == set(STAGES) for preset in PRESETS.values())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"steps": 0}, "steps=0: give a whole number from 1"),
        ({"steps": True}, "steps=True"),
        ({"batch": 2.5}, "batch=2.5: give a whole number"),
        ({"rate": float("nan")}, "rate=nan: give a number"),
        ({"ema": 1.0}, "ema=1.0"),
        ({"seed": -1}, "seed=-1"),
        ({"guidance": (0.5, 3.0)}, r"guidance=0.5,3: give the range"),
        ({"guidance": (4.0, 3.0)}, r"guidance=4,3: give the range"),
        ({"size": 100}, "size=100: this model may have 64 to 256 pixels, in multiples of 8; type size=128"),
        ({"guidance": 3.0}, "give the range as two numbers"),
        ({"prompts": ("a",) * 17}, "17 prompts: at most 16"),
        ({"colour": 1}, "colour is no option of training"),
        ({"model": "sdxk"}, "did you mean model='sdxl'"),
        ({"images": Path("nowhere")}, "there is no such folder"),
    ],
)
def test_what_is_out_of_range_is_named(tmp_path: Path, given: dict[str, Any], said: str) -> None:
    with pytest.raises(FewstepError, match=said):
        make_config("lcm", **{"images": _images(tmp_path), "out": tmp_path / "out", **given})


def test_options_that_cannot_act_are_refused(tmp_path: Path) -> None:
    _images(tmp_path)
    for stage, given, said in (
        ("lcm", {"rank": 4}, "has no adapter"),
        ("base", {"guidance": (3.0, 3.0)}, "has no teacher"),
        ("add", {"guidance": (3.0, 4.0)}, "add learns from one"),
    ):
        with pytest.raises(RequestError, match=said):
            make_config(stage, tmp_path / "in", tmp_path / "out", **given)


def test_a_stage_mistyped() -> None:
    with pytest.raises(RequestError, match="did you mean lcm-lora"):
        check_stage("lcmlora")


def test_the_bundled_stages_are_the_commands() -> None:
    from fewstep.train.bundled import stages

    assert set(stages.STAGES) <= set(BUNDLED_STAGES)


def test_it_needs_no_torch() -> None:
    code = (
        "import sys; from fewstep import cli; code = cli.main(['train', 'nonsense'])\n"
        "print(code, 'torch' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "2 False"
    assert "stage='nonsense' is not known" in ran.stderr


def test_the_result_goes_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="is inside images="):
        make_config("lcm", tmp_path, tmp_path / "out")
    with pytest.raises(RequestError, match="is inside images="):
        make_config("lcm", tmp_path, tmp_path)
