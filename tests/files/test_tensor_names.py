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
