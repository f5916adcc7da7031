"""Somebody's diffusers pipeline → the parts of an engine: its own networks, as and where they are.

Nothing is copied, moved or reloaded, and nothing of the pipeline is changed. Torch is imported by
`parts_of_pipe` only: `fewstep.check` reads pipelines too.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import PurePath
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from fewstep import modes
from fewstep.catalog.mode_weights import check_guidance_embedding
from fewstep.catalog.models import ALIASES, TINY, Model
from fewstep.catalog.noise import noise_for
from fewstep.errors import CorruptModelError, RequestError
from fewstep.files.config import trained_size
from fewstep.files.noise import Noise, noise_of_scheduler
from fewstep.inspection import name_doubt
from fewstep.recipe import Recipe

if TYPE_CHECKING:
    from fewstep.devices import Placement
    from fewstep.loading.parts import Parts

PIPE_NETWORKS = ("unet", "vae", "text_encoder", "text_encoder_2")
OTHER_PARTS = ("tokenizer", "tokenizer_2", "scheduler")
# What SDXL's UNet is, beside its sizes. 9 input channels are inpainting's, 8 instruct-pix2pix's.
UNET_CONFIG: Mapping[str, object] = {"in_channels": 4, "out_channels": 4, "addition_embed_type": "text_time"}
FAMILIES = {str(TINY): "tiny"} | {model.source: model.family for model in ALIASES.values()}
SCHEDULER_MODES = {"LCMScheduler": "lcm-lora", "TCDScheduler": "tcd"}  # schedulers for few-step weights only

# One per network, of whichever pipelines it is a part: their engines take turns on it.
_locks: WeakKeyDictionary[Any, threading.RLock] = WeakKeyDictionary()
_guard = threading.Lock()


class JointLock:
    """The re-entrant locks of several networks as one, always taken in the same order."""

    def __init__(self, networks: Iterable[Any]):
        with _guard:  # a compiled network is the one that was compiled
            uncompiled = [getattr(network, "_orig_mod", network) for network in networks]
            self._locks = sorted(
                {_locks.setdefault(network, threading.RLock()) for network in uncompiled}, key=id
            )

    def __enter__(self) -> None:
        acquired: list[threading.RLock] = []
        try:
            for lock in self._locks:
                lock.acquire()
                acquired.append(lock)
        except BaseException:  # an interrupt, while waiting
            for lock in reversed(acquired):
                lock.release()
            raise

    def __exit__(self, *_: object) -> None:
        for lock in reversed(self._locks):
            lock.release()

    @property
    def held(self) -> bool:
        """Return whether this thread has any of them: a network may then be at work below us."""
        locks: list[Any] = self._locks
        return any(lock._is_owned() for lock in locks)


def describe_pipe(pipe: Any) -> Model:
    """Return whose pictures a pipeline makes; raises `RequestError` if it is no whole one of SDXL's."""
    kind = type(pipe).__name__
    if isinstance(pipe, str | PurePath):
        raise RequestError(f"pipe={str(pipe)!r} is a name: type fewstep.load({str(pipe)!r})")
    missing = [name for name in (*PIPE_NETWORKS, *OTHER_PARTS) if getattr(pipe, name, None) is None]
    if missing:
        raise RequestError(
            f"{kind} is not a whole SDXL pipeline: it has no {', no '.join(missing)}; give a "
            "StableDiffusionXLPipeline, or its Img2Img or Inpaint variant, with all its parts"
        )
    for fault in _pipe_faults(pipe):
        raise RequestError(f"this {kind} cannot be used: {fault}")
    source = str(pipe.config.get("_name_or_path") or kind)
    embedded = bool(pipe.unet.config.get("time_cond_proj_dim"))
    return Model(
        name=kind, family=FAMILIES.get(source, "sdxl"), source=source,
        size=trained_size(pipe.unet.config, kind),
        default_mode="lcm" if embedded else "base", licence="unknown", local=True,
        carries="lcm" if embedded else "", noise=noise_of_pipe(pipe),
    )  # fmt: skip


def usual_mode(source: str, scheduler: str, embedded: bool) -> tuple[str, str]:
    """Return the mode that a pipeline shows, and a doubt where its name speaks of another, "" for none.

    `RequestError` where its scheduler is one for few-step weights, which nothing proves.
    """
    if embedded:
        return "lcm", ""
    if scheduler in SCHEDULER_MODES:
        raise RequestError(
            f"this pipeline's scheduler, {scheduler}, is that of few-step weights, and nothing in its UNet "
            f"proves them: say which, such as mode={SCHEDULER_MODES[scheduler]!r}, or mode='base'"
        )
    doubt = name_doubt(PurePath(source).name)
    return "base", f"{source!r}: {doubt}" if doubt else ""


def choose_pipe_mode(pipe: Any, model: Model, mode: str | None, steps: int | None) -> tuple[Model, Recipe]:
    """Return whose pictures it makes in a mode (None: the one that it shows), and the mode's recipe."""
    doubts: tuple[str, ...] = ()
    if mode is None:
        source, embedded = str(pipe.config.get("_name_or_path") or ""), model.carries == "lcm"
        mode, doubt = usual_mode(source, type(pipe.scheduler).__name__, embedded)
        doubts = (doubt,) if doubt else ()
    recipe = modes.find_recipe(mode).on(model.family).for_steps(steps)
    weights = recipe.weights.get(model.family)
    adapter = weights if weights is not None and weights.attach == "adapter" else None
    return replace(model, noise=noise_for(model, recipe, adapter, "", True), doubts=doubts), recipe


def limit_size(model: Model, recipe: Recipe) -> Model:
    """Return the model at most at the size of the mode's weights: Turbo's single file does not say it."""
    weights = recipe.weights.get(model.family)
    return replace(model, size=min(model.size, weights.size)) if weights and weights.size else model


def parts_of_pipe(pipe: Any, model: Model, recipe: Recipe) -> tuple[Placement, Parts]:
    """Return the networks, where they are; an adapter that the mode needs is taken to be on them already."""
    from fewstep.architectures.text import TextEncoder
    from fewstep.loading.parts import Parts

    width = pipe.unet.config.get("time_cond_proj_dim") or 0
    check_guidance_embedding(model, recipe, bool(width))
    encoders = (pipe.text_encoder, pipe.text_encoder_2)
    lock = JointLock(getattr(pipe, name) for name in PIPE_NETWORKS)
    text = TextEncoder(
        (pipe.tokenizer, pipe.tokenizer_2),
        encoders,
        zero_empty=bool(pipe.config.get("force_zeros_for_empty_prompt", True)),
        lock=lock,
    )
    parts = Parts(
        unet=pipe.unet,
        vae=pipe.vae,
        text=text,
        noise=model.noise,
        guidance_width=width,
        lock=lock,
    )
    return _pipe_placement(pipe), parts


def _pipe_placement(pipe: Any) -> Placement:
    """Return what was decided by whoever made the pipeline."""
    import torch

    from fewstep.devices import Placement

    weight = pipe.unet.conv_in.weight
    device, dtype, vae_dtype = weight.device, pipe.unet.dtype, pipe.vae.dtype
    channels_last = weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    return Placement(
        device=device,
        dtype=dtype,
        vae_dtype=vae_dtype,
        batch=0 if device.type == "cuda" else 1,  # as `fewstep.devices.place.choose_batch`
        channels_last=channels_last,
        offload="none",
        tiling=bool(getattr(pipe.vae, "use_tiling", False)),
        threads=torch.get_num_threads(),
        reasons=(f"{device}, {dtype} and {vae_dtype} in the VAE: so the pipeline is",),
    )


def _pipe_faults(pipe: Any) -> Iterator[str]:
    """Yield what keeps its networks from running in our loop."""
    unet, vae = pipe.unet.config, pipe.vae.config
    for key, fitting in UNET_CONFIG.items():
        if unet.get(key) != fitting:
            yield f"its UNet has {key}={unet.get(key)!r}, and SDXL's has {fitting!r}"
    summary = getattr(pipe.text_encoder_2.config, "projection_dim", 0) + 6 * unet["addition_time_embed_dim"]
    if unet.get("projection_class_embeddings_input_dim") != summary:
        yield "its UNet takes other size ids than SDXL base's 6: a refiner's is not for text to image"
    if unet.get("encoder_hid_dim_type") is not None:
        yield "its UNet wants an IP-Adapter's picture: type pipe.unload_ip_adapter()"
    if vae.get("latent_channels") != 4 or len(vae.get("block_out_channels", ())) != 4:
        yield (
            f"its VAE has latent_channels={vae.get('latent_channels')!r} in {len(vae['block_out_channels'])} "
            "blocks, and SDXL's has 4 in 4: give it an SDXL VAE"
        )
    for name in ("controlnet", "adapter"):
        if getattr(pipe, name, None) is not None:
            yield f"its {name} would not be used: type StableDiffusionXLPipeline.from_pipe(pipe)"
    if noise_of_pipe(pipe).fault:
        yield noise_of_pipe(pipe).fault
    yield from _placement_faults({name: getattr(pipe, name) for name in PIPE_NETWORKS})


def noise_of_pipe(pipe: Any) -> Noise:
    """Return the noise process that a pipeline's scheduler says; raises `RequestError`."""
    config = {**pipe.scheduler.config, "_class_name": type(pipe.scheduler).__name__}
    try:
        return noise_of_scheduler(config, f"this {type(pipe).__name__}")
    except CorruptModelError as error:
        raise RequestError(str(error)) from None


def _placement_faults(networks: Mapping[str, Any]) -> Iterator[str]:
    """Yield what keeps its networks from running side by side, as they are."""
    for name, network in networks.items():
        if any(map(_has_offload_hook, network.modules())):
            yield (
                f"hooks move its {name} about: type pipe.remove_all_hooks(); pipe.to('cuda'), or load it "
                "with fewstep.load(..., offload='model')"
            )
        if getattr(network, "is_quantized", False) or getattr(network, "hf_quantizer", None) is not None:
            yield f"its {name} is quantized: load it in torch.float16, torch.bfloat16 or torch.float32"
    devices = {name: _device_of_pipe(network) for name, network in networks.items()}
    if "meta" in devices.values():
        empty = [name for name, device in devices.items() if device == "meta"]
        yield f"its {', '.join(empty)} has no weights (device meta): load it without low_cpu_mem tricks"
    if len(set(devices.values())) > 1:
        listing = ", ".join(f"{name} on {device}" for name, device in devices.items())
        yield f"its networks are on several devices ({listing}): type pipe.to({devices['unet']!r})"
    for name in ("text_encoder", "text_encoder_2"):
        dtype, unet_dtype = networks[name].dtype, networks["unet"].dtype
        if dtype != unet_dtype:
            yield f"its {name} is {dtype} beside a UNet of {unet_dtype}: type pipe.{name}.to(pipe.unet.dtype)"


def _has_offload_hook(module: Any) -> bool:
    """Return whether accelerate (`_hf_hook`) or diffusers' group offload moves this module's weights."""
    registry = getattr(module, "_diffusers_hook", None)
    return hasattr(module, "_hf_hook") or any("offload" in name for name in getattr(registry, "hooks", ()))


def _device_of_pipe(network: Any) -> str:
    """Return a device such as "cuda:0"; several where it has a device map."""
    return " and ".join(sorted({str(weight.device) for weight in network.parameters()}))
