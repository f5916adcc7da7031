"""Model files: what fits is loaded, what does not is refused by name, with what to type instead."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file

import fewstep
from fewstep import CorruptModelError, Engine, ModelError, ModelNotFoundError
from fewstep.catalog.models import describe_model
from fewstep.loading.parts import verify_checksums

Load = Callable[..., Engine]


def load(model: Path | str, mode: str | None = None, accelerator: Path | str = "") -> Engine:
    return fewstep.load(model, mode, accelerator=accelerator, device="cpu", precision="fp32")


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def pixels(engine: Engine, steps: int = 2) -> bytes:
    return engine.generate("a red fox", steps, seed=1)[0].tobytes()


# --- what fits


def test_a_folder_says_what_it_is(sdxl_folder: Path) -> None:
    model = describe_model(str(sdxl_folder))
    assert (model.family, model.size, model.default_mode, model.carries) == ("sdxl", 96, "base", "")


def test_an_lcm_folder_is_recognised(lcm_folder: Path, engine: Load) -> None:
    assert describe_model(str(lcm_folder)).default_mode == "lcm"
    with load(lcm_folder) as loaded:
        assert loaded.recipe.mode == "lcm"
        assert loaded.parts.guidance_width == 32
        assert pixels(loaded) == pixels(engine("lcm"))


@pytest.mark.parametrize("name", ["sdxl", "ssd-1b", "owner/name"])
def test_hub_names_need_no_files(name: str) -> None:
    assert describe_model(name).size == 1024


def test_prediction_type_is_the_models_own(copy: Path) -> None:
    edit(copy / "scheduler" / "scheduler_config.json", prediction_type="v_prediction")
    with load(copy) as loaded:
        assert loaded.parts.process.prediction == "v_prediction"


def test_empty_prompts_follow_the_model(copy: Path) -> None:
    edit(copy / "model_index.json", force_zeros_for_empty_prompt=False)
    with load(copy) as loaded:
        assert bool(loaded.parts.text.encode([""], (96, 96)).tokens.any())


def test_an_accelerator_may_be_a_whole_models_folder(
    sdxl_folder: Path, lcm_folder: Path, engine: Load
) -> None:
    with load(sdxl_folder, "lcm", lcm_folder) as loaded:
        assert pixels(loaded) == pixels(engine("lcm"))


# --- files that are missing or broken


@pytest.mark.parametrize("name", ["nowhere", "./nowhere/at/all", "/nowhere", "a/b/c"])
def test_a_missing_folder(name: str) -> None:
    with pytest.raises(ModelNotFoundError, match=r"neither an alias|no such file or folder"):
        load(name)


def test_an_unreachable_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelNotFoundError, match="'nobody/nothing' is not on this machine"):
        load("nobody/nothing", "base")


def test_a_modes_own_checkpoint_is_all_that_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of sdxl is used in turbo."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelNotFoundError, match=r"'stabilityai/sdxl-turbo' \(6\.9 GB\) is not on this"):
        load("sdxl", "turbo")


def test_a_folder_of_something_else(tmp_path: Path) -> None:
    with pytest.raises(CorruptModelError, match="not a complete diffusers folder"):
        load(tmp_path)


def test_not_sdxls_architecture(copy: Path) -> None:
    edit(copy / "unet" / "config.json", addition_embed_type=None)
    with pytest.raises(CorruptModelError, match="of no architecture that fewstep draws with"):
        load(copy)


def lose(path: Path) -> None:
    """One tensor less, in a file that is otherwise well formed."""
    tensors = load_file(path)
    tensors.pop(sorted(tensors)[-1])
    save_file(tensors, path, {"format": "pt"})


def widen(path: Path) -> None:
    """One tensor of another shape."""
    tensors = load_file(path)
    name = sorted(tensors)[-1]
    save_file({**tensors, name: torch.cat([tensors[name]] * 2)}, path, {"format": "pt"})


WEIGHTS = [
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
    "text_encoder_2/model.safetensors",
]


@pytest.mark.parametrize("harm", [lose, widen])
@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_that_do_not_fill_the_network(name: str, harm: Callable[[Path], None], copy: Path) -> None:
    harm(copy / name)
    with pytest.raises(CorruptModelError, match=name.split("/")[0]):
        load(copy)


BROKEN: dict[str, Callable[[Path], object]] = {
    "model_index.json": lambda path: path.write_text("{not json"),
    "unet/config.json": lambda path: path.write_text("[]"),
    "unet/diffusion_pytorch_model.safetensors": lambda path: path.write_bytes(path.read_bytes()[:5000]),
    "vae/config.json": lambda path: edit(path, _class_name="os.system"),
    "vae/diffusion_pytorch_model.safetensors": lambda path: path.unlink(),
    "text_encoder/config.json": lambda path: path.unlink(),
    "text_encoder/model.safetensors": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "text_encoder_2/model.safetensors": lambda path: path.unlink(),
    "tokenizer/tokenizer.json": lambda path: path.write_text("{not json"),
    "tokenizer_2/tokenizer.json": lambda path: path.write_text("{}"),
    "scheduler/scheduler_config.json": lambda path: path.unlink(),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_named(name: str, copy: Path) -> None:
    BROKEN[name](copy / name)
    with pytest.raises(CorruptModelError, match=name.split("/")[0]):
        load(copy)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer"])
def test_a_part_is_missing(part: str, copy: Path) -> None:
    shutil.rmtree(copy / part)
    with pytest.raises(ModelError, match=part):
        load(copy)


def test_checksums(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"hello")
    digest = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
    (tmp_path / "SHA256SUMS").write_text(f"{digest}  a\n")
    verify_checksums(tmp_path)
    (tmp_path / "a").write_bytes(b"hellp")
    with pytest.raises(CorruptModelError, match="damaged"):
        verify_checksums(tmp_path)
    (tmp_path / "a").unlink()
    with pytest.raises(CorruptModelError, match="missing"):
        verify_checksums(tmp_path)
