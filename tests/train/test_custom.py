"""A user's runs, on eight generated pictures and the tiny model: files, resume, and what reads them."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image, ImageDraw
from torch import Tensor

import fewstep
from fewstep.catalog.models import TINY
from fewstep.errors import RequestError
from fewstep.train import encode, stages
from fewstep.train.config import TrainConfig, make_config
from fewstep.train.encode import EncodingProgress
from fewstep.train.loop import Draw, Progress
from fewstep.train.run import _load_undistilled, _placement, run_training

COLOURS = ("red", "green", "blue", "yellow", "black", "orange", "purple", "grey")
Make = Callable[..., TrainConfig]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for number, colour in enumerate(COLOURS):
        picture = Image.new("RGB", (150, 140 + number), "white")
        ImageDraw.Draw(picture).ellipse((30, 30, 110, 110), fill=colour)
        picture.save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a {colour} circle, flat style")
    return folder


@pytest.fixture
def make(images: Path, tmp_path: Path) -> Make:
    def made(stage: str, **given: Any) -> TrainConfig:
        few = {"steps": 3, "batch": 2, "warmup": 1, "grid_every": 0, "bf16": False, "out": tmp_path / "out"}
        return make_config(stage, **{"images": images, **few, **given})

    return made


def losses(folder: Path) -> list[str]:
    """Of each step its number, loss and rate."""
    return [line.rsplit(",", 1)[0] for line in (folder / "losses.csv").read_text().splitlines()]


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


def test_an_lcm_is_trained_and_draws(make: Make) -> None:
    asked = make("lcm", grid_every=2, checkpointing=True)
    seen = list(run_training(asked))
    assert [type(one) for one in seen] == [EncodingProgress] * 8 + [Progress] * 3
    names = {path.name for path in asked.out.iterdir()}
    assert {"state.safetensors", "losses.csv", "run.json", "unet", "samples-000002.png"} <= names
    assert size_of(asked.out / "samples-000003.png") == (256, 256)  # four of 128 pixels
    about = json.loads((asked.out / "run.json").read_text())
    assert about["finished"]
    assert about["settings"]["guidance"] == [1.0, 6.0]
    assert "torch" in about["versions"]
    made = fewstep.generate("a red circle", 2, "lcm", accelerator=asked.out / "unet", seed=1)
    assert made[0].size == (128, 128)
    assert list(run_training(asked)) == []  # finished, and its latents kept


def test_add_gives_a_unet_for_turbo(make: Make) -> None:
    asked = make("add")
    list(run_training(asked))
    made = fewstep.generate("a red circle", 1, "turbo", accelerator=asked.out / "unet", seed=1)
    assert made[0].size == (128, 128)


def test_a_fine_tune_is_a_whole_model(make: Make) -> None:
    asked = make("base")
    list(run_training(asked))
    made = fewstep.generate("a red circle", 2, "base", model=asked.out, seed=1)
    assert made[0].size == (128, 128)
    assert StableDiffusionXLPipeline.from_pretrained(asked.out).unet.config.sample_size == 16


def test_a_vae_keeps_its_encoder(make: Make, tmp_path: Path) -> None:
    asked = make("vae", grid_every=3, checkpointing=True)
    list(run_training(asked))
    assert size_of(asked.out / "samples-000003.png") == (4 * 96, 2 * 96)
    model = Path(shutil.copytree(TINY, tmp_path / "model"))
    shutil.copytree(asked.out / "vae", model / "vae", dirs_exist_ok=True)
    with fewstep.load(model, "base", device="cpu", precision="fp32") as engine:
        trained = engine.parts.vae.state_dict()
    with fewstep.load("tiny", "base", device="cpu", precision="fp32") as engine:
        before = engine.parts.vae.state_dict()
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], trained[name])}
    assert moved == {"decoder"}


def test_an_lcm_lora_resumes_exactly_and_fits_diffusers(make: Make, tmp_path: Path) -> None:
    asked = make("lcm-lora", steps=4, save_every=2, grid_every=3)
    list(run_training(asked))
    parts = replace(asked, out=tmp_path / "parts")
    run: Any = run_training(parts)
    list(itertools.islice(run, 8 + 3))  # one step beyond the last state
    run.close()
    list(run_training(parts))
    assert losses(parts.out) == losses(asked.out)
    file = "pytorch_lora_weights.safetensors"
    assert (parts.out / file).read_bytes() == (asked.out / file).read_bytes()

    made = fewstep.generate("a red circle", 2, "lcm-lora", accelerator=asked.out / file, seed=1)
    assert made[0].size == (128, 128)
    pipe = StableDiffusionXLPipeline.from_pretrained(TINY)
    pipe.load_lora_weights(asked.out)
    names = [name for name, _ in pipe.unet.named_parameters() if "lora_B" in name]
    assert len(names) > 50
    assert any(bool(pipe.unet.get_parameter(name).any()) for name in names)


def test_the_hosts_state_does_not_reach_a_run(make: Make, tmp_path: Path) -> None:
    plain = make("lcm-lora", steps=2)
    list(run_training(plain))
    under = replace(plain, out=tmp_path / "under")
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"), torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
            list(run_training(under))
            assert (torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")) == (True, True)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert losses(under.out) == losses(plain.out)
    file = "pytorch_lora_weights.safetensors"
    assert (under.out / file).read_bytes() == (plain.out / file).read_bytes()


def test_add_resumes_exactly(make: Make, tmp_path: Path) -> None:
    asked = make("add", save_every=1)
    list(run_training(asked))
    parts = replace(asked, out=tmp_path / "parts")
    run: Any = run_training(parts)
    list(itertools.islice(run, 8 + 2))
    run.close()
    list(run_training(parts))
    assert losses(parts.out) == losses(asked.out)


def test_a_folder_holds_one_run(make: Make, images: Path, tmp_path: Path) -> None:
    asked = make("lcm-lora", steps=1)
    list(run_training(asked))
    with pytest.raises(RequestError, match="rank=8, and asked is 4"):
        list(run_training(replace(asked, rank=4)))
    others = Path(shutil.copytree(images, tmp_path / "others"))
    assert list(run_training(replace(asked, images=others))) == []  # the same pictures, elsewhere
    (others / "0.txt").write_text("something else")
    with pytest.raises(RequestError, match="pictures="):
        list(run_training(replace(asked, images=others)))


def test_long_captions_are_told(
    make: Make, images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    others = Path(shutil.copytree(images, tmp_path / "others"))
    (others / "3.txt").write_text("a circle, " * 60)
    list(run_training(make("lcm-lora", images=others, steps=1)))
    assert "1 captions have more than 77 tokens" in caplog.text
    assert "3.png" in caplog.text


def gradients(asked: TrainConfig) -> tuple[float, list[Tensor]]:
    """Of one batch."""
    parts = _load_undistilled(asked, _placement(asked, torch.device("cpu")))
    values = torch.randn(4, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    source = encode.EncodedPictures(values=values.half(), captions=["a", "b", "c", "d"])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        task, *_ = stages.make_task(asked, parts, source)
    loss = task.loss(Draw.of(0, 0))
    torch.autograd.backward(loss)
    every = [p for network in task.modules.values() for _, p in network.named_parameters()]
    return float(loss.detach()), [p.grad for p in every if p.grad is not None]


@pytest.mark.parametrize("stage", ["lcm", "lcm-lora", "add"])
def test_checkpointing_changes_no_number(make: Make, stage: str) -> None:
    (loss, plain), (again, spared) = (gradients(make(stage, checkpointing=on)) for on in (False, True))
    assert again == loss
    assert len(plain) == len(spared) > 0
    for a, b in zip(plain, spared, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_dropped_captions_are_empty() -> None:
    source = encode.EncodedPictures(values=torch.zeros(2, 4, 8, 8).half(), captions=["a", "b"])
    latents, prompts = source.batch(200, Draw.of(0, 0), 0.5)
    assert latents.dtype == torch.float32
    assert source.size == (64, 64)
    assert 60 < prompts.count("") < 140
    assert source.batch(5, Draw.of(0, 1), 0)[1] == source.batch(5, Draw.of(0, 1), 0)[1]
