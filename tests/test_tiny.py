"""The bundled model: its files, and that it draws what the prompt says."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import fewstep
from fewstep.catalog.models import TINY
from fewstep.engine import Engine
from fewstep.loading.parts import verify_checksums


def pixels(image: Image.Image) -> np.ndarray:
    """(H, W, 3) in [0, 1]."""
    return np.asarray(image, dtype=np.float64) / 255


MODES = ("base", "turbo", "lcm", "lcm-lora")


@pytest.fixture(scope="module", params=MODES)
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    with fewstep.load("tiny", request.param, device="cpu") as loaded:
        yield loaded


def test_it_is_small() -> None:
    size = sum(path.stat().st_size for path in TINY.rglob("*") if path.is_file())
    assert size < 45 * 2**20  # bytes


def test_card_names_data_and_licences() -> None:
    card = (TINY / "README.md").read_text(encoding="utf-8")
    for said in ("Apache-2.0", "MIT", "noto", "fluent-emoji-flat", "fluent-emoji-3d", "fewstep train"):
        assert said in card


def test_files_are_whole() -> None:
    verify_checksums(TINY)


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    copy = shutil.copytree(TINY, tmp_path / "tiny")
    victim = copy / "unet" / "diffusion_pytorch_model.safetensors"
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    with pytest.raises(fewstep.CorruptModelError, match=r"unet.*is damaged"):
        verify_checksums(copy)


COLOURS = {
    "a red heart, flat style": (1, 0, 0),
    "a blue heart, flat style": (0, 0, 1),
    "a green heart, flat style": (0, 1, 0),
}


@pytest.mark.parametrize("prompt", COLOURS)
def test_hearts_have_their_colour(engine: Engine, prompt: str) -> None:
    heart = pixels(engine.generate(prompt, seed=1)[0])[40:88, 40:88].mean(axis=(0, 1))
    wanted = np.array(COLOURS[prompt], dtype=bool)
    assert heart[wanted].min() > heart[~wanted].max() + 0.2


@pytest.mark.parametrize(("name", "channel"), [("blue", 2), ("red", 0)])
def test_backgrounds_are_as_said(engine: Engine, name: str, channel: int) -> None:
    picture = engine.generate(f"a sun, noto style, on a {name} background", seed=2)[0]
    corner = pixels(picture)[:12, :12].mean(axis=(0, 1))
    assert corner.argmax() == channel
    assert corner[channel] > np.delete(corner, channel).max() + 0.1


def test_pictures_are_not_mush(engine: Engine) -> None:
    for image in engine.generate(["an owl, 3d style", "a rocket, flat style"], seed=3):
        assert pixels(image).std() > 0.12


THREE = ["a red heart, flat style", "grinning face, noto style", "a green apple, 3d style"]


@pytest.fixture(scope="module")
def slow() -> list[Any]:
    """The teacher's pictures of the three."""
    with fewstep.load("tiny", "base") as base:
        return [pixels(image) for image in base.generate(THREE, 25, seed=7)]


@pytest.mark.parametrize("mode", MODES[1:])
def test_a_student_agrees_with_its_teacher(mode: str, slow: list[Any]) -> None:
    """Four steps land nearer to the teacher's 25, from the same prompt, than to another prompt's."""
    with fewstep.load("tiny", mode) as student:
        fast = [pixels(image) for image in student.generate(THREE, 4, seed=7)]
    distance = np.array([[np.abs(a - b).mean() for b in slow] for a in fast])
    assert (distance.argmin(axis=1) == np.arange(len(THREE))).all()


def test_the_tiny_autoencoder_draws_nearly_the_same() -> None:
    for mode in ("turbo", "lcm"):
        whole, rough = (
            pixels(fewstep.generate("grinning face, noto style", mode=mode, seed=7, vae=vae)[0])
            for vae in ("", "tiny")
        )
        assert 0 < np.sqrt(np.square(whole - rough).mean()) < 0.1


def test_the_style_lora_changes_the_picture_in_few_steps() -> None:
    with fewstep.load("tiny", "lcm-lora") as engine:
        plain, styled = (
            pixels(engine.generate("a red heart, fx style", 4, seed=1, loras=loras)[0])
            for loras in ((), ("fx",))
        )
    assert np.abs(plain - styled).mean() > 0.01
    assert styled.std() > 0.12


def theirs(mode: str) -> tuple[Any, dict[str, object]]:
    """diffusers' own pipeline on the bundled files, and what it is told in this mode."""
    from diffusers import (
        EulerAncestralDiscreteScheduler,
        LCMScheduler,
        StableDiffusionXLPipeline,
        UNet2DConditionModel,
    )

    pipe = StableDiffusionXLPipeline.from_pretrained(TINY, add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    own: dict[str, tuple[Any, dict[str, str]]] = {
        "lcm": (LCMScheduler, {}),
        "lcm-lora": (LCMScheduler, {}),
        "turbo": (EulerAncestralDiscreteScheduler, {"timestep_spacing": "trailing"}),
    }
    if mode in ("lcm", "turbo"):
        pipe.unet = UNet2DConditionModel.from_pretrained(TINY / f"unet_{mode}")
    if mode == "lcm-lora":
        pipe.load_lora_weights(TINY / "lcm_lora")
    if mode in own:
        scheduler, settings = own[mode]
        pipe.scheduler = scheduler.from_config(pipe.scheduler.config, **settings)
    told = {"base": 3.0, "lcm": 3.0, "lcm-lora": 1.0, "turbo": 0.0}
    return pipe, {"guidance_scale": told[mode], "negative_prompt": "" if mode == "base" else None}


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:diffusers")
@pytest.mark.parametrize("mode", MODES)
def test_diffusers_reads_it_and_draws_the_same(mode: str) -> None:
    pipe, told = theirs(mode)
    reference = pipe(
        "an owl, 3d style", num_inference_steps=4, generator=torch.Generator().manual_seed(5),
        output_type="np", **told,
    ).images[0]  # fmt: skip
    guidance = 3 if mode in ("base", "lcm") else None
    ours = fewstep.generate(
        "an owl, 3d style", 4, mode, guidance=guidance, seed=5, device="cpu", precision="fp32"
    )
    assert np.abs(pixels(ours[0]) - reference).max() < 1e-3 + 0.5 / 255  # ours is rounded to 8 bits
