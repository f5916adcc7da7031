"""Which weights a mode puts on a model is decided, or refused, from names and configurations alone."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import fewstep
from fewstep import Recipe, Weights, modes
from fewstep.catalog import addons
from fewstep.catalog.assets import ACCELERATORS, BASES
from fewstep.catalog.hub import existing_path, is_hub_id
from fewstep.catalog.mode_weights import adapter_file, choose_weights, unet_file, unet_folder
from fewstep.catalog.models import describe_model
from fewstep.errors import CorruptModelError, ModelNotFoundError, RequestError
from fewstep.files.safetensors import LORA_NAME
from fewstep.testing import fake


def write(path: Path, **content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model of SDXL's architecture without a single weight."""
    write(tmp_path / "model" / "model_index.json", text_encoder_2=["transformers", "CLIP"])
    write(tmp_path / "model" / "unet" / "config.json", addition_embed_type="text_time", sample_size=8)
    return tmp_path / "model"


@pytest.fixture
def lcm_folder(folder: Path) -> Path:
    write(folder / "unet" / "config.json", addition_embed_type="text_time", time_cond_proj_dim=256)
    return folder


def chosen(model: str | Path, mode: str, accelerator: str | Path = "") -> Weights | None:
    about, recipe = modes.choose_mode(model, mode)
    return choose_weights(about, recipe, accelerator)


def recipe(mode: str) -> Recipe:
    return modes.find_recipe(mode)


# --- what fits


def test_usual_weights() -> None:
    assert chosen("tiny", "lcm") == recipe("lcm").weights["tiny"]
    assert chosen("sdxl", "turbo") == recipe("turbo").weights["sdxl"]
    assert chosen("owner/finetune", "lcm-lora") == recipe("lcm-lora").weights["sdxl"]
    assert chosen("tiny", "base") is None


def test_a_folder_that_is_what_the_mode_needs(lcm_folder: Path) -> None:
    assert chosen(lcm_folder, "lcm") is None


def test_a_folder_is_taken_at_the_users_word(folder: Path) -> None:
    assert chosen(folder, "turbo") is None
    assert chosen(folder, "base") is None


def test_a_hub_id_of_somebodys_own_is_taken_at_their_word() -> None:
    """As a folder: "model" says whose pictures, and no mode puts other ones in their place."""
    for mode in ("turbo", "merge"):
        assert chosen("owner/finetune", mode) is None
    assert chosen("stabilityai/stable-diffusion-xl-base-1.0", "turbo") == recipe("turbo").weights["sdxl"]


def save(path: Path, name: str) -> None:
    """A file whose one tensor says what it is."""
    save_file({name: torch.zeros(2, 2)}, path)


def test_given_ones_replace_the_usual(folder: Path, tmp_path: Path) -> None:
    write(tmp_path / "lcm-unet" / "config.json", time_cond_proj_dim=256)
    save(tmp_path / "style.safetensors", "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight")
    for mode, attach, given in (
        ("lcm", "unet", tmp_path / "lcm-unet"),
        ("lcm", "unet", "owner/lcm-unet"),
        ("lcm-lora", "adapter", tmp_path / "style.safetensors"),
        ("turbo", "checkpoint", folder),
    ):
        assert chosen("sdxl", mode, given) == Weights(attach=attach, source=str(given))  # type: ignore[arg-type]


# --- what does not


@pytest.mark.parametrize("mode", ["base", "turbo", "lcm-lora"])
def test_an_lcm_folder_is_for_lcm(lcm_folder: Path, mode: str) -> None:
    with pytest.raises(RequestError, match="has a guidance embedding: use mode='lcm'"):
        chosen(lcm_folder, mode)


def test_a_plain_unet_is_not_for_lcm(folder: Path) -> None:
    with pytest.raises(RequestError, match="has no guidance embedding: give another"):
        chosen("sdxl", "lcm", folder / "unet")
    with pytest.raises(RequestError, match="use mode='lcm-lora', or give the UNet's folder"):
        chosen(folder, "lcm")


def test_a_whole_lcm_may_be_on_the_hub() -> None:
    """Its files tell when they are here."""
    assert chosen("owner/my-lcm", "lcm") is None


@pytest.mark.parametrize(
    ("mode", "instead"),
    [
        ("lcm", "use mode='lcm-lora', or give"),
        ("lightning", "use mode='lightning-lora', or give"),
        ("lightning-1step", "use mode='lightning-lora', or give"),
        ("hyper-1step", "use mode='hyper-unified', or give"),
        ("dmd2-1step", "use mode='dmd2', or give"),
    ],
)
def test_a_finetune_keeps_its_unet(folder: Path, mode: str, instead: str) -> None:
    for model in (folder, "owner/finetune")[: 1 if mode == "lcm" else 2]:
        with pytest.raises(RequestError) as caught:
            chosen(model, mode)
        assert f"mode={mode!r} would replace the UNet of model=" in str(caught.value)
        assert f"{instead} the UNet's folder as accelerator=" in str(caught.value)


@pytest.mark.parametrize(
    ("model", "mode", "fitting"),
    [
        ("tiny", "lightning", "choose one of base, turbo, lcm, lcm-lora, or give"),
        ("ssd-1b", "lightning", "choose one of base, lcm, lcm-lora, or give"),
        ("ssd-1b", "merge", "choose one of base, lcm, lcm-lora, or give"),
    ],
)
def test_modes_that_have_weights_are_named(model: str, mode: str, fitting: str) -> None:
    with pytest.raises(RequestError, match=fitting):
        chosen(model, mode)


def test_pickles_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "unet.bin").touch()
    with pytest.raises(RequestError, match=r"no \.safetensors file.*safetensors\.torch\.save_file"):
        chosen("sdxl", "lightning", tmp_path / "unet.bin")
    with pytest.raises(ModelNotFoundError, match="a pickle, which fewstep never reads"):
        chosen("sdxl", "dmd2-1step")
    save(tmp_path / "unet.safetensors", "conv_in.weight")
    own = chosen("sdxl", "dmd2-1step", tmp_path / "unet.safetensors")
    assert own == Weights(attach="unet", source=str(tmp_path / "unet.safetensors"))


def test_an_lcm_checkpoint_is_not_for_turbo(lcm_folder: Path) -> None:
    with pytest.raises(RequestError, match="has a guidance embedding"):
        chosen("sdxl", "turbo", lcm_folder)


def test_missing_ones_are_missed(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="neither a file or folder here, nor a hub id"):
        chosen("sdxl", "lcm", tmp_path / "nothing")
    with pytest.raises(ModelNotFoundError, match=f"holds no {LORA_NAME}"):
        chosen("sdxl", "lcm-lora", tmp_path)
    with pytest.raises(CorruptModelError, match="holds no UNet"):
        chosen("sdxl", "lcm", tmp_path)


# --- names and places


@pytest.mark.parametrize("name", ["a/b", "stabilityai/sdxl-turbo", "A_b/c.d-1", f"a/{94 * 'b'}"])
def test_hub_ids(name: str) -> None:
    assert is_hub_id(name)
    assert describe_model(name).source == name


@pytest.mark.parametrize(
    "name", ["a", "/a", "a/", "./a", "../a", "~/a", "a/b/c", "a b/c", "a/b\n", "ä/b", f"a/{95 * 'b'}"]
)
def test_no_hub_ids(name: str) -> None:
    assert not is_hub_id(name)


@pytest.mark.parametrize("name", ["nothing", 5000 * "x", "a\0b", "~nobody/x", "\ud800"])
def test_names_of_nothing(name: str) -> None:
    assert existing_path(name) is None
    with pytest.raises(ModelNotFoundError) as caught:
        describe_model(name)
    assert "\n" not in str(caught.value)


def test_home_is_expanded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    assert existing_path("~/model") == folder
    assert describe_model(os.path.join("~", "model")).local


def test_where_files_are(folder: Path, tmp_path: Path) -> None:
    assert unet_folder("unet", folder) == folder / "unet"
    assert unet_folder(str(folder), tmp_path) == folder / "unet"
    assert unet_folder("owner/name", tmp_path) is None
    assert unet_file(Weights(attach="unet", source=str(folder)), tmp_path) is None
    assert unet_file(Weights(attach="unet", source="owner/name", file="a.safetensors"), tmp_path) is None
    (folder / "a.safetensors").touch()
    for source, name in ((folder, "a.safetensors"), (folder / "a.safetensors", "")):
        given = Weights(attach="unet", source=str(source), file=name)
        assert unet_file(given, tmp_path) == folder / "a.safetensors"
    (tmp_path / LORA_NAME).touch()
    assert adapter_file(Weights(attach="adapter", source=str(tmp_path)), folder) == tmp_path / LORA_NAME
    assert adapter_file(Weights(attach="adapter", source="owner/name"), folder) is None
    own = Weights(attach="adapter", source=tmp_path.name, file=LORA_NAME)
    assert adapter_file(own, tmp_path.parent) == tmp_path / LORA_NAME  # inside the model's folder
    with pytest.raises(ModelNotFoundError, match="give the mode's LoRA as accelerator="):
        adapter_file(own, folder)


def test_a_lora_folder_means_the_same_everywhere(tmp_path: Path) -> None:
    """PEFT's name for the file, and the only file of any name."""
    lora = "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight"
    for name in ("adapter_model.safetensors", "mine.safetensors"):
        (tmp_path / name[0]).mkdir()
        save(tmp_path / name[0] / name, lora)
        folder = str(tmp_path / name[0])
        assert chosen("sdxl", "lcm-lora", folder) == Weights(attach="adapter", source=folder)
        assert adapter_file(Weights(attach="adapter", source=folder), tmp_path) == addons.addon_file(folder)
    assert chosen("sdxl", "lightning", tmp_path / "a") == Weights(
        attach="adapter", source=str(tmp_path / "a")
    )


def test_a_folder_of_learned_words_is_told_as_such(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"embeddings has .* holds 0 \.safetensors files") as told:
        addons.addon_file(str(tmp_path), "embeddings")
    assert "lora" not in str(told.value).replace(str(tmp_path), "")


# --- known models


def test_a_known_repository_is_its_alias() -> None:
    for asset in (*BASES[1:], ACCELERATORS[0]):
        found = describe_model(asset.repo)
        assert (found.name, found.source, found.revision) == (asset.repo, asset.repo, asset.revision)
        assert (found.family, found.size, found.licence) == (asset.family, asset.size, asset.licence)
        assert found.default_mode == asset.modes[0]
    sdxl = describe_model("stabilityai/stable-diffusion-xl-base-1.0")
    assert replace(sdxl, name="sdxl") == describe_model("sdxl")
    assert describe_model("latent-consistency/lcm-sdxl").licence == "unknown"  # no whole model


def test_turbo_by_its_repository_is_turbo() -> None:
    """And is not fetched once more; another mode's UNet would leave nothing of it."""
    turbo = "stabilityai/sdxl-turbo"
    about, own = modes.choose_mode(turbo, None)
    assert (own.mode, about.size, choose_weights(about, own, "")) == ("turbo", 512, None)
    assert chosen(turbo, "base") is None
    with pytest.raises(RequestError, match="would replace the UNet"):
        chosen(turbo, "lightning")


@pytest.mark.parametrize(
    ("depths", "middle", "family"),
    [
        ([1, 2, 4], "UNetMidBlock2D", "ssd-1b"),
        ([1, 2, 10], "UNetMidBlock2DCrossAttn", "sdxl"),
        ([1, 2, 4], "UNetMidBlock2DCrossAttn", "sdxl"),
        (4, "UNetMidBlock2D", "sdxl"),
    ],
)
def test_a_folders_family(depths: object, middle: str, family: str, folder: Path) -> None:
    write(
        folder / "unet" / "config.json", addition_embed_type="text_time", mid_block_type=middle,
        transformer_layers_per_block=depths,
    )  # fmt: skip
    assert describe_model(folder).family == family


# --- a revision


@pytest.mark.parametrize(
    ("model", "mode", "revision", "says"),
    [
        ("sdxl", "base", "main", "revision='main': give a commit of the hub, 40 hex digits"),
        ("sdxl", "base", 7, "revision=7: give a commit"),
        ("sdxl", "base", None, "revision=None: give a commit"),
        ("tiny", "base", "nonsense", "give a commit"),
        ("tiny", "base", 40 * "a", "model='tiny' is here: leave revision out"),
        ("folder", "base", 40 * "a", "is here: leave revision out"),
        ("sdxl", "turbo", 40 * "a", "or type model='stabilityai/sdxl-turbo'"),
    ],
)
def test_a_revision_that_cannot_act(
    model: str, mode: str, revision: Any, says: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    given = folder if model == "folder" else model
    with fake(), pytest.raises(RequestError, match=re.escape(says)):
        fewstep.load(given, mode, revision=revision)


def test_a_revision_that_can() -> None:
    with fake():
        for model, mode in (("sdxl", "lcm"), ("stabilityai/sdxl-turbo", "turbo"), ("owner/name", "base")):
            fewstep.load(model, mode, revision=40 * "a")


@pytest.mark.parametrize("mode", ["lcm", "turbo", "lcm-lora"])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_the_working_directory_does_not_stand_in_for_the_bundled_weights(
    mode: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("unet_lcm", "unet_turbo", "lcm_lora", "unet", "vae"):
        if kind == "file":
            (tmp_path / name).write_text("mine")
        else:
            (tmp_path / name).mkdir()
            (tmp_path / name / "config.json").write_text("{}")
            (tmp_path / name / "diffusion_pytorch_model.safetensors").write_text("mine")
            (tmp_path / name / "pytorch_lora_weights.safetensors").write_text("mine")
    monkeypatch.chdir(tmp_path)
    with fewstep.load("tiny", mode, device="cpu", precision="fp32") as engine:
        assert engine.generate("a cat", 1 if mode == "turbo" else 2, seed=1)
