"""The functions: sugar over `Engine`. `plan`, and every refusal that needs no weights, come without torch."""

from __future__ import annotations

import gc
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack, cast

from fewstep import backends, limits, request
from fewstep.cancel import CancelToken, in_thread
from fewstep.models import weights
from fewstep.request import Job, Options, Plan, Prompts

if TYPE_CHECKING:
    from PIL.Image import Image

    from fewstep.engine import Engine
    from fewstep.models.catalog import Model
    from fewstep.progress import Progress
    from fewstep.prompts import Embedding
    from fewstep.recipe import Recipe
    from fewstep.result import Result


class Place(TypedDict, total=False):
    """Which engine serves a call; `fewstep.generate` says what each is."""

    model: str | Path
    accelerator: str | Path
    device: str
    precision: str
    offload: str


class Everything(Options, Place, total=False):
    """All keywords of `fewstep.generate` that choose pictures or the engine."""


_Key = tuple[str, str, str, str, str, str]  # the arguments of `_load_engine`
_resident: dict[_Key, Engine] = {}  # at most one
_lock = threading.Lock()


def generate(  # noqa: PLR0913  the public call names every choice
    prompt: Prompts,
    steps: int | None = None,
    mode: str | None = None,
    *,
    model: str | Path = "tiny",
    prompt_2: str | Sequence[str] | None = None,
    negative_prompt: str | Embedding = "",
    long_prompt: str = "chunk",
    guidance: float | None = None,
    guidance_rescale: float = 0.0,
    seed: int | Sequence[int] | None = None,
    count: int = 1,
    width: int | None = None,
    height: int | None = None,
    image: str | Path | Image | None = None,
    mask: str | Path | Image | None = None,
    strength: float | None = None,
    scheduler: str | None = None,
    sampler: str | None = None,
    eta: float | None = None,
    timesteps: Sequence[int] | None = None,
    accelerator: str | Path = "",
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
    model: whose pictures: "tiny" (bundled), "sdxl", "ssd-1b", a hub id or a diffusers folder.
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
    accelerator: the mode's own weights, where not the usual ones: a UNet folder, or a LoRA file.
    device: "auto", "cuda", "cuda:1", "mps" or "cpu". precision: "auto", "fp32", "fp16" or "bf16".
    offload: what waits in main memory on a GPU too small: "auto", "none", "model" or "sequential".
    cancel: stops the call at its next step, from any thread.
    progress: None shows a bar on stderr at a terminal and in a notebook; True and False insist; a
        function is called with each `Step`.

    The engine stays loaded for the next call with the same model, mode, accelerator, device,
    precision and offload; another evicts it first. Raises `RequestError` for what cannot be done,
    `ModelError` for bad or missing files, `GenerationError` where pictures did not come out, with
    those that did in its `survivors`, and `GenerationCancelledError`.
    """
    key, job = _checked(
        prompt, steps, mode, model=model, prompt_2=prompt_2, negative_prompt=negative_prompt,
        long_prompt=long_prompt, guidance=guidance, guidance_rescale=guidance_rescale, seed=seed, count=count,
        width=width, height=height, image=image, mask=mask, strength=strength, scheduler=scheduler,
        sampler=sampler, eta=eta, timesteps=timesteps, accelerator=accelerator, device=device,
        precision=precision, offload=offload,
    )  # fmt: skip
    return _engine(key).run(job, cancel=cancel, progress=progress)


async def agenerate(
    prompt: Prompts,
    steps: int | None = None,
    mode: str | None = None,
    *,
    cancel: CancelToken | None = None,
    progress: Progress = None,
    **how: Unpack[Everything],
) -> Result:
    """`generate` beside an event loop; cancelling the task stops it at its next step."""
    key, job = _checked(prompt, steps, mode, **how)
    return await in_thread(lambda token: _engine(key).run(job, cancel=token, progress=progress), cancel)


def load(
    model: str | Path = "tiny",
    mode: str | None = None,
    *,
    accelerator: str | Path = "",
    device: str = "auto",
    precision: str = "auto",
    offload: str = "auto",
) -> Engine:
    """Load a model for one mode and keep it until `close`; arguments as in `generate`."""
    place: Place = {
        "model": model, "accelerator": accelerator, "device": device, "precision": precision,
        "offload": offload,
    }  # fmt: skip
    return _load_engine(*_placed(mode, place)[0])


def plan(
    prompt: Prompts,
    steps: int | None = None,
    mode: str | None = None,
    *,
    model: str | Path = "tiny",
    **options: Unpack[Options],
) -> Plan:
    """What `generate` would run: timesteps, sigmas, guidance meaning, size, warnings. Loads nothing."""
    about, recipe = backends.chosen(model, mode)
    return request.resolve(about, recipe, prompt, steps, options).plan


def _checked(
    prompt: Prompts, steps: int | None, mode: str | None, **how: Unpack[Everything]
) -> tuple[_Key, Job]:
    """Which engine, and what for: everything is checked here, before torch is imported."""
    place = cast(Place, {name: value for name, value in how.items() if name in Place.__annotations__})
    options = cast(Options, {name: value for name, value in how.items() if name not in place})
    key, about, recipe = _placed(mode, place)
    return key, request.resolve(about, recipe, prompt, steps, options)


def _placed(mode: str | None, place: Place) -> tuple[_Key, Model, Recipe]:
    """The key of an engine, its model and its recipe."""
    model, accelerator = place.get("model", "tiny"), place.get("accelerator", "")
    device, precision = place.get("device", "auto"), place.get("precision", "auto")
    offload = place.get("offload", "auto")
    limits.check_names(device, precision, offload)
    about, recipe = backends.chosen(model, mode)
    weights.choose(about, recipe, accelerator)
    return (str(model), recipe.mode, str(accelerator), device, precision, offload), about, recipe


def _load_engine(
    model: str, mode: str | None, accelerator: str, device: str, precision: str, offload: str
) -> Engine:
    """The one way to an engine; `fewstep.testing.fake` puts another in its place."""
    from fewstep import engine

    return engine.load(model, mode, accelerator, device, precision, offload)


def _engine(key: _Key) -> Engine:
    """The resident engine, or a new one in its place."""
    with _lock:
        if key not in _resident:
            _resident.clear()  # a call still running on it keeps it until it ends
            gc.collect()
            _resident[key] = _load_engine(*key)
        return _resident[key]
