"""Adapters of every algorithm and layout, merged as LyCORIS, PEFT and diffusers merge them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fewstep import CorruptModelError
from fewstep.addons import lora, lora_deltas, lora_targets
from fewstep.addons.lora_apply import merge_weight
from fewstep.catalog.addons import same_kin
from fewstep.files.safetensors import Header
from tests.addons import lycoris_kinds as made

TOLERANCE = 5e-6  # of what changes most; fp32, sums in another order
SHARES = (1.0, -0.6)


@cache
def unets() -> Mapping[str, Any]:
    return made.unets()


def ours(path: Path, tensors: Mapping[str, Tensor], unet: Any, share: float) -> dict[str, Tensor]:
    """Changed weights and biases by name."""
    save_file(dict(tensors), path)
    read = lora.read_lora(path, lora_targets.find_lora_targets({"unet": unet}, unet.config))
    return {
        name: merge_weight(unet.get_parameter(name).detach(), ((delta, share),))
        for (_, name), delta in read.deltas.items()
    }


@torch.no_grad()
def error(path: Path, kind: str, layout: str, family: str, share: float) -> float:
    """The greatest difference to LyCORIS, as a part of the greatest change; every layer must be there."""
    unet = unets()[family]
    tensors, adapters = made.file_of(unet, kind, layout)
    changed = ours(path, tensors, unet, share)
    worst, expected = 0.0, dict[str, Tensor]()
    assert len(adapters) >= 5
    for layer, adapter in adapters.items():
        weight, bias = made.merged(adapter, share)
        expected[f"{layer}.weight"] = weight
        if bias is not None:
            expected[f"{layer}.bias"] = bias
    assert changed.keys() == expected.keys()
    for name, value in expected.items():
        change = float((value - unet.get_parameter(name)).abs().max())
        assert change > 1e-4
        worst = max(worst, float((changed[name] - value.view_as(changed[name])).abs().max()) / change)
    return worst


LINEAR = {kind for kind in made.KINDS if not kind.startswith(("OFT", "BOFT"))}  # those turn less at a share
UNDERSCORED = ("kohya", "LyCORIS", "OneTrainer, older")


def layouts(kind: str) -> Iterable[str]:
    return UNDERSCORED if kind.startswith("(IA)") else made.LAYOUTS


@pytest.mark.parametrize("family", ["SDXL", "SD"])
@pytest.mark.parametrize("kind", made.KINDS)
def test_every_algorithm_is_merged_as_lycoris_does(kind: str, family: str, tmp_path: Path) -> None:
    for share in SHARES if kind in LINEAR else SHARES[:1]:
        assert error(tmp_path / "a.safetensors", kind, "kohya", family, share) < TOLERANCE


@pytest.mark.parametrize("family", ["SDXL", "SD"])
@pytest.mark.parametrize("layout", made.LAYOUTS)
def test_every_layout_names_the_same_layers(layout: str, family: str, tmp_path: Path) -> None:
    for kind in ("DoRA, by input", "LoHa", "full", "norms"):
        assert error(tmp_path / "a.safetensors", kind, layout, family, 1.0) < TOLERANCE


PEFT: dict[str, Any] = {
    "DoRA": peft.LoraConfig(
        r=4, lora_alpha=3, use_dora=True, init_lora_weights=False, target_modules=["to_q", "to_k", "conv1"]
    ),
    "lora_bias": peft.LoraConfig(
        r=4, lora_alpha=3, lora_bias=True, init_lora_weights=False, target_modules=["to_out.0", "ff.net.2"]
    ),
    "LoHa": peft.LoHaConfig(
        r=4, alpha=3, use_effective_conv2d=True, init_weights=False, target_modules=["to_q", "conv1"]
    ),
    "LoKr": peft.LoKrConfig(r=2, alpha=3, init_weights=False, target_modules=["to_q", "to_k", "conv1"]),
    "(IA)³": peft.IA3Config(
        init_ia3_weights=False, target_modules=["to_k", "to_v", "ff.net.2"], feedforward_modules=["ff.net.2"]
    ),
}


@pytest.mark.filterwarnings("ignore:Adapter 'default'. .* invalid shape")  # PEFT, of its own biases
@pytest.mark.parametrize("kind", PEFT)
@torch.no_grad()
def test_pefts_own_files(kind: str, tmp_path: Path) -> None:
    """`save_pretrained`, whose alpha is in adapter_config.json, against PEFT's merging."""
    unet = made.unets()["SDXL"]
    torch.manual_seed(3)
    model = peft.get_peft_model(unet, PEFT[kind])
    for name, value in model.named_parameters():
        if "magnitude" in name or "ia3_l" in name or name.endswith("lora_B.default.bias"):
            value.mul_(1 + 0.3 * torch.randn_like(value)).add_(0.1)
    model.save_pretrained(tmp_path)
    merged = dict(model.merge_and_unload().named_parameters())
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    before = unets()["SDXL"]  # drawn from the same seed
    changed = ours(tmp_path / "adapter_model.safetensors", tensors, before, 1.0)
    moved = {name for name, value in merged.items() if not torch.equal(value, before.get_parameter(name))}
    assert changed.keys() == moved != set()
    for name, value in changed.items():
        torch.testing.assert_close(value, merged[name], rtol=1e-5, atol=1e-5)


LAYER = "lora_unet_down_blocks_1_attentions_0_proj_in"  # (64, 64)
FACTORS = {"lora_up.weight": (64, 2), "lora_down.weight": (2, 64)}
REFUSED: dict[str, tuple[dict[str, tuple[int, ...]], str]] = {
    "PEFT's OFT": ({"unet.conv_in.oft_R.weight": (4, 6)}, "an adapter of kind OFT v2 .PEFT's., which cannot"),
    "VeRA": ({"base_model.model.conv_in.vera_lambda_b": (4,)}, "of kind VeRA, which cannot be put on: give"),
    "an unknown tensor": ({f"{LAYER}.{r}": s for r, s in {**FACTORS, "gate": (64,)}.items()}, "no part of a"),
    "LoHa cut short": ({f"{LAYER}.hada_w1_a": (64, 2)}, "has no hada_w1_b factor for down_blocks.1"),
    "two at once": (
        {f"{LAYER}.{r}": s for r, s in {**FACTORS, "diff": (64, 64)}.items()},
        "has diff, down, up for .*: no algorithm that fewstep knows has these together",
    ),
    "a width": ({f"{LAYER}.diff": (64, 32)}, "does not fit this model; .* is .64, 64., and its factors"),
    "a magnitude": (
        {f"{LAYER}.{r}": s for r, s in {**FACTORS, "dora_scale": (3, 1)}.items()}, "magnitude is .3, 1.",
    ),
    "a bias that is not there": (
        {f"{LAYER[:-7]}transformer_blocks_0_attn1_to_q.diff_b": (64,)}, "and that bias is not there",
    ),
    "a bias of another width": ({f"{LAYER}.diff_b": (3,)}, "and that bias is 64 wide"),
    "one layer of another": (
        {f"{LAYER.replace('1', '9')}.diff": (4, 4)},
        "does not fit this model; 1 of its 1 layers are not in this one: lora_unet_down_blocks_9",
    ),
    "another base": (
        {f"{LAYER[:-7]}transformer_blocks_0_attn2_to_k.{r}": s for r, s in
         {"lora_up.weight": (64, 2), "lora_down.weight": (2, 768)}.items()},
        "does not fit this model; .* is .64, 48., and its factors are down .2, 768., up",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_says_its_cause(case: str, tmp_path: Path) -> None:
    shapes, said = REFUSED[case]
    with pytest.raises(CorruptModelError, match=said) as caught:
        ours(tmp_path / "a.safetensors", {n: torch.ones(s) for n, s in shapes.items()}, unets()["SDXL"], 1.0)
    assert "another base" not in str(caught.value)


def test_another_base_is_named_where_it_is_known() -> None:
    """Nothing is said of another base than shapes prove."""
    assert not same_kin("sd-1.x", "sdxl")
    assert same_kin("sdxl", "ssd-1b")
    assert same_kin("unknown", "sdxl")
    header = Header(path=Path("a"), tensors={}, metadata={"ss_base_model_version": "sd_v1"}, bytes=0)
    shapes = {
        "attn2_to_k": (640, 2048), "add_embedding_linear_1": (1280, 2816), "conv_in": (320, 4, 3, 3),
        "down_blocks_2_attentions_0_transformer_blocks_9_x": (1, 1), "mid_block_attentions_0_x": (1, 1),
    }  # fmt: skip
    layers = {
        ("unet", name): lora_targets.LoraTarget("x", torch.Size(shape)) for name, shape in shapes.items()
    }
    assert lora._whose(header, layers) == ": it was made for sd-1.x, and the model is sdxl"
    assert lora._whose(replace(header, metadata={}), layers) == ""


def test_an_empty_layer_changes_nothing(tmp_path: Path) -> None:
    """Resizing by singular values leaves rank 0 where nothing was left."""
    empty = {f"{LAYER}.lora_up.weight": torch.zeros(64, 0), f"{LAYER}.lora_down.weight": torch.zeros(0, 64)}
    assert (
        ours(tmp_path / "a.safetensors", {**empty, f"{LAYER}.alpha": torch.ones(())}, unets()["SDXL"], 1.0)
        == {}
    )


def test_algorithms_may_be_mixed_in_a_file(tmp_path: Path) -> None:
    """As LyCORIS' presets do, and ComfyUI's extraction: each layer has its own."""
    tensors, unet = dict[str, Tensor](), unets()["SDXL"]
    for number, kind in enumerate(("LoHa", "LoKr", "DoRA, by input", "LoCon, Tucker")):
        mine, adapters = made.file_of(unet, kind, "kohya")
        layers = [made.in_kohya(layer) for place, layer in enumerate(adapters) if place % 4 == number]
        tensors |= {
            name: value for name, value in mine.items() if name.startswith(tuple(f"{x}." for x in layers))
        }
    tensors[f"{made.in_kohya('down_blocks.0.downsamplers.0.conv')}.diff_b"] = torch.ones(32)
    assert len(ours(tmp_path / "a.safetensors", tensors, unet, 1.0)) == len(made.LAYERS) + 1


# Role, its shape, the weight's → the side that it scales: 0 outputs, 1 inputs.
MAGNITUDES = [
    ("dora_scale", (8, 1), (8, 4), 0),  # LyCORIS
    ("dora_scale", (1, 4), (8, 4), 1),  # OneTrainer, older LyCORIS
    ("dora_scale", (1, 8, 1, 1), (8, 8, 3, 3), 1),
    ("dora_scale", (8,), (8, 8), 0),  # diffusers, of PEFT's
    ("dora_scale", (1, 8, 1, 1), (8, 4, 3, 3), 0),
    ("magnitude_vector", (8,), (8, 8), 0),  # PEFT
    ("magnitude_vector", (1, 8, 1, 1), (8, 8, 3, 3), 0),
]


@pytest.mark.parametrize(("role", "given", "weight", "side"), MAGNITUDES)
def test_a_magnitudes_side(role: str, given: tuple[int, ...], weight: tuple[int, ...], side: int) -> None:
    found = lora_deltas.find_magnitude({role: torch.ones(given)}, torch.Size(weight))
    assert found is not None
    assert found.shape == tuple(weight[side] if axis == side else 1 for axis in range(len(weight)))
