"""Adapters below the engine: the names of layers, merging itself, and weights that wait in RAM."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from fewstep import Engine
from fewstep.addons import lora_targets
from fewstep.addons.lora_apply import merge_weight
from fewstep.addons.lora_deltas import LoraDelta
from fewstep.devices import Placement, place
from fewstep.loading import parts
from fewstep.request.engine_choice import choose_engine
from tests.addons import loras
from tests.devices.machines import TINY, machine
from tests.files import headers as made

META = torch.device("meta")


@pytest.fixture(scope="module")
def sdxl() -> Any:
    """SDXL's UNet without weights."""
    with META:
        return UNet2DConditionModel(**made.SDXL)


def named(unet: Any) -> Mapping[tuple[str, str], lora_targets.LoraTarget]:
    return lora_targets.find_lora_targets({"unet": unet}, unet.config)


def test_every_layer_of_sdxl_has_its_original_name(sdxl: Any) -> None:
    """`made.original_name` was written by another hand, from Stability's code."""
    known = named(sdxl)
    weights = [n for n, w in sdxl.named_parameters() if n.endswith(".weight") and w.ndim in (2, 4)]
    assert len(weights) > 790
    for weight in weights:
        original = made.original_name(weight).removesuffix(".weight").replace(".", "_")
        assert known["unet", original].weight == weight
        assert known["unet", weight.removesuffix(".weight").replace(".", "_")].weight == weight


# As they stand in files from Civitai and from kohya's trainer.
DOWN, MIDDLE = "down_blocks.{}.attentions.{}.", "mid_block.attentions.0."
REAL = {
    "input_blocks_4_1_transformer_blocks_1_attn2_to_k": DOWN.format(1, 0) + "transformer_blocks.1.attn2.to_k",
    "input_blocks_8_1_proj_in": DOWN.format(2, 1) + "proj_in",
    "input_blocks_3_0_op": "down_blocks.0.downsamplers.0.conv",
    "middle_block_1_transformer_blocks_9_ff_net_0_proj": MIDDLE + "transformer_blocks.9.ff.net.0.proj",
    "middle_block_2_in_layers_2": "mid_block.resnets.1.conv1",
    "output_blocks_2_2_conv": "up_blocks.0.upsamplers.0.conv",
    "output_blocks_5_1_proj_out": "up_blocks.1.attentions.2.proj_out",
    "output_blocks_8_0_skip_connection": "up_blocks.2.resnets.2.conv_shortcut",
    "label_emb_0_2": "add_embedding.linear_2",
    "mid_block_attentions_0_transformer_blocks_0_attn1_to_out_0": MIDDLE
    + "transformer_blocks.0.attn1.to_out.0",
}


@pytest.mark.parametrize("name", REAL)
def test_names_of_real_files(name: str, sdxl: Any) -> None:
    assert named(sdxl)["unet", name].weight == f"{REAL[name]}.weight"


@pytest.mark.parametrize("kernel", [(), (1, 1), (3, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_merging_is_what_the_adapter_would_add(kernel: tuple[int, ...], dtype: torch.dtype) -> None:
    """A layer with two adapters beside it, on any input."""
    torch.manual_seed(0)
    weight = torch.randn(6, 5, *kernel).to(dtype)
    if kernel == (3, 3):
        weight = weight.to(memory_format=torch.channels_last)
    point = (1,) * len(kernel)
    added = [
        (LoraDelta(torch.randn(6, 2, *point), torch.randn(2, 5, *kernel), 0.5), share)
        for share in (0.7, -1.2)
    ]
    now = merge_weight(weight, tuple(added))
    assert (now.dtype, now.stride()) == (dtype, weight.stride())
    x = torch.randn(3, 5, *(4 for _ in kernel))
    run: Any = torch.nn.functional.conv2d if kernel else torch.nn.functional.linear
    expected = run(x, weight.float())
    for delta, share in added:
        expected += share * delta.scale * run(run(x, delta.down), delta.up)
    tolerance = 1e-5 if dtype == torch.float32 else 0.2
    torch.testing.assert_close(run(x, now.float()), expected, rtol=0, atol=tolerance)


def placed(how: str) -> Placement:
    """ "cpu:0" is the CPU, but another device than "cpu": weights get a stand-in for each visit."""
    return replace(place(machine(), TINY), offload=how, device=torch.device("cpu:0"))


def engine(folder: Path, how: str) -> Engine:
    choice = choose_engine("turbo", None, {"model": folder})
    return Engine(choice, placed(how), parts.load_parts(choice.model, choice.recipe, choice.key, placed(how)))


@pytest.mark.parametrize("how", ["model", "sequential"])
def test_weights_that_wait_are_dressed_too(how: str, sdxl_folder: Path, tmp_path: Path) -> None:
    states = loras.states(sdxl_folder, 31)
    style = loras.by_kohya(states, tmp_path / "style.safetensors", original=True)
    outfits: list[list[tuple[Path, float]]] = [[], [(style, 1.0)], [(style, -0.5)], [], [(style, 1.0)]]

    def bits(how: str) -> list[bytes]:
        with engine(sdxl_folder, how) as one:
            return [one.generate("a red fox", 2, seed=1, loras=outfit)[0].tobytes() for outfit in outfits]

    assert bits(how) == bits("none")
    assert len(set(bits(how))) == 3


def test_streams_interleave_while_weights_wait(sdxl_folder: Path, tmp_path: Path) -> None:
    """The UNet is on the device then, when its weights change."""
    states = loras.states(sdxl_folder, 31)
    style = loras.by_kohya(states, tmp_path / "style.safetensors", original=True)

    def bits(how: str) -> list[bytes]:
        with engine(sdxl_folder, how) as one:
            worn = one.stream("a red fox", 3, seed=1, loras=[style])
            bare = one.stream("a red fox", 3, seed=1)
            steps = [step for both in zip(worn, bare, strict=True) for step in both]
            return [step.latents.numpy().tobytes() for step in steps]

    assert bits("model") == bits("none")


def test_stand_ins_leave_before_weights_change(sdxl_folder: Path, tmp_path: Path) -> None:
    """And the weights that wait are those that were loaded, once nothing is worn."""
    style = loras.by_kohya(loras.states(sdxl_folder, 31), tmp_path / "style.safetensors", original=False)
    with engine(sdxl_folder, "model") as one:
        unet = one.parts.unet
        loaded, data = unet.conv_in.weight, unet.conv_in.weight.data_ptr()
        one.generate("a red fox", 1, seed=1)
        one.generate("a red fox", 1, seed=1, loras=[style])
        assert loaded.data_ptr() != data
        one.generate("a red fox", 1, seed=1)
        assert loaded.data_ptr() == data
