"""Which weights a mode puts on a model is decided, or refused, from names and configurations alone."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from fewstep import Recipe, Weights, backends
from fewstep.errors import CorruptModelError, ModelNotFoundError, RequestError
from fewstep.models.catalog import describe, is_hub_id, local
from fewstep.models.weights import LORA, adapter_file, choose, unet_folder


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
    about, recipe = backends.chosen(model, mode)
    return choose(about, recipe, accelerator)


def recipe(mode: str) -> Recipe:
    return backends.recipe(mode)


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


def test_given_ones_replace_the_usual(folder: Path, tmp_path: Path) -> None:
    write(tmp_path / "lcm-unet" / "config.json", time_cond_proj_dim=256)
    (tmp_path / "style.safetensors").touch()
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
    with pytest.raises(RequestError, match="has no guidance embedding: use mode='base'"):
        chosen("sdxl", "lcm", folder / "unet")
    with pytest.raises(RequestError, match="use mode='lcm-lora', or give the UNet's folder"):
        chosen(folder, "lcm")


def test_an_lcm_checkpoint_is_not_for_turbo(lcm_folder: Path) -> None:
    with pytest.raises(RequestError, match="has a guidance embedding"):
        chosen("sdxl", "turbo", lcm_folder)


def test_missing_ones_are_missed(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="neither a file or folder here, nor a hub id"):
        chosen("sdxl", "lcm", tmp_path / "nothing")
    with pytest.raises(ModelNotFoundError, match=f"holds no {LORA}"):
        chosen("sdxl", "lcm-lora", tmp_path)
    with pytest.raises(CorruptModelError, match="holds no UNet"):
        chosen("sdxl", "lcm", tmp_path)


# --- names and places


@pytest.mark.parametrize("name", ["a/b", "stabilityai/sdxl-turbo", "A_b/c.d-1", f"a/{94 * 'b'}"])
def test_hub_ids(name: str) -> None:
    assert is_hub_id(name)
    assert describe(name).source == name


@pytest.mark.parametrize(
    "name", ["a", "/a", "a/", "./a", "../a", "~/a", "a/b/c", "a b/c", "a/b\n", "ä/b", f"a/{95 * 'b'}"]
)
def test_no_hub_ids(name: str) -> None:
    assert not is_hub_id(name)


@pytest.mark.parametrize("name", ["nothing", 5000 * "x", "a\0b", "~nobody/x", "\ud800"])
def test_names_of_nothing(name: str) -> None:
    assert local(name) is None
    with pytest.raises(ModelNotFoundError) as caught:
        describe(name)
    assert "\n" not in str(caught.value)


def test_home_is_expanded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    assert local("~/model") == folder
    assert describe(os.path.join("~", "model")).local


def test_where_files_are(folder: Path, tmp_path: Path) -> None:
    assert unet_folder("unet", folder) == folder / "unet"
    assert unet_folder(str(folder), tmp_path) == folder / "unet"
    assert unet_folder("owner/name", tmp_path) is None
    (tmp_path / LORA).touch()
    assert adapter_file(Weights(attach="adapter", source=str(tmp_path))) == tmp_path / LORA
    assert adapter_file(Weights(attach="adapter", source="owner/name")) is None
