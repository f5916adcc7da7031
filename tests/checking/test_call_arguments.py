"""Wrong calls of right pipelines: each is found, and the line of the right call is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest

from fewstep import RequestError
from fewstep.checking import check
from fewstep.errors import ModelError
from tests.checking.conftest import Make, Type, found
from tests.test_house import run_python

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:diffusers")
EULER = diffusers.EulerDiscreteScheduler


def test_the_right_call_runs(make: Make, type_in: Type) -> None:
    """In every mode that these networks serve, and with what diffusers' pipeline runs by itself."""
    for mode in ("turbo", "lcm", "lcm-lora"):
        pipe = make(mode)
        made: dict[str, Any] = {}
        line = check(pipe, mode, strength=None).call
        type_in(f"made['pictures'] = {line}.images", pipe, prompt="a red fox", made=made)
        assert made["pictures"][0].size == (96, 96)


class Recorder:
    """A pipe that writes down how it is called, in `check`'s words."""

    WORDS: Mapping[str, str] = {"num_inference_steps": "steps", "guidance_scale": "guidance"}

    def __init__(self) -> None:
        self.asked: dict[str, Any] = {}

    def __call__(self, _prompt: str, **told: Any) -> SimpleNamespace:
        told.pop("image", None)
        told.pop("mask_image", None)
        self.asked = {self.WORDS.get(name, name): value for name, value in told.items()}
        return SimpleNamespace(images=[])


IMAGE = diffusers.StableDiffusionXLImg2ImgPipeline
INPAINT = diffusers.StableDiffusionXLInpaintPipeline
CALLS: dict[str, tuple[str, Any, dict[str, Any], str]] = {
    "turbo with guidance": ("turbo", None, {"guidance": 7.5}, "takes twice the time"),
    "lcm without guidance": ("lcm", None, {"guidance": 0}, "w = -1"),
    "lcm with guidance 1": ("lcm", None, {"guidance": 1.0}, "w = 0"),
    "lcm-lora with much": ("lcm-lora", None, {"guidance": 7.5}, "made for 1 to 2"),
    "negative on turbo": ("turbo", None, {"negative_prompt": "blur"}, "does nothing: mode 'turbo'"),
    "negative on lcm": ("lcm", None, {"negative_prompt": "blur"}, "inside the UNet"),
    "negative at 1": ("lcm-lora", None, {"negative_prompt": "blur", "guidance": 1}, "guidance_scale=1"),
    "turbo in 30 steps": ("turbo", None, {"steps": 30}, "made for 1 to 4"),
    "lcm-lora in one": ("lcm-lora", None, {"steps": 1}, "made for 2 to 8"),
    "too large": ("turbo", None, {"width": 1024, "height": 1024}, "width=1024, height=1024"),
    "no multiple of 8": ("base", None, {"width": 100}, "width=100"),
    "no step left": ("turbo", IMAGE, {"steps": 1, "strength": 0.5}, "which is 0, and fails"),
    "no step left by default": ("turbo", IMAGE, {"steps": 2}, "which is 0, and fails"),
    "inpainting in one": ("turbo", INPAINT, {"steps": 1}, "which is 0, and fails"),
    "fewer than asked": ("lcm-lora", IMAGE, {"steps": 4, "strength": 0.3}, "diffusers runs int(steps"),
    "foreign levels": ("turbo", None, {"timesteps": [999, 500]}, "such as [999]"),
    "leading in few": ("base", None, {"steps": 4}, "starts at timestep 751"),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_wrong_call_is_found_and_mended(name: str, make: Make, type_in: Type) -> None:
    mode, kind, asked, what = CALLS[name]
    pipe = make(mode, kind) if kind else make(mode)
    finding = found(what, check(pipe, mode, **asked))
    assert finding.severity == "wrong"
    if finding.mend.startswith("pipe.scheduler"):
        assert check(type_in(finding.mend, pipe), mode, **asked).findings == ()
        return
    recorder = Recorder()
    type_in(finding.mend, recorder, prompt="a fox", image=None, mask=None)
    assert check(pipe, mode, **recorder.asked).findings == ()


def test_explicit_levels(make: Make, lora_file: Path) -> None:
    """Where no configuration makes a mode's levels, the call must name them."""
    pipe = make("lcm")
    pipe.unet = make().unet
    pipe.load_lora_weights(lora_file, adapter_name="dmd2")
    assert check(pipe, "dmd2").findings == ()
    finding = found("[999, 749, 499, 249]", check(pipe, "dmd2", steps=4))
    assert (finding.severity, "timesteps=[999, 749, 499, 249]" in finding.mend) == ("wrong", True)
    assert check(pipe, "dmd2", timesteps=[999, 749, 499, 249]).findings == ()
    assert found("[399]", check(pipe, "dmd2-1step", steps=1)).mend.startswith("pipe(prompt, timesteps=[399]")


def test_the_steps_of_a_file(make: Make, lora_file: Path) -> None:
    """Its name says how many it is for."""
    pipe = make()
    pipe.scheduler = EULER.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    pipe.load_lora_weights(lora_file, adapter_name="sdxl_lightning_8step_lora")
    assert check(pipe, "lightning-lora", steps=8).findings == ()
    assert "exactly 8" in found("steps=4", check(pipe, "lightning-lora", steps=4)).what
    assert "num_inference_steps=8" in check(pipe, "lightning-lora").call


def test_the_share_of_fresh_noise(make: Make, lora_file: Path) -> None:
    """diffusers' pipeline gives TCD 0 where the call names none."""
    pipe = make()
    pipe.scheduler = diffusers.TCDScheduler.from_config(pipe.scheduler.config)
    pipe.load_lora_weights(lora_file, adapter_name="tcd")
    assert "made with 0.3" in found("eta=0", check(pipe, "tcd", steps=4)).what
    assert check(pipe, "tcd", steps=4, eta=0.3).findings == ()
    assert "eta=1" in check(pipe, "hyper-unified").call


def test_turbos_single_file_says_1024(copy: Path) -> None:
    """Loaded with SDXL's configuration it draws at twice its size unless told otherwise."""
    config = copy / "unet" / "config.json"
    config.write_text(config.read_text().replace('"sample_size": 12', '"sample_size": 128'))
    report = check(copy, "turbo")
    assert "width=1024, height=1024, the pipeline's own default," in found("trained at", report).what
    assert "width=512, height=512" in report.call


def test_numbers_must_be_numbers(make: Make) -> None:
    for asked in ({"steps": 0}, {"steps": True}, {"guidance": float("nan")}, {"strength": "half"}):
        with pytest.raises(RequestError, match=f"{next(iter(asked))}="):
            check(make(), "base", **asked)


def test_what_cannot_be_looked_at(make: Make, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="object is no diffusers pipeline"):
        check(object())
    with pytest.raises(ModelError, match="not a diffusers folder"):
        check("sdxl")
    (tmp_path / "model_index.json").write_text("[]")
    with pytest.raises(ModelError, match=r"model_index\.json"):
        check(tmp_path)
    with pytest.raises(RequestError, match="mode='lcm-lora'"):
        check(make("lcm-lora"))  # nothing in its UNet proves it
    with pytest.raises(RequestError, match="not installed"):
        check(make(), "warp")


def test_the_report(make: Make) -> None:
    report = check(make(), "turbo", guidance=7.5)
    lines = str(report).splitlines()
    assert lines[0] == f"{report.source} for mode='turbo': 2 wrong, 0 doubtful"
    assert lines[-1] == "call: pipe(prompt, num_inference_steps=1, guidance_scale=0)"
    assert len(lines) == 3 + 2 * len(report.findings)
    plain = report.to_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert (plain["ok"], plain["findings"][0]["severity"]) == (False, "wrong")
    assert check(make("lcm")).mode == "lcm"
    assert check(make()).mode == "base"


def test_looking_changes_nothing(make: Make) -> None:
    pipe = make("lcm-lora")
    before = (dict(pipe.scheduler.config), pipe.get_active_adapters(), str(pipe.unet.config))
    check(pipe, "turbo", steps=9)
    assert (dict(pipe.scheduler.config), pipe.get_active_adapters(), str(pipe.unet.config)) == before


def test_a_folder_needs_no_torch(sdxl_folder: Path) -> None:
    look = f"fewstep.checking.check({str(sdxl_folder)!r}, 'turbo')"
    code = f"import sys, fewstep.checking; {look}; print('torch' in sys.modules)"
    assert run_python(code) == "False"
