"""`Engine.from_pipe`: a diffusers pipeline's own networks in our loop."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderTiny,
    DDIMScheduler,
    LCMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from fewstep import Engine, RequestError
from fewstep.loading.from_pipe import usual_mode
from tests.addons import loras
from tests.test_parity import BASE, FEW, IMAGE, TOLERANCE, ours, rounded, theirs

Make = Callable[..., Any]
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:diffusers")


@pytest.fixture(scope="module")
def make(sdxl_folder: Path) -> Make:
    """A new pipeline; keywords replace its parts."""

    def made(kind: Any = StableDiffusionXLPipeline, **parts: Any) -> Any:
        pipe = kind.from_pretrained(sdxl_folder, add_watermarker=False, **parts)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return made


@pytest.fixture(scope="module")
def pipes(make: Make, lcm_unet_folder: Path, lora_file: Path) -> Mapping[str, Any]:
    """One for each way to have a mode's weights; to be left as they are."""
    active, fused = make(), make()
    active.load_lora_weights(lora_file.parent, weight_name=lora_file.name)
    fused.load_lora_weights(lora_file.parent, weight_name=lora_file.name)
    fused.fuse_lora()
    fused.unload_lora_weights()
    unet = UNet2DConditionModel.from_pretrained(lcm_unet_folder)
    return {"plain": make(), "lcm": make(unet=unet), "active": active, "fused": fused}


def drawn(pipe: Any) -> Tensor:
    """What the pipeline itself makes."""
    pictures: Tensor = pipe(
        "a red fox", num_inference_steps=3, generator=torch.Generator().manual_seed(1), output_type="pt"
    ).images
    return pictures


TEXT = {name: replace(case, steps=min(case.steps, 3)) for name, case in (BASE | FEW).items()}
CASES = [
    *(("plain", name) for name in BASE),
    *(("plain", name) for name in FEW if name.startswith("turbo")),
    *(("lcm", name) for name in FEW if name.startswith("lcm")),
    *((pipe, name) for pipe in ("active", "fused") for name in FEW if name.startswith("lora")),
]


@pytest.mark.parametrize(("which", "name"), CASES)
def test_the_pictures_are_those_of_the_pipe(which: str, name: str, pipes: Mapping[str, Any]) -> None:
    pipe, case = pipes[which], TEXT[name]
    before, config = drawn(pipe), dict(pipe.scheduler.config)
    engine = Engine.from_pipe(pipe, case.mode)
    pictures, our_steps = ours(engine, case)
    handed = rounded(engine, case)
    engine.close()
    reference, their_steps = theirs(pipe, case)
    assert our_steps == their_steps
    assert float((pictures - reference).abs().max()) < TOLERANCE
    assert float((handed - 255 * reference).abs().max()) < 0.5 + 255 * TOLERANCE
    assert torch.equal(drawn(pipe), before)
    assert dict(pipe.scheduler.config) == config


@pytest.mark.parametrize("end", ["a call", "a stream that was left"])
def test_loras_of_a_call_do_not_stay_on_the_pipe(make: Make, lora_file: Path, end: str) -> None:
    pipe = make()
    before, engine = drawn(pipe), Engine.from_pipe(pipe)
    plain = engine.generate("a red fox", 2, seed=1)[0].tobytes()
    if end == "a call":
        assert engine.generate("a red fox", 2, seed=1, loras=[lora_file])[0].tobytes() != plain
    else:
        stream = engine.stream("a red fox", 2, seed=1, loras=[lora_file])
        next(stream)
        stream.close()
    assert torch.equal(drawn(pipe), before)


@pytest.fixture
def worded(sdxl_folder: Path, tmp_path: Path) -> Path:
    """A LoRA for the text encoders."""
    made = loras.states(sdxl_folder, 5, "text_encoder", "text_encoder_2")
    named = {f"{network}.{name}": t for network, state in made.items() for name, t in state.items()}
    save_file(named, tmp_path / "worded.safetensors")
    return tmp_path / "worded.safetensors"


def fox(engine: Engine, **how: Any) -> bytes:
    return engine.generate("a red fox", 2, seed=1, **how)[0].tobytes()


def test_prompts_are_read_by_the_encoders_as_they_are(make: Make, worded: Path) -> None:
    """Another engine's LoRA, or the owner's, changes encoders behind this one's back."""
    pipe = make()
    one, other = Engine.from_pipe(pipe), Engine.from_pipe(pipe)
    plain = fox(one)
    stream = other.stream("a red fox", 2, seed=1, loras=[worded])
    next(stream)
    assert fox(one) == plain
    stream.close()
    assert fox(other) == plain
    pipe.load_lora_weights(worded.parent, weight_name=worded.name)
    assert fox(one) == fox(Engine.from_pipe(pipe)) != plain


def test_a_forgotten_stream_does_not_undress_a_call(make: Make, lora_file: Path) -> None:
    """It is collected, here, in the middle of the call's UNet, on the thread that has the lock."""
    pipe = make()
    engine, held = Engine.from_pipe(pipe), []
    wanted = fox(engine, loras=[lora_file])
    held.append(engine.stream("a fox", 2, seed=3, loras=[lora_file]))
    next(held[0])
    hook = pipe.unet.down_blocks[0].register_forward_pre_hook(lambda *_: held.clear())
    assert fox(engine, loras=[lora_file]) == wanted
    hook.remove()
    assert not held


@pytest.mark.parametrize("kind", [StableDiffusionXLImg2ImgPipeline, StableDiffusionXLInpaintPipeline])
def test_other_tasks_pipes_serve_every_task(kind: Any, make: Make, drawing: Image.Image) -> None:
    case = IMAGE["turbo"]
    reference, _ = theirs(make(StableDiffusionXLImg2ImgPipeline), case, image=[drawing, drawing])
    pictures, _ = ours(Engine.from_pipe(make(kind), "turbo"), case, image=drawing)
    assert float((pictures - reference).abs().max()) < TOLERANCE


def test_nothing_is_copied_or_changed(pipes: Mapping[str, Any]) -> None:
    pipe = pipes["active"]
    before = {id(w): w._version for w in pipe.unet.parameters()}
    engine = Engine.from_pipe(pipe, "lcm-lora")
    assert engine.parts.unet is pipe.unet
    assert engine.parts.vae is pipe.vae
    assert engine.parts.text.encoders == (pipe.text_encoder, pipe.text_encoder_2)
    engine.generate("a red fox", 2, seed=1)
    engine.close()
    assert {id(w): w._version for w in pipe.unet.parameters()} == before
    assert pipe.get_active_adapters() == ["default_0"]


def test_the_mode_is_what_the_unet_shows(pipes: Mapping[str, Any]) -> None:
    assert Engine.from_pipe(pipes["plain"]).recipe.mode == "base"
    assert Engine.from_pipe(pipes["lcm"]).recipe.mode == "lcm"


def test_an_unproven_scheduler_asks_for_the_mode() -> None:
    with pytest.raises(RequestError, match="mode='lcm-lora'"):
        usual_mode("me/sdxl", "LCMScheduler", embedded=False)


@pytest.mark.parametrize(
    ("source", "typed"),
    [
        ("stabilityai/sdxl-turbo", "mode='turbo'"),
        ("me/SDXL_Lightning_mix", "lightning, which proves nothing"),
    ],
)
def test_a_name_that_speaks_of_a_mode_is_a_doubt(source: str, typed: str) -> None:
    mode, doubt = usual_mode(source, "EulerDiscreteScheduler", embedded=False)
    assert mode == "base"
    assert typed in doubt


def test_a_sign_inside_another_word_is_none() -> None:
    plain = usual_mode("lcm/hyperreal_flashy_xl", "EulerDiscreteScheduler", embedded=False)
    assert plain == ("base", "")


def test_the_model_is_described(make: Make, sdxl_folder: Path) -> None:
    engine = Engine.from_pipe(make(force_zeros_for_empty_prompt=False), "turbo")
    assert (engine.model.source, engine.model.size) == (str(sdxl_folder), 96)
    assert engine.parts.process.prediction == "epsilon"
    assert bool(engine.parts.text.encode([""], (96, 96)).tokens.any())  # encoded, not zeros


def test_prediction_is_the_schedulers(make: Make) -> None:
    pipe = make()
    config = {**pipe.scheduler.config, "prediction_type": "v_prediction"}
    pipe.scheduler = DDIMScheduler.from_config(config)
    assert Engine.from_pipe(pipe).parts.process.prediction == "v_prediction"


def test_a_precise_vae_beside_a_half_unet(make: Make) -> None:
    pipe = make().to(torch.bfloat16)
    pipe.vae.to(torch.float32)
    engine = Engine.from_pipe(pipe, "turbo")
    assert (engine.placement.dtype, engine.placement.vae_dtype) == (torch.bfloat16, torch.float32)
    assert engine.generate("a red fox", seed=1).images[0].size == (96, 96)


def test_a_compiled_unet_is_fine(make: Make) -> None:
    pipe = make()
    plain = Engine.from_pipe(pipe, "turbo")
    expected = plain.generate("a red fox", seed=1)[0].tobytes()
    pipe.unet = torch.compile(pipe.unet, backend="eager")
    compiled = Engine.from_pipe(pipe, "turbo")
    with torch.compiler.set_stance("force_eager"):  # the wrapper is looked at, not what Dynamo makes of it
        assert compiled.generate("a red fox", seed=1)[0].tobytes() == expected
    assert waits(plain, compiled)


def test_a_tiny_vae_is_fine(make: Make) -> None:
    torch.manual_seed(0)
    pipe = make()
    pipe.vae = AutoencoderTiny(
        encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4,
        num_encoder_blocks=(1,) * 4, num_decoder_blocks=(1,) * 4,
    )  # fmt: skip
    assert Engine.from_pipe(pipe, "turbo").generate("a red fox", seed=1)[0].size == (96, 96)


def waits(one: Engine, other: Engine) -> bool:
    """Must `other`'s networks wait while `one`'s run?"""
    entered = threading.Event()

    def enter() -> None:
        with other.parts.lock, other.parts.lock:  # re-entrant
            entered.set()

    with ThreadPoolExecutor(1) as pool:
        with one.parts.lock:
            pool.submit(enter)
            waited = not entered.wait(0.2)
        assert entered.wait(10)
    return waited


def test_engines_that_share_a_network_take_turns(pipes: Mapping[str, Any]) -> None:
    pipe = pipes["plain"]
    first, second = Engine.from_pipe(pipe, "base"), Engine.from_pipe(pipe, "turbo")
    shared = StableDiffusionXLPipeline(
        **{**pipe.components, "unet": pipes["lcm"].unet}, add_watermarker=False
    )
    assert waits(first, second)
    assert waits(first, Engine.from_pipe(shared))
    assert not waits(first, Engine.from_pipe(pipes["lcm"]))
    expected = [one.generate("a red fox", 3, seed=1)[0].tobytes() for one in (first, second)]
    with ThreadPoolExecutor(2) as pool:
        made = pool.map(lambda one: one.generate("a red fox", 3, seed=1)[0].tobytes(), (first, second))
        assert list(made) == expected


def _half_text(pipe: Any) -> None:
    pipe.text_encoder_2.to(torch.bfloat16)


def _without(name: str) -> Callable[[Any], None]:
    return lambda pipe: setattr(pipe, name, None)


def _configured(part: str, **config: Any) -> Callable[[Any], None]:
    return lambda pipe: getattr(pipe, part).register_to_config(**config)


def _offloaded(pipe: Any) -> None:
    from accelerate import cpu_offload

    cpu_offload(pipe.unet, torch.device("cpu"))


def _grouped(pipe: Any) -> None:
    cpu = torch.device("cpu")
    pipe.unet.enable_group_offload(cpu, cpu, offload_type="leaf_level")


def _emptied(pipe: Any) -> None:
    pipe.text_encoder.to("meta")


REFUSED: dict[str, tuple[Callable[[Any], None], str]] = {
    "no text encoder": (_without("text_encoder"), "has no text_encoder;"),
    "no tokenizer": (_without("tokenizer_2"), "has no tokenizer_2;"),
    "inpainting UNet": (_configured("unet", in_channels=9), "in_channels=9"),
    "SD 1.5's UNet": (_configured("unet", addition_embed_type=None), "addition_embed_type=None"),
    "refiner's UNet": (_configured("unet", projection_class_embeddings_input_dim=88), "refiner"),
    "IP-Adapter": (_configured("unet", encoder_hid_dim_type="ip_image_proj"), "unload_ip_adapter"),
    "Flux's VAE": (_configured("vae", latent_channels=16), "latent_channels=16"),
    "flow": (_configured("scheduler", prediction_type="flow_prediction"), "flow_prediction"),
    "accelerate's hooks": (_offloaded, "hooks move its unet"),
    "group offload": (_grouped, "hooks move its unet"),
    "no weights": (_emptied, "text_encoder has no weights"),
    "dtypes": (_half_text, "type pipe.text_encoder_2.to(pipe.unet.dtype)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_used_is_told(name: str, make: Make) -> None:
    spoil, said = REFUSED[name]
    pipe = make()
    spoil(pipe)
    with pytest.raises(RequestError, match=re.escape(said)) as caught:
        Engine.from_pipe(pipe, "turbo")
    assert "\n" not in str(caught.value)


def test_what_is_no_sdxl_pipe_is_told(make: Make) -> None:
    with pytest.raises(RequestError, match=r"type fewstep\.load\('sdxl'\)"):
        Engine.from_pipe("sdxl")
    with pytest.raises(RequestError, match="has no unet"):
        Engine.from_pipe(object())
    sdxl = make()
    older = StableDiffusionPipeline(
        vae=sdxl.vae, text_encoder=sdxl.text_encoder, tokenizer=sdxl.tokenizer, unet=sdxl.unet,
        scheduler=sdxl.scheduler, safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    with pytest.raises(RequestError, match="no text_encoder_2, no tokenizer_2"):
        Engine.from_pipe(older, "turbo")


def test_a_mode_that_does_not_fit_is_told(make: Make, pipes: Mapping[str, Any]) -> None:
    with pytest.raises(RequestError, match="has a guidance embedding"):
        Engine.from_pipe(pipes["lcm"], "turbo")
    with pytest.raises(RequestError, match="has no guidance embedding"):
        Engine.from_pipe(pipes["plain"], "lcm")
    pipe = make(scheduler=LCMScheduler.from_config(pipes["plain"].scheduler.config))
    with pytest.raises(RequestError, match="mode='lcm-lora'"):
        Engine.from_pipe(pipe)
