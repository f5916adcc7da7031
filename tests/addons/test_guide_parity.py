"""Whole pictures against diffusers' ControlNet and IP-Adapter pipelines: same weights, same noise, fp32."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    ControlNetModel,
    ControlNetUnionModel,
    StableDiffusionXLControlNetImg2ImgPipeline,
    StableDiffusionXLControlNetInpaintPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLControlNetUnionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from torch import Tensor

from fewstep import Engine
from fewstep.denoiser import guidance_embedding
from tests.addons.conftest import PLUS, SUMMARY
from tests.test_parity import BASE, FEW, IMAGE, ours, theirs

TOLERANCE = 1e-4  # on pixels in [0, 1]; measured: at most 1.1e-5
SCALES = (0.5, 1.0)
FEWER = {
    "leading": 3,
    "no-negative": 3,
    "guidance-off": 3,
    "lora-guided": 2,
}  # steps: each is the same test
TEXT = {
    name: replace(case, steps=FEWER.get(name, case.steps))
    for name, case in (BASE | FEW).items()
    if name in (*FEWER, *FEW)
}
Load = Callable[..., Engine]
Bare = Callable[[str], dict[str, Any]]
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning:diffusers",
    "ignore:.*:FutureWarning:diffusers",
)


@pytest.fixture(scope="module")
def bare(sdxl_folder: Path, lcm_unet_folder: Path, lora_file: Path) -> Bare:
    """`bare(mode)`: a pipeline's components, to be left as they are."""

    @cache
    def components(mode: str) -> dict[str, Any]:
        own = {"unet": UNet2DConditionModel.from_pretrained(lcm_unet_folder)} if mode == "lcm" else {}
        pipeline = StableDiffusionXLPipeline.from_pretrained(sdxl_folder, add_watermarker=False, **own)
        if mode == "lcm-lora":
            pipeline.load_lora_weights(lora_file.parent, weight_name=lora_file.name)
        return dict(pipeline.components)

    return components


@cache
def plain(engine: Load, name: str) -> Tensor:
    """A case's pictures at 96x64 without add-ons."""
    return ours(engine(TEXT[name].mode), TEXT[name], width=96, height=64)[0]


def own_unet(components: Mapping[str, Any]) -> dict[str, Any]:
    """The components with a UNet of their own, to be changed at will."""
    return {**components, "unet": deepcopy(components["unet"])}


def controlling(made: type[Any], components: Mapping[str, Any], nets: Sequence[Path]) -> Any:
    found = [ControlNetModel.from_pretrained(net) for net in nets]
    return made(**components, controlnet=found[0] if len(found) == 1 else found, add_watermarker=False)


def referred(made: type[Any], components: Mapping[str, Any], root: Path, scales: Mapping[str, float]) -> Any:
    """The pipeline with adapters by their files' names, each at its scale."""
    pipeline = made(**own_unet(components), add_watermarker=False)
    if len({name == PLUS for name in scales}) == 1:
        encoder = "models/image_encoder" if PLUS in scales else "image_encoder"
        pipeline.load_ip_adapter(
            root, subfolder="sdxl_models", weight_name=list(scales), image_encoder_folder=encoder
        )
    pipeline.set_ip_adapter_scale(list(scales.values()))
    return pipeline


def far(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", TEXT)
def test_control(
    name: str, scale: float, engine: Load, nets: tuple[Path, Path], edges: Image.Image, bare: Bare
) -> None:
    case, size = TEXT[name], (96, 64)
    image = edges.resize(size)
    pipeline = controlling(StableDiffusionXLControlNetPipeline, bare(case.mode), nets[:1])
    reference, their_steps = theirs(pipeline, case, image=[image] * 2, controlnet_conditioning_scale=scale)
    options = {"width": size[0], "height": size[1]}
    pictures, our_steps = ours(engine(case.mode), case, control=[(nets[0], image, scale)], **options)
    assert our_steps == their_steps
    assert far(pictures, reference) < TOLERANCE
    assert far(plain(engine, name), pictures) > 0.02


@pytest.mark.parametrize("name", TEXT)
def test_scale_0_is_none_at_all(
    name: str, engine: Load, nets: tuple[Path, Path], adapters: Path, cats: Sequence[Image.Image]
) -> None:
    """The bits of the picture without, which tests/test_parity.py holds against diffusers."""
    for addon in (
        {"control": [(nets[0], cats[0].resize((96, 64)), 0.0)]},
        *({"reference": [(adapters / "sdxl_models" / file, cats[0], 0.0)]} for file in (SUMMARY, PLUS)),
    ):
        pictures, _ = ours(engine(TEXT[name].mode), TEXT[name], width=96, height=64, **addon)
        assert torch.equal(plain(engine, name), pictures)


@pytest.mark.parametrize("name", ["leading", "lcm-4", "turbo-4", "lora-guided"])
def test_two_controls(
    name: str, engine: Load, nets: tuple[Path, Path], edges: Image.Image, drawing: Image.Image, bare: Bare
) -> None:
    case = TEXT[name]
    pipeline = controlling(StableDiffusionXLControlNetPipeline, bare(case.mode), nets)
    reference, _ = theirs(pipeline, case, image=[edges, drawing], controlnet_conditioning_scale=[0.7, 0.4])
    both = [(nets[0], edges, 0.7), (nets[1], drawing, 0.4)]
    pictures, _ = ours(engine(case.mode), case, control=both)
    assert far(pictures, reference) < TOLERANCE
    assert far(pictures, ours(engine(case.mode), case, control=both[:1])[0]) > 0.02


def test_sides_that_blocks_cannot_halve(
    engine: Load, nets: tuple[Path, Path], edges: Image.Image, bare: Bare
) -> None:
    case, image = TEXT["turbo-4"], edges.resize((72, 96))  # 9 latents wide
    pipeline = controlling(StableDiffusionXLControlNetPipeline, bare(case.mode), nets[:1])
    reference, _ = theirs(pipeline, case, image=[image] * 2, controlnet_conditioning_scale=0.8)
    pictures, _ = ours(engine(case.mode), case, control=[(nets[0], image, 0.8)], width=72, height=96)
    assert far(pictures, reference) < TOLERANCE


@pytest.mark.parametrize("name", ["leading", "lcm-4"])
def test_a_union(name: str, engine: Load, union: Path, edges: Image.Image, bare: Bare) -> None:
    case = TEXT[name]
    net = ControlNetUnionModel.from_pretrained(union)
    pipeline = StableDiffusionXLControlNetUnionPipeline(
        **bare(case.mode), controlnet=net, add_watermarker=False
    )
    reference, _ = theirs(
        pipeline, case, control_image=[edges], control_mode=[3], controlnet_conditioning_scale=0.8
    )
    pictures, _ = ours(engine(case.mode), case, control=[(f"{union}:canny", edges, 0.8)])
    assert far(pictures, reference) < TOLERANCE
    other, _ = ours(engine(case.mode), case, control=[(f"{union}:depth", edges, 0.8)])
    assert far(pictures, other) > 0.02


@pytest.mark.parametrize("name", IMAGE)
def test_control_image_to_image(
    name: str, engine: Load, nets: tuple[Path, Path], edges: Image.Image, drawing: Image.Image, bare: Bare
) -> None:
    case = IMAGE[name]
    pipeline = controlling(StableDiffusionXLControlNetImg2ImgPipeline, own_unet(bare(case.mode)), nets[:1])
    options: dict[str, Any] = {}
    if case.mode == "lcm":  # this pipeline tells no UNet its guidance, and has two sides of it (0.42.1)
        width = pipeline.unet.config.time_cond_proj_dim
        embedding = guidance_embedding(torch.full((2,), case.theirs["guidance_scale"] - 1), width)
        pipeline.unet.forward = partial(pipeline.unet.forward, timestep_cond=embedding)
        options = {"guidance_scale": 1.0}
    reference, _ = theirs(
        pipeline, case, image=[drawing] * 2, control_image=[edges] * 2, controlnet_conditioning_scale=0.6,
        **options,
    )  # fmt: skip
    pictures, _ = ours(engine(case.mode), case, image=drawing, control=[(nets[0], edges, 0.6)])
    assert far(pictures, reference) < TOLERANCE


def half(image: Image.Image) -> Image.Image:
    """A mask, white in the right half: latents' borders are its own."""
    mask = Image.new("L", image.size)
    mask.paste(255, (image.width // 2, 0, image.width, image.height))
    return mask


def test_control_inpainting(
    engine: Load, nets: tuple[Path, Path], edges: Image.Image, drawing: Image.Image, bare: Bare
) -> None:
    """Where the step rule draws no noise, diffusers' way to keep the rest of a picture agrees with ours."""
    case, mask = IMAGE["base"], half(drawing)
    pipeline = controlling(StableDiffusionXLControlNetInpaintPipeline, bare(case.mode), nets[:1])
    reference, _ = theirs(
        pipeline, case, image=[drawing] * 2, mask_image=[mask] * 2, control_image=[edges] * 2,
        controlnet_conditioning_scale=0.6, height=96, width=96,
    )  # fmt: skip
    given: dict[str, Any] = {"image": drawing, "mask": mask}
    pictures, _ = ours(engine(case.mode), case, control=[(nets[0], edges, 0.6)], **given)
    assert far(pictures, reference) < TOLERANCE
    assert far(pictures, ours(engine(case.mode), case, **given)[0]) > 0.02


@pytest.mark.parametrize("shown", [(name, scale) for name in (SUMMARY, PLUS) for scale in SCALES])
@pytest.mark.parametrize("name", TEXT)
def test_reference(
    name: str, shown: tuple[str, float], engine: Load, adapters: Path, cats: Sequence[Image.Image], bare: Bare
) -> None:
    adapter, scale = shown
    case = TEXT[name]
    pipeline = referred(StableDiffusionXLPipeline, bare(case.mode), adapters, {adapter: scale})
    options = {"width": 96, "height": 64}
    reference, their_steps = theirs(pipeline, case, ip_adapter_image=[cats[0]], **options)
    file = adapters / "sdxl_models" / adapter
    pictures, our_steps = ours(engine(case.mode), case, reference=[(file, cats[0], scale)], **options)
    assert our_steps == their_steps
    assert far(pictures, reference) < TOLERANCE
    assert far(plain(engine, name), pictures) > 0.02


@pytest.mark.parametrize("adapter", [SUMMARY, PLUS])
@pytest.mark.parametrize("name", ["leading", "lcm-4"])
def test_pictures_under_one_adapter_are_looked_at_together(
    name: str, adapter: str, engine: Load, adapters: Path, cats: Sequence[Image.Image], bare: Bare
) -> None:
    case, file = TEXT[name], adapters / "sdxl_models" / adapter
    pipeline = referred(StableDiffusionXLPipeline, bare(case.mode), adapters, {adapter: 0.8})
    reference, _ = theirs(pipeline, case, ip_adapter_image=[list(cats)])
    pictures, _ = ours(engine(case.mode), case, reference=[(file, cat, 0.8) for cat in cats])
    assert far(pictures, reference) < TOLERANCE
    assert far(pictures, ours(engine(case.mode), case, reference=[(file, cats[0], 0.8)])[0]) > 0.02


@pytest.mark.parametrize("name", ["leading", "turbo-4"])
def test_several_adapters_add_up(
    name: str, engine: Load, adapters: Path, cats: Sequence[Image.Image], bare: Bare
) -> None:
    """diffusers has one image encoder for all: the same adapter twice, at two scales."""
    case, file = TEXT[name], adapters / "sdxl_models" / SUMMARY
    pipeline = StableDiffusionXLPipeline(**own_unet(bare(case.mode)), add_watermarker=False)
    pipeline.load_ip_adapter(adapters, subfolder="sdxl_models", weight_name=[SUMMARY, SUMMARY])
    pipeline.set_ip_adapter_scale([0.9, 0.4])
    reference, _ = theirs(pipeline, case, ip_adapter_image=list(cats))
    pictures, _ = ours(engine(case.mode), case, reference=[(file, cats[0], 0.9), (file, cats[1], 0.4)])
    assert far(pictures, reference) < TOLERANCE


@pytest.mark.parametrize("name", IMAGE)
def test_reference_image_to_image(
    name: str, engine: Load, adapters: Path, cats: Sequence[Image.Image], drawing: Image.Image, bare: Bare
) -> None:
    case = IMAGE[name]
    pipeline = referred(StableDiffusionXLImg2ImgPipeline, bare(case.mode), adapters, {PLUS: 0.6})
    reference, _ = theirs(pipeline, case, image=[drawing] * 2, ip_adapter_image=[cats[1]])
    given = [(adapters / "sdxl_models" / PLUS, cats[1], 0.6)]
    assert far(ours(engine(case.mode), case, image=drawing, reference=given)[0], reference) < TOLERANCE


def test_both_at_once_inpainting(
    engine: Load,
    nets: tuple[Path, Path],
    adapters: Path,
    edges: Image.Image,
    drawing: Image.Image,
    bare: Bare,
) -> None:
    case, mask = IMAGE["base"], half(drawing)
    pipeline = controlling(StableDiffusionXLControlNetInpaintPipeline, own_unet(bare(case.mode)), nets[:1])
    pipeline.load_ip_adapter(adapters, subfolder="sdxl_models", weight_name=SUMMARY)
    pipeline.set_ip_adapter_scale(0.6)
    reference, _ = theirs(
        pipeline, case, image=[drawing] * 2, mask_image=[mask] * 2, control_image=[edges] * 2,
        ip_adapter_image=[edges], controlnet_conditioning_scale=0.6, height=96, width=96,
    )  # fmt: skip
    pictures, _ = ours(
        engine(case.mode), case, image=drawing, mask=mask, control=[(nets[0], edges, 0.6)],
        reference=[(adapters / "sdxl_models" / SUMMARY, edges, 0.6)],
    )  # fmt: skip
    assert far(pictures, reference) < TOLERANCE
