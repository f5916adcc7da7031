"""The functions: sugar over `Engine`. `plan` needs no torch."""

from __future__ import annotations

import gc
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from fewstep import backends, request
from fewstep.request import Options, Plan

if TYPE_CHECKING:
    from PIL.Image import Image

    from fewstep.engine import Engine
    from fewstep.result import Result

_Key = tuple[str, str | None, str, str, str]
_resident: dict[_Key, Engine] = {}  # at most one
_lock = threading.Lock()


def generate(  # noqa: PLR0913  the public call names every choice
    prompt: str | Sequence[str],
    steps: int | None = None,
    mode: str | None = None,
    *,
    model: str | Path = "tiny",
    negative_prompt: str = "",
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
) -> Result:
    """Make pictures.

    prompt: what to draw; a list makes one batch of several.
    steps: how many steps are run, exactly, in every task. Default and range are the mode's.
    mode: how steps are saved, one of `fewstep modes`; the default is the model's.
    model: whose pictures: "tiny" (bundled), "sdxl", "ssd-1b", a hub id or a diffusers folder.
    negative_prompt: what to keep away from; acts only where guidance is classifier-free and above 1.
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
    device: "auto", "cuda", "mps" or "cpu". precision: "auto", "fp32", "fp16" or "bf16".

    The engine stays loaded for the next call with the same model, mode, accelerator, device
    and precision; another evicts it first. Raises `RequestError` for what cannot be done,
    `ModelError` for bad or missing files, `GenerationError` where no picture came out.
    """
    engine = _engine((str(model), mode, str(accelerator), device, precision))
    return engine.generate(
        prompt, steps, negative_prompt=negative_prompt, guidance=guidance, guidance_rescale=guidance_rescale,
        seed=seed, count=count, width=width, height=height, image=image, mask=mask, strength=strength,
        scheduler=scheduler, sampler=sampler, eta=eta, timesteps=timesteps,
    )  # fmt: skip


def load(
    model: str | Path = "tiny",
    mode: str | None = None,
    *,
    accelerator: str | Path = "",
    device: str = "auto",
    precision: str = "auto",
) -> Engine:
    """Load a model for one mode and keep it until `close`; arguments as in `generate`."""
    from fewstep import engine

    return engine.load(str(model), mode, str(accelerator), device, precision)


def plan(
    prompt: str | Sequence[str],
    steps: int | None = None,
    mode: str | None = None,
    *,
    model: str | Path = "tiny",
    **options: Unpack[Options],
) -> Plan:
    """What `generate` would run: timesteps, sigmas, guidance meaning, size, warnings. Loads nothing."""
    about, recipe = backends.chosen(str(model), mode)
    return request.resolve(about.name, about.size, recipe, prompt, steps, options)[0]


def _engine(key: _Key) -> Engine:
    """The resident engine, or a new one in its place."""
    with _lock:
        if key not in _resident:
            _resident.clear()  # a call still running on it keeps it until it ends
            gc.collect()
            _resident[key] = load(key[0], key[1], accelerator=key[2], device=key[3], precision=key[4])
        return _resident[key]
