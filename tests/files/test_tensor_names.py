"""Names of an adapter's tensors: read from their end, in a time that their length bounds."""

from __future__ import annotations

import time

import pytest

from fewstep.files.safetensors import MAX_NAME
from fewstep.files.tensor_names import parse_lora_name
from fewstep.files.untrusted import MAX_TENSORS

TORTUOUS = ["_oft_", "_oft__", "_oft_x", ".lora.A", "_lora_down.", ".lora_magnitude_vector"]


@pytest.mark.parametrize("part", TORTUOUS)
def test_no_name_takes_long(part: str) -> None:
    """20,000 names of `_oft_` without end took 1.8 s, each read anew from every underscore."""
    name = (part * MAX_NAME)[: MAX_NAME - 1] + "!"
    start = time.process_time()
    assert all(parse_lora_name(name) is None for _ in range(MAX_TENSORS))
    assert time.process_time() - start < 0.9


def test_a_long_module_keeps_its_name() -> None:
    module = "down_blocks_1_" * 30 + "to_k"
    found = parse_lora_name(f"lora_unet_{module}.lora_down.weight")
    assert found is not None
    assert (found.network, found.module, found.role) == ("unet", module, "down")


def test_the_longest_end_is_read() -> None:
    end = f"lora_linear_layer.down.{'a' * 40}.{'b' * 40}"
    found = parse_lora_name(f"unet.{'x' * 200}.{end}")
    assert found is not None
    assert (found.network, found.module, found.role) == ("unet", "x" * 200, "down")
    assert parse_lora_name(f"unet.x.{end}b") is None


def test_a_name_of_two_lines_is_no_adapters() -> None:
    assert parse_lora_name("lora_unet_a\rb.lora_down.weight") is None


LAYER = "text_model_encoder_layers_0_mlp_fc1"
NAMES = {  # as writers have them → network, whether that is said, module, role
    f"lora_te_{LAYER}.lokr_w1": ("text_encoder", True, LAYER, "lokr_w1"),
    "lora_te2.text_model.encoder.layers.0.mlp.fc1.alpha": ("text_encoder_2", True, LAYER, "alpha"),
    "clip_g.text_model.encoder.layers.0.mlp.fc1.dora_scale": ("text_encoder_2", True, LAYER, "dora_scale"),
    "clip_l.text_projection.hada_w1_a": ("text_encoder", True, "text_projection", "hada_w1_a"),
    "text_encoders.clip_l.transformer.text_model.final_layer_norm.diff": (
        "text_encoder", True, "text_model_final_layer_norm", "diff",
    ),
    "diffusion_model.out.2.diff_b": ("unet", True, "out_2", "diff_b"),
    "unet.input_blocks.4.1.norm.w_norm": ("unet", True, "input_blocks_4_1_norm", "w_norm"),
    f"lycoris_{LAYER}.oft_blocks": ("text_encoder", False, LAYER, "oft_blocks"),
    "lycoris_conv_in.weight": ("unet", False, "conv_in", "weight"),
    "unet.conv_in.lora_B.bias": ("unet", True, "conv_in", "up_bias"),
    "base_model.model.conv_in.ia3_l": ("unet", False, "conv_in", "ia3_l"),
    "unet.conv_in.lora_magnitude_vector": ("unet", True, "conv_in", "magnitude_vector"),
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_names_of_writers(name: str) -> None:
    found = parse_lora_name(name)
    assert found is not None
    assert (found.network, found.named, found.module, found.role) == NAMES[name]


@pytest.mark.parametrize(
    "name", ["unet.conv_in.weight", "conv_in.weight", "x.diff", "first_stage_model.b1.weight"]
)
def test_names_of_whole_weights(name: str) -> None:
    assert parse_lora_name(name) is None
