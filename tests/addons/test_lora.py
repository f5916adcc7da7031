"""LoRA adapters: merged without a trace, in both layouts, and refused where they do not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers.utils import convert_state_dict_to_kohya
from safetensors.torch import load_file, save_file

import fewstep
from fewstep import CorruptModelError, Engine, ModelNotFoundError, RequestError
from fewstep.addons import lora
from fewstep.addons.lora_deltas import LoraDelta
from fewstep.addons.lora_targets import LoraTarget

Load = Callable[..., Engine]


def load(model: Path | str, mode: str | None = None, accelerator: Path | str = "") -> Engine:
    return fewstep.load(model, mode, accelerator=accelerator, device="cpu", precision="fp32")


def pixels(engine: Engine, steps: int = 2) -> bytes:
    return engine.generate("a red fox", steps, seed=1)[0].tobytes()


def test_an_adapter_changes_the_pictures(sdxl_folder: Path, tmp_path: Path, engine: Load) -> None:
    with load(sdxl_folder, "lcm-lora", no_adapter(sdxl_folder, tmp_path / "zero.safetensors")) as plain:
        assert pixels(plain) != pixels(engine("lcm-lora"))


def no_adapter(folder: Path, path: Path) -> Path:
    """An adapter that adds nothing."""
    unet = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    name = next(key for key in unet if key.endswith("attn1.to_q.weight"))
    layer, width = name.removesuffix(".weight"), len(unet[name])
    zeros = {"lora_A": torch.zeros(2, width), "lora_B": torch.zeros(width, 2)}
    save_file({f"unet.{layer}.{part}.weight": value for part, value in zeros.items()}, path)
    return path


def test_merging_leaves_a_plain_network(engine: Load) -> None:
    unet = engine("lcm-lora").parts.unet
    assert [*unet.state_dict()] == [*engine("turbo").parts.unet.state_dict()]
    assert not any(weight.requires_grad for weight in unet.parameters())


def test_kohyas_layout_is_the_same_adapter(
    sdxl_folder: Path, lora_file: Path, tmp_path: Path, engine: Load
) -> None:
    state = load_file(lora_file)
    kohya = convert_state_dict_to_kohya({k.removeprefix("unet."): v for k, v in state.items()})
    renamed = {"lora_unet_" + _underscored(key): value for key, value in kohya.items()}
    save_file(renamed, tmp_path / "kohya.safetensors")
    with load(sdxl_folder, "lcm-lora", tmp_path / "kohya.safetensors") as loaded:
        for name, weight in loaded.parts.unet.state_dict().items():
            expected = engine("lcm-lora").parts.unet.state_dict()[name]
            torch.testing.assert_close(weight, expected, rtol=0, atol=1e-6)


def _underscored(key: str) -> str:
    layer, _, part = key.removeprefix("lora_unet_").partition(".")
    return f"{layer.replace('.', '_')}.{part}"


def test_a_lora_folder_is_enough(sdxl_folder: Path, lora_file: Path, engine: Load) -> None:
    with load(sdxl_folder, "lcm-lora", lora_file.parent) as loaded:
        assert pixels(loaded) == pixels(engine("lcm-lora"))


ADAPTERS: dict[str, Callable[[Path], object]] = {
    "garbage": lambda path: path.write_bytes(b"\x80\x04not safetensors" * 100),
    "empty": lambda path: path.write_bytes(b""),
    "no tensors": lambda path: save_file({}, path),
    "other tensors": lambda path: save_file({"model.weight": torch.zeros(2, 2)}, path),
    "text encoder only": lambda path: save_file(
        {f"text_encoder.layers.0.q_proj.lora_{x}.weight": torch.zeros(2, 2) for x in "AB"}, path
    ),
    "layers of another base": lambda path: save_file(
        {f"unet.mid_block.attentions.0.nothing.lora_{x}.weight": torch.zeros(2, 2) for x in "AB"}, path
    ),
    "half a pair": lambda path: save_file(
        {"unet.mid_block.resnets.0.conv1.lora_A.weight": torch.zeros(2, 2)}, path
    ),
    "unknown kohya": lambda path: save_file({"lora_unet_nothing.lora_down.weight": torch.zeros(2, 2)}, path),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_file_that_is_no_adapter_here(name: str, sdxl_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    ADAPTERS[name](path)
    with pytest.raises((CorruptModelError, RequestError), match=r"lora\.safetensors"):
        load(sdxl_folder, "lcm-lora", path)


def test_an_adapter_of_another_width(sdxl_folder: Path, lora_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "wide.safetensors"
    save_file({key: value.repeat_interleave(2, dim=1) for key, value in load_file(lora_file).items()}, path)
    with pytest.raises(CorruptModelError, match=r"wide\.safetensors does not fit this model"):
        load(sdxl_folder, "lcm-lora", path)


LAYER = "down_blocks_1_attentions_0_proj_in"
PLACES = {("unet", LAYER): LoraTarget("down_blocks.1.attentions.0.proj_in.weight", torch.Size((4, 4)))}


def with_alpha(path: Path, alpha: torch.Tensor) -> Path:
    factors = {"lora_down.weight": torch.ones(2, 4), "lora_up.weight": torch.ones(4, 2), "alpha": alpha}
    save_file({f"lora_unet_{LAYER}.{role}": tensor for role, tensor in factors.items()}, path)
    return path


@pytest.mark.parametrize(
    "dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.float64, torch.int64]
)
def test_an_alpha_of_any_real_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    """torch cannot add float8."""
    path = with_alpha(tmp_path / "lora.safetensors", torch.tensor(3.0).to(dtype))
    (delta,) = lora.read_lora(path, PLACES).deltas.values()
    assert isinstance(delta, LoraDelta)
    assert delta.scale == 1.5


@pytest.mark.parametrize("alpha", [torch.tensor(3 + 0j), torch.tensor(float("nan")), torch.ones(2)])
def test_an_alpha_that_is_no_number(tmp_path: Path, alpha: torch.Tensor) -> None:
    with pytest.raises(CorruptModelError, match=r"lora\.safetensors has an alpha for .* no finite number"):
        lora.read_lora(with_alpha(tmp_path / "lora.safetensors", alpha), PLACES)


def test_no_adapter_in_the_folder(sdxl_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"holds no pytorch_lora_weights\.safetensors"):
        load(sdxl_folder, "lcm-lora", tmp_path)


def test_a_file_of_infinite_numbers_is_refused(lora_file: Path, tmp_path: Path, sdxl_folder: Path) -> None:
    """Its pictures would fail, and blame the model."""
    weights = load_file(lora_file)
    weights[min(weights)][0] = torch.inf
    save_file(weights, tmp_path / "lora.safetensors")
    with pytest.raises(CorruptModelError, match=r"lora\.safetensors has numbers for .* that are not finite"):
        load(sdxl_folder, "lcm-lora", tmp_path / "lora.safetensors")
