"""Single files in the original layout: the folder's pictures, nothing fetched, nothing lost."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

import fewstep
from fewstep import CorruptModelError, ModelError
from fewstep.architectures import sdxl
from fewstep.bench import random_weights
from fewstep.loading import single_file as single_module
from fewstep.loading import single_file_config, tokenizers
from tests.conftest import GAINS, SCHEDULER
from tests.loading import original

PROMPT, SIDE = "a red fox, highly detailed, 4k (photo)", 512
Save = Callable[..., Path]
pytestmark = pytest.mark.usefixtures("kept_tokenizers")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SDXL in small, with heads of 64 channels and CLIP's whole vocabulary, as a single file implies."""
    torch.manual_seed(3)
    first, second = (tokenizers.clip_tokenizer(pads_with_end=end) for end in (True, False))
    root = tmp_path_factory.mktemp("whole")
    StableDiffusionXLPipeline(
        vae=AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(32, 32, 32, 64), layers_per_block=2, latent_channels=4,
            sample_size=1024, scaling_factor=0.13025,
        ),
        text_encoder=CLIPTextModel(clip("quick_gelu")),
        text_encoder_2=CLIPTextModelWithProjection(clip("gelu")),
        tokenizer=first, tokenizer_2=second, unet=unet(None),
        scheduler=EulerDiscreteScheduler(**SCHEDULER), add_watermarker=False,
    ).save_pretrained(root)  # fmt: skip
    return root


@pytest.fixture(scope="session")
def lcm_unet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(4)
    root = tmp_path_factory.mktemp("lcm")
    unet(256).save_pretrained(root)
    return root


def unet(embedding: int | None, **changes: Any) -> Any:
    shape: dict[str, Any] = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (64, 64, 64),
        "transformer_layers_per_block": (1, 1, 2),
        "attention_head_dim": (1, 1, 1),
    } | changes
    made = UNet2DConditionModel(
        sample_size=128, layers_per_block=2, cross_attention_dim=128, use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=64 + 6 * 8, time_cond_proj_dim=embedding, **shape,
    )  # fmt: skip
    with torch.no_grad():
        for name, weight in made.named_parameters():
            weight.mul_(next((gain for end, gain in GAINS.items() if name.endswith(end)), 1.0))
    return made


def clip(act: str) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=tokenizers.CLIP_VOCABULARY, hidden_size=64, projection_dim=64, intermediate_size=128,
        num_hidden_layers=2, num_attention_heads=1, hidden_act=act, bos_token_id=49406, eos_token_id=49407,
        pad_token_id=1, initializer_factor=3.0,
    )  # fmt: skip


def prefixed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A text encoder's names as files have had them throughout."""
    return {n if n.startswith("text_") else f"text_model.{n}": tensor for n, tensor in weights.items()}


def names(folder: Path, unet_folder: Path | None = None) -> dict[str, Tensor]:
    """A folder's weights by their original names."""
    return original.checkpoint(
        load_file((unet_folder or folder / "unet") / "diffusion_pytorch_model.safetensors"),
        load_file(folder / "vae" / "diffusion_pytorch_model.safetensors"),
        prefixed(load_file(folder / "text_encoder" / "model.safetensors")),
        prefixed(load_file(folder / "text_encoder_2" / "model.safetensors")),
    )


@pytest.fixture(scope="session")
def single(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("single") / "my_finetune.safetensors"
    weights = names(folder)
    # What real files hold besides: an index that newer code computes.
    weights["conditioner.embedders.0.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(weights, path)
    return path


@pytest.fixture(scope="session")
def single_lcm(folder: Path, lcm_unet: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("single-lcm") / "whole_lcm.safetensors"
    save_file(names(folder, lcm_unet), path)
    return path


def latents(model: Path, mode: str | None, steps: int = 1, **how: Any) -> Tensor:
    call = {key: how.pop(key) for key in ("guidance", "negative_prompt") if key in how}
    with fewstep.load(model, mode, device="cpu", precision="fp32", **how) as engine:
        *_, last = engine.stream(PROMPT, steps, seed=5, width=SIDE, height=SIDE, **call)
    return last.latents


def weights_of(model: Path, mode: str | None = "turbo", **how: Any) -> dict[str, Tensor]:
    with fewstep.load(model, mode, device="cpu", precision="fp32", **how) as engine:
        parts = {"unet": engine.parts.unet, "vae": engine.parts.vae}
        parts |= dict(zip(("text_encoder", "text_encoder_2"), engine.parts.text.encoders, strict=True))
        return {f"{part}.{n}": t for part, network in parts.items() for n, t in network.state_dict().items()}


@cache
def plain_weights(model: Path) -> dict[str, Tensor]:
    """The weights of a model on its own; to be left as they are."""
    return weights_of(model)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[n]) for n, tensor in one.items())


@pytest.mark.parametrize(
    ("mode", "how"), [("turbo", {}), ("base", {"negative_prompt": "blur", "guidance": 2.0})]
)
def test_a_single_file_is_its_folder(folder: Path, single: Path, mode: str, how: dict[str, Any]) -> None:
    assert torch.equal(latents(single, mode, **how), latents(folder, mode, **how))


def test_its_picture_is_its_folders(folder: Path, single: Path) -> None:
    made = []
    for model in (folder, single):
        with fewstep.load(model, "turbo", device="cpu", precision="fp32") as engine:
            made.append(engine.generate(PROMPT, 1, seed=5, width=SIDE, height=SIDE)[0].tobytes())
    assert made[0] == made[1]


def test_all_its_weights_are_its_folders(folder: Path, single: Path) -> None:
    assert same(plain_weights(single), plain_weights(folder))


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "diffusion_model.", "unet."])
def test_a_unet_alone_over_its_folder_is_the_folder(folder: Path, tmp_path: Path, prefix: str) -> None:
    own = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    save_file({prefix + n: t for n, t in original.unet_names(own).items()}, tmp_path / "unet.safetensors")
    assert same(weights_of(folder, accelerator=tmp_path / "unet.safetensors"), plain_weights(folder))


def test_a_unet_alone_in_diffusers_names(folder: Path, lcm_unet: Path) -> None:
    file = lcm_unet / "diffusion_pytorch_model.safetensors"
    alone, whole = (weights_of(folder, "lcm", accelerator=given) for given in (file, lcm_unet))
    assert same(alone, whole)
    assert "unet.time_embedding.cond_proj.weight" in alone


@pytest.mark.parametrize("prefix", ["first_stage_model.", "", "vae.", None])
def test_a_vae_alone_is_its_folders(folder: Path, tmp_path: Path, prefix: str | None) -> None:
    """In the original layout, as published with a prefix or without; `vae.` is diffusers', and None bare."""
    named, first = names(folder), "first_stage_model."
    if prefix in ("vae.", None):
        own = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
        weights = {(prefix or "") + name: tensor for name, tensor in own.items()}
    else:
        weights = {prefix + n.removeprefix(first): t for n, t in named.items() if n.startswith(first)}
    save_file(weights, tmp_path / "mine.safetensors")
    assert same(weights_of(folder, vae=tmp_path / "mine.safetensors"), plain_weights(folder))


def test_an_lcm_file_keeps_its_guidance(folder: Path, lcm_unet: Path, single_lcm: Path) -> None:
    assert fewstep.plan(PROMPT, model=single_lcm, width=SIDE, height=SIDE).request.mode == "lcm"
    weak, strong = (latents(single_lcm, None, guidance=g) for g in (3, 13))
    assert not torch.equal(weak, strong)
    for guidance, one in ((3, weak), (13, strong)):
        assert torch.equal(latents(folder, "lcm", accelerator=lcm_unet, guidance=guidance), one)


def test_diffusers_own_loader_loses_that_guidance(folder: Path, single_lcm: Path) -> None:
    """The reason for a loader of ours; where this fails, diffusers has mended it."""
    pipe = StableDiffusionXLPipeline.from_single_file(
        str(single_lcm), config=str(folder), local_files_only=True
    )
    assert pipe.unet.config.time_cond_proj_dim is None


def test_a_pruned_unet_is_read_off_its_shapes(folder: Path, tmp_path: Path) -> None:
    """As SSD-1B's: other depths on the way up, and no attention in the middle."""
    torch.manual_seed(6)
    pruned = unet(
        None, mid_block_type="UNetMidBlock2D", transformer_layers_per_block=(1, (1, 1), (2, 1)),
        reverse_transformer_layers_per_block=((2, 2, 3), (2, 1, 1), 1),
    )  # fmt: skip
    pruned.save_pretrained(tmp_path / "unet")
    save_file(names(folder, tmp_path / "unet"), tmp_path / "pruned.safetensors")
    whole = single_module.read_single_file(tmp_path / "pruned.safetensors")
    told = whole.parts["unet"].config
    assert told["mid_block_type"] == "UNetMidBlock2D"
    assert told["transformer_layers_per_block"] == [1, 1, [2, 1]]
    assert told["reverse_transformer_layers_per_block"] == [[2, 2, 3], [2, 1, 1], 1]
    got = weights_of(tmp_path / "pruned.safetensors", "base")
    own = {f"unet.{name}": weight for name, weight in pruned.state_dict().items()}
    assert same({name: weight for name, weight in got.items() if name.startswith("unet.")}, own)


def test_full_size_configurations_are_read_off_too() -> None:
    """Of the real SDXL, from shapes alone, against its published configurations."""
    with torch.device("meta"):
        full = UNet2DConditionModel.from_config(random_weights.SDXL_UNET)
    told: dict[str, Any] = single_file_config.unet_config(meta(full), 1280, *sdxl.ARCHITECTURE.single_files)
    for name, published in random_weights.SDXL_UNET.items():
        assert told[name] == published, name
    assert told["reverse_transformer_layers_per_block"] == [10, 2, 1]
    with torch.device("meta"):
        vae = AutoencoderKL.from_config(random_weights.VAE)
        clips = [
            (CLIPTextModel(CLIPTextConfig(**random_weights.CLIP_L)), random_weights.CLIP_L),
            (CLIPTextModelWithProjection(CLIPTextConfig(**random_weights.BIG_G)), random_weights.BIG_G),
        ]
    told = single_file_config.vae_config(meta(vae), 0.13025, 1024)
    assert {name: told[name] for name in random_weights.VAE} == random_weights.VAE
    for module, published in clips:
        named: Any = prefixed(meta(module))
        told = single_file_config.clip_config(named, published["hidden_act"])
        assert {name: told[name] for name in published} == published


def meta(module: Any) -> Any:
    return dict(module.named_parameters())


# --- what is refused, in a sentence


def broken(single: Path, tmp_path: Path, change: Callable[[dict[str, Tensor]], None]) -> Path:
    weights = load_file(single)
    change(weights)
    save_file(weights, tmp_path / "broken.safetensors")
    return tmp_path / "broken.safetensors"


DEEP = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight"


def without(prefix: str) -> Callable[[dict[str, Tensor]], None]:
    def drop(weights: dict[str, Tensor]) -> None:
        for name in [name for name in weights if name.startswith(prefix)]:
            del weights[name]

    return drop


def holding(name: str, tensor: Tensor) -> Callable[[dict[str, Tensor]], None]:
    return lambda weights: weights.update({name: tensor})


def cut_vocabulary(weights: dict[str, Tensor]) -> None:
    for name in weights:
        if name.endswith("token_embedding.weight"):
            weights[name] = weights[name][:1000].contiguous()


BLOCK = "model.diffusion_model.input_blocks"


def many(name: str) -> Callable[[dict[str, Tensor]], None]:
    """As many of one name as a header may have."""
    return lambda weights: weights.update({name.format(n): torch.zeros(0) for n in range(18_000)})


def both(*changes: Callable[[dict[str, Tensor]], None]) -> Callable[[dict[str, Tensor]], None]:
    def apply(weights: dict[str, Tensor]) -> None:
        for change in changes:
            change(weights)

    return apply


def flat_embedding(weights: dict[str, Tensor]) -> None:
    """A token embedding without a width."""
    weights["conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.weight"] = torch.ones(
        9
    )


REFUSED: dict[str, tuple[Callable[[dict[str, Tensor]], None], str]] = {
    "one is missing": (
        without(DEEP), "lacks mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    ),
    "one is too much": (
        holding("model.diffusion_model.extra.weight", torch.zeros(2)), "extra.weight have no place"
    ),
    "one has another shape": (holding(DEEP, torch.zeros(64, 32)), "attn2.to_k.weight is (64, 32)"),
    "quantised": (holding(DEEP, torch.zeros(64, 128, dtype=torch.int8)), "quantised"),
    "no second text encoder": (without("conditioner.embedders.1"), "is no whole model in an original layout"),
    "no VAE": (without("first_stage_model"), "fewstep models pull vae-fp16"),
    "endless blocks": (many(BLOCK + ".{}.0.weight"), "has no place in a UNet of diffusers"),
    "endless names of blocks": (many("model.diffusion_model.a{}.b.output_blocks.0"), "has no place"),
    "endless levels of the VAE": (
        many("first_stage_model.encoder.down.{}.block.weight"), "levels; the usual ones have 4"
    ),
    "a block without a number": (holding(f"{BLOCK}.x.0.op.weight", torch.zeros(2)), "has no place"),
    "no downsampler": (
        both(without(f"{BLOCK}.3.0.op"), without(f"{BLOCK}.6.0.op")), "lacks a downsampler"
    ),
    "half a downsampler": (without(f"{BLOCK}.3.0.op.bias"), "lacks down_blocks.0.downsamplers.0.conv.bias"),
    "no summary of the text": (
        without("conditioner.embedders.1.model.text_projection"), "lacks conditioner.embedders.1.model.text_"
    ),
    "no embedding of sizes": (without("model.diffusion_model.label_emb.0.0.weight"), "lacks label_emb.0.0"),
    "an embedding without a width": (flat_embedding, "cannot be read"),
    "another vocabulary": (cut_vocabulary, "CLIP's vocabulary has 49408"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_a_broken_file_is_refused_by_name(single: Path, tmp_path: Path, what: str) -> None:
    change, said = REFUSED[what]
    path = broken(single, tmp_path, change)
    start = time.perf_counter()
    with pytest.raises(ModelError) as refused:
        fewstep.load(path, "base", device="cpu", precision="fp32")
    assert time.perf_counter() - start < 25  # 18,000 blocks took 40 s
    assert said in str(refused.value)
    assert "broken.safetensors" in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("what", [what for what in REFUSED if "block" in what or "downsampler" in what])
def test_a_broken_unet_alone_is_refused_by_name(single: Path, tmp_path: Path, what: str) -> None:
    change, said = REFUSED[what]
    path = broken(single, tmp_path, change)
    with pytest.raises(CorruptModelError) as refused:
        single_module.read_unet_file(path, {})
    assert said in str(refused.value)
    assert "broken.safetensors" in str(refused.value)


def test_half_precision_is_cast_once(single: Path, folder: Path, tmp_path: Path) -> None:
    path = broken(
        single, tmp_path, lambda w: w.update({n: t.half() for n, t in w.items() if t.is_floating_point()})
    )
    got = weights_of(path)
    own = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(got[f"unet.{name}"], weight.half().float()) for name, weight in own.items())


def test_a_v_prediction_file_says_so(single: Path, tmp_path: Path) -> None:
    path = broken(single, tmp_path, lambda w: w.update({"v_pred": torch.zeros(0)}))
    assert single_module.read_single_file(path).noise.process.prediction == "v_prediction"
    assert single_module.read_single_file(single).noise.process.prediction == "epsilon"


def test_the_packaged_tokenizers_are_clips() -> None:
    """Token numbers as CLIP's vocabulary gives them (openai/CLIP, README: "a diagram", "a dog", "a cat")."""
    first, second = (tokenizers.clip_tokenizer(pads_with_end=end) for end in (True, False))
    assert len(first) == len(second) == 49408
    assert first("a diagram").input_ids == [49406, 320, 22697, 49407]
    assert first("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert [t.pad_token_id for t in (first, second)] == [49407, 0]
    assert first("Ünïcode ✨ (test), 1024").input_ids == second("Ünïcode ✨ (test), 1024").input_ids


def test_both_spellings_of_a_text_encoder_are_read(folder: Path, single: Path, tmp_path: Path) -> None:
    """transformers 5 leaves "text_model." out, and diffusers' converter takes the names as they are."""
    first = "conditioner.embedders.0.transformer."
    short = {name.replace(f"{first}text_model.", first): tensor for name, tensor in load_file(single).items()}
    assert any(name.startswith(f"{first}embeddings.") for name in short)
    save_file(short, tmp_path / "short.safetensors")
    expected = plain_weights(single)
    assert same(weights_of(tmp_path / "short.safetensors"), expected)
    for spelt in (prefixed, lambda weights: {n.removeprefix("text_model."): t for n, t in weights.items()}):
        other = tmp_path / "folder"
        shutil.rmtree(other, ignore_errors=True)
        shutil.copytree(folder, other)
        for part in ("text_encoder", "text_encoder_2"):
            path = other / part / "model.safetensors"
            save_file(spelt(load_file(path)), path)
        assert same(weights_of(other), plain_weights(folder))


@pytest.mark.parametrize("name", ["hyperrealism_v3", "mergedPony", "turbocharged_cars", "pcmodel"])
def test_a_word_inside_a_word_is_no_mode(name: str, single: Path, tmp_path: Path) -> None:
    path = tmp_path / f"{name}.safetensors"
    os.link(single, path)
    plan = fewstep.plan("a fox", 20, model=path)
    assert (plan.request.mode, plan.warnings) == ("base", ())


@pytest.mark.parametrize(
    ("name", "typed"), [("dreamshaperXL_v21TurboDPMSDE", "mode='turbo'"), ("Merge_of_things", "mode='merge'")]
)
def test_a_word_that_is_a_mode_warns(name: str, typed: str, single: Path, tmp_path: Path) -> None:
    path = tmp_path / f"{name}.safetensors"
    os.link(single, path)
    plan = fewstep.plan("a fox", 20, model=path)
    assert plan.request.mode == "base"
    assert [typed in warning for warning in plan.warnings] == [True]
    assert fewstep.plan("a fox", 4, typed[6:-1], model=path).warnings == ()


def test_a_name_that_says_v_prediction_warns(single: Path, tmp_path: Path) -> None:
    path = tmp_path / "noobaiXL_vPred10.safetensors"
    os.link(single, path)
    (warning,) = fewstep.plan("a fox", 20, model=path).warnings
    assert "type prediction='v_prediction'" in warning
    assert fewstep.plan("a fox", 20, model=path, prediction="v_prediction").warnings == ()
