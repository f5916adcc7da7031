"""What an adapter is and for which base, told from the names and shapes that real files have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.files import headers as made
from tests.files.test_identify import BOTH, differs, kind_of

LORA = {"what": "lora", "variety": "lora", "family": "sdxl", "targets": ("unet",)}
TEXT: made.Shapes = {"text_model.encoder.layers.0.self_attn.q_proj": (768, 768)}
TEXT_2: made.Shapes = {"text_model.encoder.layers.0.self_attn.q_proj": (1280, 1280)}


def original(changed: made.Shapes) -> made.Shapes:
    return {made.original_name(module): shape for module, shape in changed.items()}


def processors(changed: made.Shapes) -> made.Shapes:
    """diffusers' attention processors, before PEFT."""
    found: made.Shapes = {}
    for module, shape in changed.items():
        if ".attn" in module:
            place, leaf = module.removesuffix(".0").rsplit(".", 1)
            down, up = made.factors(shape, 8)
            found |= {
                f"unet.{place}.processor.{leaf}_lora.{end}.weight": s
                for end, s in (("down", down), ("up", up))
            }
    return found


def part(word: str) -> made.Shapes:
    """Some of SDXL's modules."""
    return {module: shape for module, shape in made.modules("sdxl").items() if word in module}


def loha(changed: made.Shapes, rank: int = 4) -> made.Shapes:
    found: made.Shapes = {}
    for module, shape in changed.items():
        name = "lora_unet_" + module.replace(".", "_")
        for side in ("w1", "w2"):
            found |= {f"{name}.hada_{side}_a": (shape[0], rank), f"{name}.hada_{side}_b": (rank, shape[1])}
        found[f"{name}.alpha"] = ()
    return found


def lokr(changed: made.Shapes, rank: int = 4) -> made.Shapes:
    """A factor of eight, the larger matrix in two factors."""
    found: made.Shapes = {}
    for module, (outputs, inputs) in changed.items():
        name = "lora_unet_" + module.replace(".", "_")
        found |= {
            f"{name}.lokr_w1": (8, 8), f"{name}.lokr_w2_a": (outputs // 8, rank),
            f"{name}.lokr_w2_b": (rank, inputs // 8),
        }  # fmt: skip
    return found


def dora(changed: made.Shapes) -> made.Shapes:
    scales = {
        f"lora_unet_{module.replace('.', '_')}.dora_scale": (shape[0], 1) for module, shape in changed.items()
    }
    return made.kohya(changed) | scales


def with_text() -> made.Shapes:
    own = made.kohya(TEXT, 4, "lora_te1_") | made.kohya(TEXT_2, 4, "lora_te2_")
    return made.kohya(original(made.modules("sdxl"))) | own


ADAPTERS: dict[str, tuple[Callable[[], made.Shapes], dict[str, Any]]] = {
    "kohya, input_blocks": (
        lambda: made.kohya(original(made.modules("sdxl"))), {"layout": "kohya", "rank": 8, "alpha": (4.0,)},
    ),
    "kohya, down_blocks": (
        lambda: made.kohya(made.modules("sdxl")), {"layout": "kohya", "rank": 8, "alpha": (4.0,)},
    ),
    "kohya, text encoders": (
        with_text,
        {"layout": "kohya", "rank": (4, 8), "alpha": (4.0,), "targets": ("unet", *BOTH)},
    ),
    "kohya, text encoders only": (
        lambda: made.kohya(TEXT, 4, "lora_te1_"),
        {"layout": "kohya", "rank": 4, "alpha": (4.0,), "targets": BOTH[:1]},
    ),
    "kohya, LoCon": (
        lambda: made.kohya(made.modules("sdxl", convolutions=True)),
        {"layout": "kohya", "rank": 8, "alpha": (4.0,), "variety": "locon", "convolutions": True},
    ),
    "diffusers": (
        lambda: made.adapter(made.modules("sdxl"), "unet.{}", 8, made.DIFFUSERS),
        {"layout": "diffusers", "rank": 8},
    ),
    "diffusers with PEFT's factors": (
        lambda: made.adapter(made.modules("sdxl"), "unet.{}", 8, made.PEFT),
        {"layout": "diffusers", "rank": 8},
    ),
    "diffusers' attention processors": (
        lambda: processors(made.modules("sdxl")), {"layout": "diffusers", "rank": 8},
    ),
    "diffusers, text encoders": (
        lambda: made.adapter(TEXT_2, "text_encoder_2.{}", 8, made.DIFFUSERS),
        {"layout": "diffusers", "rank": 8, "targets": BOTH[1:]},
    ),
    "PEFT's own": (
        lambda: made.adapter(made.modules("sdxl"), "base_model.model.{}", 8, made.PEFT),
        {"layout": "peft", "rank": 8},
    ),
    "PEFT's, with the adapter's name": (
        lambda: made.adapter(
            made.modules("sdxl"), "base_model.model.{}", 8, (".lora_A.me.weight", ".lora_B.me.weight")
        ),
        {"layout": "peft", "rank": 8},
    ),
    "LCM-LoRA": (  # rank 64, and convolutions
        lambda: made.adapter(made.modules("sdxl", convolutions=True), "unet.{}", 64, made.DIFFUSERS),
        {"layout": "diffusers", "rank": 64, "variety": "locon", "convolutions": True},
    ),
    "LCM-LoRA for SSD-1B": (
        lambda: made.adapter(made.modules("ssd-1b", convolutions=True), "unet.{}", 64, made.DIFFUSERS),
        {
            "layout": "diffusers", "rank": 64, "variety": "locon", "convolutions": True, "family": "ssd-1b",
        },
    ),
    "SSD-1B, input_blocks": (
        lambda: made.kohya(original(made.modules("ssd-1b"))),
        {"layout": "kohya", "rank": 8, "alpha": (4.0,), "family": "ssd-1b"},
    ),
    "one block of SDXL": (
        lambda: made.kohya(part("up_blocks.0.attentions.1.")),
        {"layout": "kohya", "rank": 8, "alpha": (4.0,)},
    ),
    "self-attention of SDXL": (
        lambda: made.kohya(part(".attn1.")),
        {"layout": "kohya", "rank": 8, "alpha": (4.0,)},
    ),
    "SD 1.x": (
        lambda: made.kohya(made.modules("sd-1.x")),
        {"layout": "kohya", "rank": 8, "alpha": (4.0,), "family": "sd-1.x"},
    ),
    "SD 1.x, text encoder only": (
        lambda: made.kohya(TEXT, 4, "lora_te_"),
        {"layout": "kohya", "rank": 4, "alpha": (4.0,), "family": "sd-1.x", "targets": BOTH[:1]},
    ),
    "SD 2.x": (
        lambda: made.kohya(made.modules("sd-2.x")),
        {"layout": "kohya", "rank": 8, "alpha": (4.0,), "family": "sd-2.x"},
    ),
    "refiner": (
        lambda: made.kohya(made.modules("sdxl-refiner")),
        {"layout": "kohya", "rank": 8, "alpha": (4.0,), "family": "sdxl-refiner"},
    ),
    "LoHa": (
        lambda: loha(made.modules("sdxl")),
        {"layout": "kohya", "rank": 4, "alpha": (4.0,), "variety": "loha"},
    ),
    "LoKr": (
        lambda: lokr(made.modules("sdxl")), {"layout": "kohya", "rank": 4, "variety": "lokr"},
    ),
    "DoRA": (
        lambda: dora(made.modules("sdxl")),
        {"layout": "kohya", "rank": 8, "alpha": (4.0,), "variety": "dora"},
    ),
    "Flux": (
        lambda: made.kohya({"double_blocks.0.img_attn.qkv": (9216, 3072)}, 16),
        {"layout": "kohya", "rank": 16, "alpha": (4.0,), "family": "flux"},
    ),
    "SD 3, diffusers": (
        lambda: made.adapter({"blocks.0.attn.add_q_proj": (1536, 1536)}, "transformer.{}", 4, made.PEFT),
        {"layout": "diffusers", "rank": 4, "family": "sd3"},
    ),
    "too little to tell": (
        lambda: made.kohya({"up_blocks.1.resnets.0.conv1": (640, 1280, 3, 3)}),
        {
            "layout": "kohya", "rank": 8, "alpha": (4.0,), "variety": "locon", "convolutions": True,
            "family": "unknown",
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ADAPTERS)
def test_adapters(case: str, tmp_path: Path) -> None:
    build, wanted = ADAPTERS[case]
    assert differs(kind_of(tmp_path, build(), alpha=4.0), {**LORA, **wanted}) == {}


@pytest.mark.parametrize(
    ("metadata", "family"),
    [
        ({"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}, "sdxl"),
        ({"ss_base_model_version": "sd_v1"}, "sd-1.x"),
        ({"modelspec.architecture": "dall-e", "ss_base_model_version": "sdxl_base_v1-0"}, "sdxl"),
        ({"ss_base_model_version": "?"}, "unknown"),
    ],
)
def test_what_a_file_says_counts_where_shapes_say_nothing(
    metadata: dict[str, str], family: str, tmp_path: Path
) -> None:
    little = made.kohya({"up_blocks.1.resnets.0.conv1": (640, 1280, 3, 3)})
    assert kind_of(tmp_path, little, metadata).family == family
    assert kind_of(tmp_path, made.kohya(made.modules("sd-2.x")), metadata).family == "sd-2.x"


@pytest.mark.parametrize(
    ("metadata", "alpha"),
    [
        ({"ss_network_alpha": "16.0"}, (16.0,)),
        ({"ss_network_alpha": "much"}, ()),
        ({"ss_network_alpha": "nan"}, ()),
        ({"lora_adapter_metadata": '{"unet.lora_alpha": 32, "unet.r": 64}'}, (32.0,)),
        ({"lora_adapter_metadata": '{"unet.lora_alpha": [32]}'}, ()),
        ({"lora_adapter_metadata": "[" * 100_000}, ()),
    ],
)
def test_alpha_may_stand_in_the_metadata(
    metadata: dict[str, str], alpha: tuple[float, ...], tmp_path: Path
) -> None:
    plain = made.adapter(made.modules("sd-1.x"), "unet.{}", 4, made.PEFT)
    assert kind_of(tmp_path, plain, metadata).alpha == alpha
