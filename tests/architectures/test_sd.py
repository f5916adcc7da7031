"""Stable Diffusion 1.x and 2.x against diffusers' StableDiffusionPipeline: folders, single files, add-ons."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    EulerDiscreteScheduler,
    LCMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

import fewstep
from fewstep import Engine, ModelError, RequestError
from fewstep.architectures.sd import ARCHITECTURE
from fewstep.catalog.models import describe_model
from fewstep.loading import tokenizers
from tests.conftest import GAINS, SCHEDULER
from tests.loading import original

TOLERANCE = 1e-4  # on pixels in [0, 1]
SIZES = [(96, 96), (96, 64), (72, 96)]  # width, height
PROMPTS, SEEDS = ["a red fox", "an owl in the snow"], (7, 11)
SIDE = 96
Load = Callable[..., Engine]
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:diffusers"),
    pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning:peft"),
]


def clip(act: str, layers: int, pad: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=49408, hidden_size=64, projection_dim=64, intermediate_size=128, num_hidden_layers=layers,
        num_attention_heads=1, hidden_act=act, bos_token_id=49406, eos_token_id=49407, pad_token_id=pad,
        initializer_factor=3.0,
    )  # fmt: skip


def unet(*, second: bool, guidance_width: int | None = None) -> Any:
    """1.x has 8 heads at every level, and convolutions around attention; 2.x heads of 64 channels."""
    module = UNet2DConditionModel(
        sample_size=SIDE // 8, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), block_out_channels=(64, 128), layers_per_block=2,
        attention_head_dim=(1, 2) if second else 8, cross_attention_dim=64, use_linear_projection=second,
        time_cond_proj_dim=guidance_width,
    )  # fmt: skip
    with torch.no_grad():
        for name, weight in module.named_parameters():
            weight.mul_(next((gain for end, gain in GAINS.items() if name.endswith(end)), 1.0))
    return module


def write_folder(folder: Path, *, second: bool = False, guidance_width: int | None = None) -> Path:
    """A small model; 2.x predicts v, as the 768-pixel ones do."""
    torch.manual_seed(5)
    prediction = "v_prediction" if second else "epsilon"
    StableDiffusionPipeline(
        vae=AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(32, 32, 32, 32), layers_per_block=1, latent_channels=4, sample_size=512,
            scaling_factor=0.18215,
        ),
        text_encoder=CLIPTextModel(clip("gelu", 2, 0) if second else clip("quick_gelu", 3, 49407)),
        tokenizer=tokenizers.clip_tokenizer(pads_with_end=not second),
        unet=unet(second=second, guidance_width=guidance_width),
        scheduler=EulerDiscreteScheduler(**{**SCHEDULER, "prediction_type": prediction}),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    make = tmp_path_factory.mktemp
    return {
        "1.x": write_folder(make("sd1")),
        "2.x": write_folder(make("sd2"), second=True),
        "lcm": write_folder(make("sdlcm"), guidance_width=32),
    }


@pytest.fixture(scope="module")
def engines(folders: Mapping[str, Path]) -> Load:
    loaded: dict[tuple[str, str], Engine] = {}

    def load(which: str, mode: str) -> Engine:
        if (which, mode) not in loaded:
            loaded[which, mode] = fewstep.load(folders[which], mode, device="cpu", precision="fp32")
        return loaded[which, mode]

    return load


def pipeline(folder: Path, scheduler: type[Any], **config: Any) -> Any:
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    pipe.scheduler = scheduler.from_config({**pipe.scheduler.config, **config})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def theirs(pipe: Any, steps: int, size: tuple[int, int], **how: Any) -> Tensor:
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    sides = {} if "image" in how else {"width": size[0], "height": size[1]}
    images: Tensor = pipe(
        PROMPTS, num_inference_steps=steps, generator=generators, output_type="pt", **sides, **how
    ).images
    return images


def ours(engine: Engine, steps: int, size: tuple[int, int], **how: Any) -> Tensor:
    width, height = size
    last = [*engine.stream(PROMPTS, steps, seed=list(SEEDS), width=width, height=height, **how)][-1]
    with torch.no_grad():
        vae = engine.parts.vae
        pixels: Tensor = vae.decode(last.latents / vae.config.scaling_factor).sample
    return (pixels / 2 + 0.5).clamp(0, 1)


TRAILING = {"timestep_spacing": "trailing"}
CASES: dict[str, tuple[str, str, int, Mapping[str, Any], type[Any], Mapping[str, Any], Mapping[str, Any]]] = {
    # which, mode, steps, ours, their scheduler, its configuration, theirs
    "guided": (
        "1.x", "base", 3, {"guidance": 7.5, "negative_prompt": "bright sun", "scheduler": "trailing"},
        EulerDiscreteScheduler, TRAILING,
        {"guidance_scale": 7.5, "negative_prompt": ["bright sun"] * 2},
    ),
    "no-negative": (  # the empty prompt is encoded, and no zeros
        "1.x", "base", 3, {"guidance": 5, "scheduler": "leading"}, EulerDiscreteScheduler, {},
        {"guidance_scale": 5.0},
    ),
    "v_prediction": (
        "2.x", "base", 3, {"guidance": 7.5, "scheduler": "trailing"}, EulerDiscreteScheduler, TRAILING,
        {"guidance_scale": 7.5},
    ),
    "lcm": ("lcm", "lcm", 4, {"guidance": 8}, LCMScheduler, {}, {"guidance_scale": 8.0}),
}  # fmt: skip


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", CASES)
def test_pictures_are_diffusers(
    name: str, size: tuple[int, int], engines: Load, folders: Mapping[str, Path]
) -> None:
    which, mode, steps, how, scheduler, config, call = CASES[name]
    reference = theirs(pipeline(folders[which], scheduler, **config), steps, size, **call)
    assert float((ours(engines(which, mode), steps, size, **how) - reference).abs().max()) < TOLERANCE


def test_image_to_image_is_diffusers(
    engines: Load, folders: Mapping[str, Path], drawing: Image.Image
) -> None:
    pipe = StableDiffusionImg2ImgPipeline(
        **pipeline(folders["1.x"], EulerDiscreteScheduler, **TRAILING).components,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    reference = theirs(pipe, 4, (96, 96), image=[drawing, drawing], strength=1.0, guidance_scale=5.0)
    how = {"strength": 1.0, "guidance": 5, "scheduler": "trailing"}
    pictures = ours(engines("1.x", "base"), 4, (96, 96), image=drawing, **how)
    assert float((pictures - reference).abs().max()) < TOLERANCE


def test_it_is_described(folders: Mapping[str, Path]) -> None:
    model = describe_model(folders["1.x"])
    assert (model.family, model.size, model.architecture.name) == ("sd-1.x", SIDE, "sd")
    assert describe_model(folders["lcm"]).carries == "lcm"


def checkpoint(folder: Path, *, second: bool) -> dict[str, Tensor]:
    """The folder's weights in one file's original names."""
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    text = pipe.text_encoder.state_dict()
    text = {name if name.startswith("text_model.") else f"text_model.{name}": t for name, t in text.items()}
    text = {name: tensor for name, tensor in text.items() if not name.endswith("position_ids")}
    if second:
        named = original._open_clip(text)
        last = {name.replace(".1.", ".2."): t for name, t in named.items() if ".resblocks.1." in name}
        # OpenCLIP's last layer, whose output nobody reads, and its projection.
        named |= {name: torch.randn_like(t) for name, t in last.items()} | {
            "text_projection": torch.randn(64, 64)
        }
        encoder = {f"cond_stage_model.model.{name}": tensor for name, tensor in named.items()}
    else:
        encoder = {f"cond_stage_model.transformer.{name}": tensor for name, tensor in text.items()}
    return {
        **{f"model.diffusion_model.{n}": t for n, t in original.unet_names(pipe.unet.state_dict()).items()},
        **{f"first_stage_model.{n}": t for n, t in original._vae(pipe.vae.state_dict()).items()},
        **encoder,
    }


@pytest.mark.parametrize(("which", "mode"), [("1.x", "base"), ("2.x", "base"), ("lcm", "lcm")])
def test_a_single_file_is_its_folder(
    which: str, mode: str, folders: Mapping[str, Path], engines: Load, tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    weights = {
        name: tensor.contiguous()
        for name, tensor in checkpoint(folders[which], second=which == "2.x").items()
    }
    save_file(weights, path, {"modelspec.prediction_type": "v"} if which == "2.x" else None)
    inspected = fewstep.inspect(path)
    assert (inspected.what, inspected.layout, inspected.targets) == (
        "checkpoint",
        "original",
        ("unet", "text_encoder", "vae"),
    )
    with fewstep.load(path, device="cpu", precision="fp32") as engine:
        assert engine.recipe.mode == mode
        expected = engines(which, mode)
        for ours_, theirs_ in (
            (engine.parts.unet, expected.parts.unet), (engine.parts.vae, expected.parts.vae),
            (engine.parts.text.encoders[0], expected.parts.text.encoders[0]),
        ):  # fmt: skip
            mine, other = ours_.state_dict(), theirs_.state_dict()
            assert mine.keys() == other.keys()
            assert all(torch.equal(mine[name], other[name]) for name in mine)
        assert engine.parts.process == expected.parts.process
        picture = engine.generate("a red fox", 2, seed=3, width=256, height=256)[0]
        x = torch.randn(1, 4, 12, 12, generator=torch.Generator().manual_seed(0))
        tokens = engine.parts.text.encode(["a red fox"], (96, 96)).tokens
        assert torch.equal(tokens, expected.parts.text.encode(["a red fox"], (96, 96)).tokens)
        embedding = {"timestep_cond": torch.ones(1, 32)} if mode == "lcm" else {}
        with torch.no_grad():
            one, two = (e.parts.unet(x, 500.0, tokens, **embedding).sample for e in (engine, expected))
        assert torch.equal(one, two)
    assert picture.size == (256, 256)


@pytest.mark.parametrize("layout", ["diffusers", "kohya"])
def test_loras_are_diffusers(layout: str, folders: Mapping[str, Path], engines: Load, tmp_path: Path) -> None:
    torch.manual_seed(6)
    pipe = pipeline(folders["1.x"], EulerDiscreteScheduler, **TRAILING)
    states = {}
    for name, targets in (
        ("unet", ["to_q", "to_k", "to_out.0", "conv1", "proj_in"]),
        ("text_encoder", ["q_proj", "fc1"]),
    ):
        config = LoraConfig(r=4, lora_alpha=4, target_modules=targets, init_lora_weights=False)
        states[name] = get_peft_model_state_dict(inject_adapter_in_model(config, getattr(pipe, name)))
    path, reference_path = tmp_path / "style.safetensors", tmp_path / "diffusers.safetensors"
    StableDiffusionPipeline.save_lora_weights(
        tmp_path, unet_lora_layers=states["unet"], text_encoder_lora_layers=states["text_encoder"],
        weight_name=reference_path.name,
    )  # fmt: skip
    if layout == "diffusers":
        path = reference_path
    else:
        save_file(kohya(states), path)
    pipe = pipeline(folders["1.x"], EulerDiscreteScheduler, **TRAILING)
    # In diffusers' own layout: of kohya's it leaves out a text encoder's q_proj alone (0.42.1).
    pipe.load_lora_weights(reference_path)
    reference = theirs(pipe, 3, (96, 64), guidance_scale=3.0, cross_attention_kwargs={"scale": 0.7})
    engine = engines("1.x", "base")
    pictures = ours(engine, 3, (96, 64), guidance=3, scheduler="trailing", loras=[(path, 0.7)])
    plain = ours(engine, 3, (96, 64), guidance=3, scheduler="trailing")
    assert float((pictures - reference).abs().max()) < TOLERANCE
    assert float((pictures - plain).abs().max()) > 0.01


def kohya(states: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """sd-scripts' names for SD 1.x: one text encoder, `lora_te_`."""
    written: dict[str, Tensor] = {}
    for network, prefix in (("unet", "lora_unet_"), ("text_encoder", "lora_te_")):
        for key, tensor in states[network].items():
            layer, _, factor = key.removesuffix(".weight").rpartition(".")
            if network == "text_encoder" and not layer.startswith("text_model."):
                layer = f"text_model.{layer}"
            name = prefix + layer.replace(".", "_")
            written[f"{name}.lora_{'down' if factor == 'lora_A' else 'up'}.weight"] = tensor.contiguous()
            written[f"{name}.alpha"] = torch.tensor(4.0)
    return written


@pytest.mark.parametrize("name", ["emb_params", "<sks>"])
def test_textual_inversions_are_diffusers(name: str, folders: Mapping[str, Path], tmp_path: Path) -> None:
    vector = torch.randn(2, 64, generator=torch.Generator().manual_seed(1))
    path = tmp_path / "sks.safetensors"
    save_file({name: vector}, path)
    pipe = StableDiffusionPipeline.from_pretrained(folders["1.x"])
    pipe.load_textual_inversion({"sks": vector}, token="sks")
    with fewstep.load(folders["1.x"], "base", embeddings=[path], device="cpu", precision="fp32") as engine:
        for prompt in ("a sks fox", "sks"):
            tokens, _ = pipe.encode_prompt(prompt, "cpu", 1, do_classifier_free_guidance=False)
            told = engine.parts.text.encode([prompt], (96, 96)).tokens
            torch.testing.assert_close(told, tokens, rtol=0, atol=1e-5)


def test_a_tiny_vae_decodes(folders: Mapping[str, Path], tmp_path: Path) -> None:
    torch.manual_seed(2)
    AutoencoderTiny().save_pretrained(tmp_path / "taesd")
    with fewstep.load(folders["1.x"], "base", vae=tmp_path / "taesd", device="cpu") as engine:
        assert engine.generate("a fox", 1, seed=1)[0].size == (SIDE, SIDE)


def test_what_it_has_not_is_refused(engines: Load, drawing: Image.Image) -> None:
    engine = engines("1.x", "base")
    for option, value in (
        ("control", [("canny", drawing, 1.0)]),
        ("reference", [("ip-adapter", drawing, 1.0)]),
    ):
        with pytest.raises(RequestError, match=rf"{option}= is not there for .* Stable Diffusion"):
            engine.plan("a fox", **{option: value})  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="prompt_2= is not there"):
        engine.plan("a fox", prompt_2="an owl")


def test_modes_have_their_weights() -> None:
    """Names from the hub's pages, as in fewstep.modes; nothing is fetched to plan."""
    for mode, steps in (("lcm-lora", 4), ("hyper", 8), ("hyper-unified", 1), ("tcd", 4), ("pcm", 4)):
        plan = fewstep.plan("a fox", steps, mode, model="sd15")
        assert (plan.request.width, plan.request.height) == (512, 512)
    with pytest.raises(RequestError, match=r"lightning.* has no weights for model='sd15'"):
        fewstep.plan("a fox", 4, "lightning", model="sd15")


def test_turbo_is_of_sd2() -> None:
    from fewstep.modes import find_recipe

    weights = find_recipe("turbo").weights["sd-2.x"]
    assert (weights.attach, weights.source, weights.size) == ("checkpoint", "stabilityai/sd-turbo", 512)


def test_sizes_are_the_configurations() -> None:
    """SD 1.5's published configurations, counted on torch's meta device."""
    with torch.device("meta"):
        network = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)
        text = CLIPTextModel(
            CLIPTextConfig(
                hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12
            )
        )
    counted = tuple(sum(p.numel() for p in module.parameters()) for module in (network, text))
    assert counted == ARCHITECTURE.sizes["sd-1.x"][:2]


def test_a_hub_id_that_turns_out_to_be_another(
    folders: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a hub id nothing is known before its files are here: then it is said what to type."""
    monkeypatch.setattr("fewstep.catalog.hub.fetch_folder", lambda *_: folders["1.x"])
    with pytest.raises(ModelError, match=r"Stable Diffusion 1.x and 2.x, .* type the same again"):
        fewstep.load("owner/dreamshaper", "base", device="cpu", precision="fp32")
