"""`vae=`: what decodes in the place of the model's own, and what is refused before anything is loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from PIL import Image, ImageChops
from torch import Tensor

import fewstep
from fewstep import RequestError, api
from fewstep.catalog import assets, hub, vaes
from fewstep.catalog.models import TINY, describe_model
from fewstep.codec import to_pixels
from fewstep.devices.memory import TINY_VAE_NUMBERS, VAE_NUMBERS
from fewstep.errors import CorruptModelError, ModelNotFoundError
from fewstep.loading import parts as loading
from fewstep.loading.folder import read_folder
from fewstep.loading.footprint import measure_model
from fewstep.testing import fake

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an AutoencoderTiny that nobody can tell from SDXL's but by its width."""
    torch.manual_seed(5)
    folder = tmp_path_factory.mktemp("small")
    widths = (8,) * 4
    made = AutoencoderTiny(encoder_block_out_channels=widths, decoder_block_out_channels=widths)
    made.save_pretrained(folder)
    return folder


def last(model: Path | str, **how: Any) -> fewstep.Step:
    """The last step of a call."""
    with fewstep.load(model, device="cpu", precision="fp32", **how) as engine:
        return [*engine.stream("a fox", 2, seed=3)][-1]


def apart(one: Tensor, other: Tensor) -> int:
    return int((one.int() - other.int()).abs().max())


# --- what it does


@pytest.mark.parametrize("place", ["folder", "file", "file alone"])
def test_it_decodes_as_diffusers_does(place: str, small: Path, sdxl_folder: Path, tmp_path: Path) -> None:
    shutil.copy(small / WEIGHTS, tmp_path / "mine.safetensors")
    given = {"folder": small, "file": small / WEIGHTS, "file alone": tmp_path / "mine.safetensors"}[place]
    own, step = last(sdxl_folder, mode="turbo"), last(sdxl_folder, mode="turbo", vae=given)
    assert torch.equal(own.latents, step.latents)  # it has no say in them
    with torch.no_grad():
        wanted = AutoencoderTiny.from_pretrained(small).decode(step.latents).sample
    assert apart(step.codec.decode(step.latents), to_pixels(wanted)[0]) <= 1
    assert torch.equal(step.codec.preview(step.latents), step.codec.decode(step.latents))


def test_the_bundled_one_is_the_families() -> None:
    step = last("tiny", mode="lcm", vae="tiny")
    with torch.no_grad():
        wanted = AutoencoderTiny.from_pretrained(TINY / "vae_tiny").decode(step.latents).sample
    assert apart(step.codec.decode(step.latents), to_pixels(wanted)[0]) <= 1
    assert step.preview().tobytes() == Image.fromarray(step.codec.decode(step.x0).numpy()).tobytes()


@pytest.mark.parametrize("family", ["sdxl", "ssd-1b"])
def test_sdxls_comes_from_the_hub_at_its_commit(
    family: str, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def folder(*what: Any) -> Path:
        asked.append(what)
        return small

    monkeypatch.setattr(hub, "cached_folder", lambda *_: None)
    monkeypatch.setattr(hub, "fetch_folder", folder)
    known = assets.ASSETS["taesdxl"]
    vaes.check_vae("tiny", describe_model(family))  # looks at nothing that is not here
    assert asked == []
    assert vaes.fetch_vae("tiny", describe_model(family)) == small
    assert asked == [("madebyollin/taesdxl", known.files, known.revision)]
    assert vaes.fetch_vae("owner/name", describe_model(family)) == small
    assert asked[1] == ("owner/name", assets.NETWORK_FILES)


def test_it_encodes_too() -> None:
    picture = Image.linear_gradient("L").resize((128, 128)).convert("RGB")
    mask = Image.new("L", picture.size, 0)
    mask.paste(255, (0, 64, 128, 128))
    asked: dict[str, Any] = {"image": picture, "strength": 0.5, "seed": 1, "device": "cpu"}
    made = {name: fewstep.generate("a sun", 2, vae=name, **asked)[0].tobytes() for name in ("", "tiny")}
    assert made[""] != made["tiny"]
    inside = fewstep.generate("a sun", 2, vae="tiny", mask=mask, **asked)[0]
    box = ImageChops.difference(inside, picture).getbbox()
    assert box is not None
    assert box[1] >= 64


def test_a_picture_can_be_made_again(tmp_path: Path) -> None:
    """The engine that stays loaded is of this VAE, and its name is in the file."""
    asked: dict[str, Any] = {"seed": 4, "device": "cpu"}
    made = fewstep.generate("a sun", 1, vae="tiny", **asked)
    assert (made.vae, made.licence) == ("tiny", "Apache-2.0")
    assert [*api._engines.loaded][-1].file("vae") == "tiny"
    facts = fewstep.metadata.read(made.save(tmp_path / "sun.png")[0])
    own = fewstep.generate("a sun", 1, **asked)
    assert (own.vae, own.facts()["vae"]) == ("", "")
    again = fewstep.generate(facts["prompts"], facts["steps"], vae=facts["vae"], **asked)
    assert again[0].tobytes() == made[0].tobytes() != own[0].tobytes()


def test_fakes_take_it() -> None:
    with fake():
        assert fewstep.generate("a fox", vae="tiny").facts()["vae"] == "tiny"
        with pytest.raises(RequestError, match="type vae='tiny'"):
            fewstep.generate("a fox", vae="taesdxl")


def test_it_is_counted(small: Path, sdxl_folder: Path, tmp_path: Path) -> None:
    model, count = describe_model(str(sdxl_folder)), sum(p.numel() for p in _weights(small))
    shutil.copy(small / WEIGHTS, tmp_path / "mine.safetensors")
    for given in (small, tmp_path / "mine.safetensors"):
        need = measure_model(model, given)
        assert (need.vae, need.vae_room, need.vae_fp16_safe) == (count, TINY_VAE_NUMBERS, True)
    own = measure_model(model)
    assert (own.vae_room, own.vae_fp16_safe) == (VAE_NUMBERS, False)
    assert measure_model(model, sdxl_folder / "vae") == own


def _weights(folder: Path) -> Any:
    return AutoencoderTiny.from_pretrained(folder).parameters()


def test_a_choice_is_respected_in_fp16(
    sdxl_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The corrected VAE stands in for a model's own only."""
    monkeypatch.setattr(vaes, "corrected_vae", lambda _: tmp_path)
    whole, model = read_folder(sdxl_folder), describe_model(str(sdxl_folder))
    given = str(sdxl_folder / "vae")
    assert loading._vae_blueprint(whole, sdxl_folder, torch.float16, model, given).source == given
    assert not measure_model(model, sdxl_folder / "vae").vae_fp16_safe


# --- what is refused


@pytest.fixture
def other(tmp_path: Path) -> Callable[..., Path]:
    """The folder of another VAE; `changes` are made to its configuration afterwards."""

    def write(made: Any, **changes: Any) -> Path:
        made.save_pretrained(tmp_path / "other")
        path = tmp_path / "other" / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
        return path.parent

    return write


def full(channels: int = 4) -> Any:
    return AutoencoderKL(latent_channels=channels, block_out_channels=(8,), norm_num_groups=4)


def refused(given: object, model: Path | str) -> str:
    with pytest.raises((RequestError, CorruptModelError, ModelNotFoundError)) as caught:
        fewstep.plan("a fox", model=model, vae=given)  # type: ignore[arg-type]
    said = str(caught.value)
    assert str(given) in said
    assert "\n" not in said
    return said


def test_other_latents_are_refused(other: Callable[..., Path], sdxl_folder: Path) -> None:
    assert "is for latents of 16 channels, and this model's have 4" in refused(other(full(16)), "sdxl")
    for model in ("sdxl", sdxl_folder):
        says = refused(other(full()), model)  # AutoencoderKL's default is SD 1.x's
        assert "scaling_factor 0.18215" in says
        assert "has 0.13025: give one made for it" in says
    fewstep.plan("a fox", model="sdxl", vae=other(full(), scaling_factor=0.13025))


def test_families_are_told_apart(small: Path) -> None:
    for name in ("vae", "vae_tiny"):
        assert "it was made for the bundled model" in refused(TINY / name, "sdxl")
        fewstep.plan("a fox", vae=TINY / name)
    assert "it was made for another base" in refused(small, "tiny")


def test_the_shapes_of_sd_1_cannot_be_told(other: Callable[..., Path]) -> None:
    """taesd and taesdxl differ in numbers alone."""
    fewstep.plan("a fox", model="sdxl", vae=other(AutoencoderTiny()))
    assert "it was made for another base" in refused(other(AutoencoderTiny()), "tiny")


def test_what_is_no_vae(other: Callable[..., Path], sdxl_folder: Path, lora_file: Path) -> None:
    assert "is of the kind unet" in refused(sdxl_folder / "unet", "sdxl")
    assert "is of the kind lora" in refused(lora_file, "sdxl")
    assert "is of the kind 'Other'" in refused(other(full(), _class_name="Other"), "sdxl")
    fewstep.plan("a fox", model=sdxl_folder, vae=sdxl_folder)  # the one in it


def test_a_folder_of_weights_alone(other: Callable[..., Path]) -> None:
    folder = other(full())
    (folder / WEIGHTS).unlink()
    assert "holds no weights" in refused(folder, "sdxl")


@pytest.mark.parametrize("name", ["tiny", "taesdxl", "vae-fp16"])
def test_names_are_sdxls_only_where_latents_are(name: str, copy: Path) -> None:
    """For a model with latents of its own fewstep knows none; nothing is fetched to say so."""
    config = copy / "vae" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "scaling_factor": 0.5}))
    assert "scaling_factor 0.13025, and model=" in refused(name, copy)


def test_a_copy_of_the_bundled_model(tmp_path: Path) -> None:
    """Its weights are those in it."""
    copied = shutil.copytree(TINY, tmp_path / "mine")
    assert describe_model(str(copied)).family == "tiny"
    assert vaes.fetch_vae("tiny", describe_model(str(copied))) == copied / "vae_tiny"
    fewstep.plan("a fox", mode="lcm-lora", model=copied, vae="tiny", loras=["fx"])
    shutil.rmtree(copied / "vae_tiny")
    assert "has no folder vae_tiny" in refused("tiny", copied)
    shutil.rmtree(copied / "lcm_lora")
    with pytest.raises(ModelNotFoundError, match="holds no lcm_lora/"):
        fewstep.plan("a fox", mode="lcm-lora", model=copied)


# --- the bundled adapters


@pytest.mark.parametrize(
    ("mode", "steps", "levels"),
    [("turbo", 1, (999,)), ("turbo", 4, (999, 749, 499, 249)), ("lcm-lora", 2, (999, 499))],
)
def test_all_modes_run_on_the_bundled_model(mode: str, steps: int, levels: tuple[float, ...]) -> None:
    made = fewstep.generate("a sun", steps, mode, seed=1, device="cpu", commercial=True)
    assert (made.timesteps, made.licence) == (levels, "Apache-2.0")


def test_its_adapter_is_the_one_in_its_folder() -> None:
    with fewstep.load("tiny", "lcm-lora", device="cpu", precision="fp32") as engine:
        assert engine.parts.accelerator == (str(TINY / "lcm_lora" / assets.LORA_FILES[0]), 1.0)
        unet = UNet2DConditionModel.from_pretrained(TINY / "unet")
        unet.load_lora_adapter(TINY / "lcm_lora", prefix="unet", weight_name=assets.LORA_FILES[0])
        unet.fuse_lora()
        theirs, ours = unet.mid_block.attentions[0].proj_in.base_layer, engine.parts.unet
        assert torch.allclose(theirs.weight, ours.mid_block.attentions[0].proj_in.weight, atol=1e-6)


def test_a_style_by_name() -> None:
    with fewstep.load("tiny", "base", device="cpu", commercial=True) as engine:
        plain, styled = (engine.generate("a sun", 2, seed=1, loras=worn) for worn in ([], [("fx", 1.0)]))
        assert engine.generate("a sun", 2, seed=1)[0].tobytes() == plain[0].tobytes() != styled[0].tobytes()
    assert styled.plan.request.loras == (("fx", 1.0),)
    assert styled.licence == "Apache-2.0"
    (beside,) = fewstep.plan("a sun", 2, "lcm-lora", loras=["fx"]).request.loras
    assert beside == ("fx", 0.8)
