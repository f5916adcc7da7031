"""The functions: sugar over `Engine`. `plan`, and every refusal that needs no weights, come without torch."""

from __future__ import annotations

import gc
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Unpack

from fewstep.cancel import CancelToken, run_in_thread
from fewstep.request import File, Plan, Prompts, limits
from fewstep.request.choose import (
    resolve_engine,
    resolve_generate,
)
from fewstep.request.options import EngineOptions, GenerateOptions
from fewstep.request.schema import EngineKey

if TYPE_CHECKING:
    from PIL.Image import Image

    from fewstep.catalog.models import Model
    from fewstep.engine import Engine
    from fewstep.progress import Progress
    from fewstep.prompts import Embedding
    from fewstep.recipe import Recipe
    from fewstep.result import Result


_resident_engines: dict[EngineKey, Engine] = {}  # at most one
_lock = threading.Lock()


def generate(  # noqa: PLR0913  the public call names every choice
    prompt: Prompts,
    steps: int | None = None,
    mode: str | None = None,
    *,
    model: File = "tiny",
    prompt_2: str | Sequence[str] | None = None,
    negative_prompt: str | Embedding = "",
    long_prompt: str = "chunk",
    guidance: float | None = None,
    guidance_rescale: float = 0.0,
    seed: int | Sequence[int] | None = None,
    count: int = 1,
    width: int | None = None,
    height: int | None = None,
    image: File | Image | None = None,
    mask: File | Image | None = None,
    strength: float | None = None,
    scheduler: str | None = None,
    sampler: str | None = None,
    eta: float | None = None,
    timesteps: Sequence[int] | None = None,
    loras: Sequence[File | tuple[File, float]] = (),
    control: Sequence[tuple[File, File | Image, float]] = (),
    reference: Sequence[tuple[File, File | Image, float]] = (),
    accelerator: File = "",
    vae: File = "",
    embeddings: Sequence[File] = (),
    revision: str = "",
    commercial: bool = False,
    device: str = "auto",
    precision: str = "auto",
    offload: str = "auto",
    cancel: CancelToken | None = None,
    progress: Progress = None,
) -> Result:
    """Make pictures.

    prompt: what to draw; a list makes one batch of several. `(word:1.2)` weighs a part of it
        (extra: fewstep[prompt]). An `Embedding`, as `Engine.embed` makes, may stand for any.
    steps: how many steps are run, exactly, in every task. Default and range are the mode's.
    mode: how steps are saved, one of `fewstep modes`; the default is the model's.
    model: whose pictures: "tiny" (bundled), "sdxl", "ssd-1b", a hub id, a diffusers folder or one
        .safetensors file.
    prompt_2: another prompt for the second text encoder, one or as many as `prompt`.
    negative_prompt: what to keep away from; acts only where guidance is classifier-free and above 1.
    long_prompt: over 77 tokens, "chunk" reads all in windows, "refuse" is an error, "cut" reads the
        first window and says in `result.warnings` what was not read.
    guidance: how closely to follow the prompt; meaning and range are the mode's.
    guidance_rescale: in [0, 1], against overexposure (arXiv:2305.08891, sec. 3.4).
    seed: in [0, 2**64); picture i uses seed + i. A list gives each its own; None draws one. The
        generator is torch's CPU one, which reads the low 32 bits: seeds 2**32 apart are one picture.
    count: pictures per prompt.
    width, height: pixels, in eights; the default is the model's size, or that of `image`.
    image: picture to start from (image-to-image).
    mask: white where `image` is to be made anew (inpainting).
    strength: in (0, 1], with `image`: the noise level to start from, 0.6 by default; never changes `steps`.
    scheduler, sampler, eta: other noise levels, another step rule, its share of fresh noise.
    timesteps: exactly these levels, falling, in [0, 999].
    loras: LoRA files or hub ids, or "fx" for "tiny", each alone or with its weight; the mode has a usual
        one.
    control: (ControlNet, picture, scale) each: the pictures' edges, depths or poses are followed.
    reference: (IP-Adapter, picture, scale) each: what the pictures show is taken up.
    accelerator: the mode's own weights, where not the usual ones: a UNet, or a LoRA file.
    vae: what decodes: "" is the model's own, "tiny" its family's tiny one, which is fast and rough; or a
        folder, a .safetensors file or a hub id of one for the same latents.
    embeddings: textual inversions; a file's name without its ending is the word to write in prompts.
    revision: of a model on the hub, 40 hex digits; the default is pinned for known names.
    commercial: True refuses weights whose licence forbids commercial use, or is not known.
    device: "auto", "cuda", "cuda:1", "mps" or "cpu". precision: "auto", "fp32", "fp16" or "bf16".
    offload: what waits in main memory on a GPU too small: "auto", "none", "model" or "sequential".
    cancel: stops the call at its next step, from any thread.
    progress: None shows a bar on stderr at a terminal and in a notebook; True and False insist; a
        function is called with each `Step`.

    The engine stays loaded for the next call with the same model, mode, accelerator, vae, embeddings,
    revision, device, precision and offload; another evicts it first. Raises `RequestError` for what
    cannot be done, `ModelError` for bad or missing files, `GenerationError` where pictures did not
    come out, with those that did in its `survivors`, and `GenerationCancelledError`.
    """
    wanted, job = resolve_generate(
        prompt, steps, mode, model=model, prompt_2=prompt_2, negative_prompt=negative_prompt,
        long_prompt=long_prompt, guidance=guidance, guidance_rescale=guidance_rescale, seed=seed, count=count,
        width=width, height=height, image=image, mask=mask, strength=strength, scheduler=scheduler,
        sampler=sampler, eta=eta, timesteps=timesteps, loras=loras, control=control, reference=reference,
        accelerator=accelerator, vae=vae, embeddings=embeddings, revision=revision, commercial=commercial,
        device=device, precision=precision, offload=offload,
    )  # fmt: skip
    return _resident_engine(*wanted).run(job, cancel=cancel, progress=progress)


async def agenerate(
    prompt: Prompts,
    steps: int | None = None,
    mode: str | None = None,
    *,
    cancel: CancelToken | None = None,
    progress: Progress = None,
    **how: Unpack[GenerateOptions],
) -> Result:
    """`generate` beside an event loop; cancelling the task stops it at its next step."""
    wanted, job = resolve_generate(prompt, steps, mode, **how)
    return await run_in_thread(
        lambda token: _resident_engine(*wanted).run(job, cancel=token, progress=progress), cancel
    )


def load(  # noqa: PLR0913  as `generate`
    model: File = "tiny",
    mode: str | None = None,
    *,
    steps: int | None = None,
    accelerator: File = "",
    vae: File = "",
    embeddings: Sequence[File] = (),
    revision: str = "",
    commercial: bool = False,
    device: str = "auto",
    precision: str = "auto",
    offload: str = "auto",
) -> Engine:
    """Load a model for one mode and keep it until `close`; arguments as in `generate`.

    `steps` chooses between the weights of a mode that has them for certain numbers of steps, as
    "lightning" has for 2, 4 and 8; in other modes each call says its own.
    """
    place: EngineOptions = {
        "model": model, "accelerator": accelerator, "vae": vae, "embeddings": embeddings,
        "revision": revision, "commercial": commercial, "device": device, "precision": precision,
        "offload": offload,
    }  # fmt: skip
    wanted = resolve_engine(mode, steps, place)
    if steps is not None:
        limits.check_steps(steps, wanted.recipe)
    engine = _load_engine(*wanted)
    engine.commercial = commercial
    return engine


def plan(
    prompt: Prompts, steps: int | None = None, mode: str | None = None, **how: Unpack[GenerateOptions]
) -> Plan:
    """What `generate` would run with these arguments: timesteps, sigmas, guidance meaning, size, warnings.

    All is checked as far as names and files here tell; nothing is loaded, nothing fetched.
    """
    return resolve_generate(prompt, steps, mode, **how)[1].plan


def _load_engine(key: EngineKey, about: Model, recipe: Recipe) -> Engine:
    """The one way to an engine; `fewstep.testing.fake` puts another in its place."""
    from fewstep.engine import load_engine

    return load_engine(key, about, recipe)


def _resident_engine(key: EngineKey, about: Model, recipe: Recipe) -> Engine:
    """The resident engine, or a new one in its place."""
    with _lock:
        if key not in _resident_engines:
            _resident_engines.clear()  # a call still running on it keeps it until it ends
            gc.collect()
            _resident_engines[key] = _load_engine(key, about, recipe)
        return _resident_engines[key]
