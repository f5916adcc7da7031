"""What a file is, told from the names and shapes that real files have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from fewstep.files.identify import FileKind, identify
from fewstep.files.safetensors import read_header
from tests.files import headers as made

BOTH = ("text_encoder", "text_encoder_2")
ALL = ("unet", *BOTH, "vae")


def kind_of(tmp_path: Path, shapes: made.Shapes, metadata: object = None, alpha: float = 0.0) -> FileKind:
    return identify(read_header(made.write(tmp_path / "model.safetensors", shapes, metadata, alpha)))


def differs(found: FileKind, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """What is not as wanted; what is not wanted is at its default."""
    wanted = {**vars(FileKind(what="")), **wanted}
    return {name: (value, wanted[name]) for name, value in vars(found).items() if value != wanted[name]}


def checkpoint_without(*prefixes: str) -> made.Shapes:
    return {name: shape for name, shape in made.checkpoint().items() if not name.startswith(prefixes)}


def lcm_in_the_original_layout() -> made.Shapes:
    """As recipes.md has seen it: one key keeps diffusers' name."""
    return made.under("model.diffusion_model.", made.original_unet("lcm"))


LCM = {"what": "unet", "family": "sdxl", "guidance_width": 256, "targets": ("unet",)}
WHOLE: dict[str, tuple[Callable[[], made.Shapes], dict[str, Any]]] = {
    "SDXL in one file": (
        made.checkpoint, {"what": "checkpoint", "layout": "original", "family": "sdxl", "targets": ALL},
    ),
    "SDXL without text encoders": (
        lambda: checkpoint_without("conditioner."),
        {"what": "checkpoint", "layout": "original", "family": "sdxl", "targets": ("unet", "vae")},
    ),
    "SDXL without text encoders and VAE": (
        lambda: checkpoint_without("conditioner.", "first_stage_model."),
        {"what": "unet", "layout": "original", "family": "sdxl", "targets": ("unet",)},
    ),
    "SD 1.x in one file": (
        lambda: made.checkpoint("sd-1.x"),
        {"what": "checkpoint", "layout": "original", "family": "sd-1.x", "targets": ("unet", BOTH[0], "vae")},
    ),
    "LCM, parts in one file": (
        lambda: made.parts_in_one_file("lcm"),
        {**LCM, "what": "checkpoint", "layout": "diffusers", "targets": ALL},
    ),
    "LCM in the original layout": (
        lcm_in_the_original_layout,
        {**LCM, "layout": "original"},
    ),
    "LCM's UNet": (
        lambda: made.unet("lcm"),
        {**LCM, "layout": "diffusers"},
    ),
    "SDXL's VAE": (made.vae, {"what": "vae", "layout": "diffusers", "targets": ("vae",)}),
    "SDXL's VAE, original": (made.original_vae, {"what": "vae", "layout": "original", "targets": ("vae",)}),
    "CLIP ViT-L": (
        lambda: made.clip(768, 12), {"what": "text_encoder", "layout": "diffusers", "targets": BOTH[:1]},
    ),
    "OpenCLIP ViT-bigG": (
        lambda: made.openclip(1280, 32),
        {"what": "text_encoder", "layout": "diffusers", "family": "sdxl", "targets": BOTH[:1]},
    ),
    "ControlNet": (
        made.controlnet,
        {"what": "controlnet", "layout": "diffusers", "family": "sdxl", "targets": ("unet",)},
    ),
    "a small ControlNet": (
        lambda: made.controlnet(attending=False),
        {"what": "controlnet", "layout": "diffusers", "family": "sdxl", "targets": ("unet",)},
    ),
    "ControlNet, original": (
        lambda: made.under("control_model.", {
            **made.original_unet("sd-1.x"), "input_hint_block.0.weight": (16, 3, 3, 3),
        }),
        {"what": "controlnet", "layout": "original", "family": "sd-1.x", "targets": ("unet",)},
    ),
    "IP-Adapter": (
        lambda: {"image_proj.proj.weight": (8192, 1280), "ip_adapter.1.to_k_ip.weight": (640, 2048)},
        {"what": "ip-adapter", "family": "sdxl", "targets": ("unet",)},
    ),
    "words for SDXL": (
        lambda: {"clip_g": (4, 1280), "clip_l": (4, 768)},
        {"what": "textual inversion", "family": "sdxl", "targets": BOTH},
    ),
    "words for SD 1.x": (
        lambda: {"emb_params": (8, 768)},
        {"what": "textual inversion", "family": "sd-1.x", "targets": BOTH[:1]},
    ),
    "words, as diffusers saves them": (
        lambda: {"<cat-toy>": (1024,)},
        {"what": "textual inversion", "family": "sd-2.x", "targets": BOTH[:1]},
    ),
    "Flux": (
        lambda: {"double_blocks.0.img_attn.qkv.weight": (9216, 3072), "img_in.weight": (3072, 64)},
        {"what": "unknown", "family": "flux"},
    ),
    "SD 3": (
        lambda: {"model.diffusion_model.joint_blocks.0.context_block.attn.qkv.weight": (4608, 1536)},
        {"what": "unknown", "family": "sd3"},
    ),
    "T5": (
        lambda: {"shared.weight": (32128, 4096), "encoder.block.0.layer.0.layer_norm.weight": (4096,)},
        {"what": "unknown"},
    ),
    "nothing": (dict, {"what": "unknown"}),
    "odd": (lambda: {"a": (3,), "b": ()}, {"what": "unknown"}),
}  # fmt: skip


@pytest.mark.parametrize("case", WHOLE)
def test_whole_weights(case: str, tmp_path: Path) -> None:
    build, wanted = WHOLE[case]
    assert differs(kind_of(tmp_path, build()), wanted) == {}


@pytest.mark.parametrize("name", [name for name in made.UNETS if name != "lcm"])
@pytest.mark.parametrize("layout", ["diffusers", "original", "prefixed"])
def test_every_unet_in_every_layout(name: str, layout: str, tmp_path: Path) -> None:
    shapes = made.unet(name) if layout == "diffusers" else made.original_unet(name)
    if layout == "prefixed":
        shapes = made.under("model.diffusion_model.", shapes)
    own = "diffusers" if layout == "diffusers" else "original"
    wanted = {"what": "unet", "layout": own, "family": name, "targets": ("unet",)}
    assert differs(kind_of(tmp_path, shapes), wanted) == {}


def test_a_checkpoint_is_as_large_as_published(tmp_path: Path) -> None:
    """2,515 tensors; the parameters of fewstep.architectures.sdxl, and OpenCLIP's and CLIP's constants."""
    found = read_header(made.write(tmp_path / "sdxl.safetensors", made.checkpoint()))
    assert len(found.tensors) == 2515
    constants = 77 + 1  # position_ids, logit_scale
    assert found.parameters == 2_567_463_684 + 817_720_320 + 83_653_863 + constants
    assert found.bytes > 6.9e9 > 1e6 > 512 * found.path.stat().st_blocks
