"""The one loop: a plan on loaded networks → steps → pictures. Every task and mode runs through it.

What belongs to a call (its token, what it has to say) is passed along, never kept on the
networks, which calls in other threads share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from fewstep.addons.controlnet import Control, with_controlnets
from fewstep.addons.ip_adapter import Reference, with_ip_adapters
from fewstep.architectures.text import TextEncoder
from fewstep.cancel import CancelToken
from fewstep.codec import Codec, is_finite
from fewstep.denoiser import Cfg, Denoiser, Unet, guidance_embedding
from fewstep.devices import Placement
from fewstep.errors import BackendError, DeviceMemoryError, Failure
from fewstep.images import image_to_tensor, mask_to_tensor
from fewstep.recipe import Recipe
from fewstep.request import Job
from fewstep.runtimes.batching import halve_when_full, take_turns
from fewstep.runtimes.memory import Notify, raise_as_memory_error
from fewstep.samplers import Denoise


@dataclass(frozen=True, kw_only=True)
class Step:
    """One finished step of all pictures of a call."""

    index: int  # from 0
    steps: int
    timestep: float  # the level it started from
    latents: Tensor = field(repr=False)  # (B, 4, h, w), after the step
    x0: Tensor = field(repr=False)  # (B, 4, h, w), the pictures as predicted in this step
    codec: Codec = field(repr=False)

    def preview(self, picture: int = 0) -> Image.Image:
        """A quick look at a picture as predicted so far; with a large VAE its colours and layout only."""
        return Image.fromarray(self.codec.preview(self.x0[picture : picture + 1]).numpy())


@dataclass(frozen=True, kw_only=True)
class Networks:
    """The parts of a model as the loop calls them."""

    text: TextEncoder
    unet: Unet
    codec: Codec
    prediction: str  # epsilon, v_prediction or sample
    guidance_width: int  # of LCM's guidance embedding; 0 is none
    placement: Placement
    lock: AbstractContextManager[Any]  # held while one of them runs


@dataclass(frozen=True, kw_only=True)
class Call:
    """What belongs to one call."""

    job: Job
    recipe: Recipe
    token: CancelToken
    dress: Callable[[], None]  # puts this call's adapters on the networks, under their lock
    undress: Callable[[], None]  # leaves the networks as they are to be found after it
    say: Notify  # takes what had to be done to get through, for the result's warnings
    controls: tuple[Control, ...] = ()
    references: tuple[Reference, ...] = ()


@torch.no_grad()
def run_steps(networks: Networks, call: Call) -> Iterator[Step]:
    """Draw, encode, start, step."""
    call.token.check()
    asked, schedule, codec = call.job.request, call.job.plan.schedule, networks.codec
    sampler, device, image = call.recipe.sampler(asked.sampler), networks.placement.device, call.job.image
    with raise_as_memory_error("while prompts were encoded"), networks.lock, networks.text.lock:
        call.dress()
        denoise: Denoise = _denoiser(networks, call)
    shape = (1, 4, asked.height // 8, asked.width // 8)
    posterior, first, *noise = draw_noise(
        asked.seeds, shape, 2 + schedule.steps * sampler.draws, image is None
    )
    x = first.to(device) * (call.job.plan.start if image is None else schedule.sigmas[0])
    if image is not None:
        picture = image_to_tensor(image)
        known = torch.cat([_encode_image(codec, picture, sample, call) for sample in posterior.split(1)])
        x = x + known
        if call.job.mask is not None:
            denoise = masked_denoiser(denoise, known, mask_to_tensor(call.job.mask).to(device))
    stepping = sampler.steps(denoise, x, schedule, [n.to(device) for n in noise], asked.eta)
    done = 0
    for done, (timestep, (latents, x0)) in enumerate(zip(schedule.timesteps, stepping, strict=False), 1):
        yield Step(
            index=done - 1, steps=schedule.steps, timestep=timestep, latents=latents, x0=x0, codec=codec
        )
    if done < schedule.steps:
        raise BackendError(
            f"sampler={asked.sampler!r} of mode={asked.mode!r} made {done} steps, not {schedule.steps}: "
            "choose another, and run fewstep.testing.check_backend on its recipe"
        )


@torch.no_grad()
def decode_pictures(networks: Networks, call: Call, latents: Tensor) -> list[Image.Image | Failure]:
    """Latents → pictures, each on its own; outside a mask the given picture comes back untouched."""
    made: list[Image.Image | Failure] = []
    paste = _mask_paster(call.job)
    for index, (one, seed) in enumerate(zip(latents.split(1), call.job.request.seeds, strict=True)):
        call.token.check()
        if not is_finite(one):
            reason = "the UNet gave numbers that are not finite"
            made.append(Failure(picture=index, seed=seed, stage="UNet", reason=reason))
            continue
        try:
            pixels = networks.codec.decode(one, call.say)
        except (FloatingPointError, DeviceMemoryError) as error:
            memory = isinstance(error, DeviceMemoryError)
            made.append(Failure(picture=index, seed=seed, stage="VAE", reason=str(error), memory=memory))
            continue
        made.append(Image.fromarray(paste(pixels).numpy()))
    return made


def _encode_image(codec: Codec, picture: Tensor, sample: Tensor, call: Call) -> Tensor:
    call.token.check()
    return codec.encode(picture, sample, call.say)


def _denoiser(networks: Networks, call: Call) -> Denoiser:
    """The UNet of this call, told its prompts and guidance."""
    asked, place = call.job.request, networks.placement
    told, size, pictures = call.job.prompts, (asked.height, asked.width), len(asked.prompts)
    looks = [reference.tokens() for reference in call.references]  # without its pictures, and with them
    cfg, embedding = None, None
    if call.recipe.guidance.kind == "cfg" and asked.guidance > 1:
        against = [call.job.negative] * pictures
        negative, conditioning = networks.text.encode_pairs(against, told, size, asked.long_prompt)
        negative = negative.beside([without for without, _ in looks])
        cfg = Cfg(negative=negative, scale=asked.guidance, rescale=asked.guidance_rescale)
    else:
        conditioning = networks.text.encode(told, size, asked.long_prompt)
    if networks.guidance_width:
        w = torch.full((pictures,), asked.guidance - 1, device=place.device)
        embedding = guidance_embedding(w, networks.guidance_width).to(place.dtype)
    conditioning = conditioning.beside([seen for _, seen in looks])
    unet = with_controlnets(with_ip_adapters(networks.unet, call.references), call.controls)
    unet = halve_when_full(take_turns(unet, networks.lock, call.token, call.dress), place.batch, call.say)
    return Denoiser(unet, conditioning, prediction=networks.prediction, cfg=cfg, embedding=embedding)


def _mask_paster(job: Job) -> Callable[[Tensor], Tensor]:
    """Pixels (H, W, 3) uint8 → the same where the mask is white, the given picture where it is black."""
    if job.image is None or job.mask is None:
        return lambda pixels: pixels
    given = ((image_to_tensor(job.image) + 1) * 127.5)[0].permute(1, 2, 0)
    share = mask_to_tensor(job.mask)[0].permute(1, 2, 0)
    return lambda pixels: (share * pixels + (1 - share) * given).round().to(torch.uint8)


def draw_noise(seeds: Sequence[int], shape: tuple[int, ...], count: int, skip_first: bool) -> list[Tensor]:
    """`count` draws of noise (B, 4, h, w), on the CPU, from one generator per picture.

    The order is that of diffusers: the VAE's posterior (only where a picture is given; `skip_first`
    leaves zeros in its place), the start, then the steps.
    """
    columns: list[list[Tensor]] = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        start = [torch.zeros(shape)] if skip_first else []
        columns.append(start + [torch.randn(shape, generator=generator) for _ in range(count - len(start))])
    return [torch.cat(row) for row in zip(*columns, strict=True)]


def masked_denoiser(denoise: Denoise, known: Tensor, mask: Tensor) -> Denoise:
    """A denoiser that knows the picture where the mask is 0, so that x keeps the right noise there."""
    share = F.interpolate(mask, known.shape[-2:], mode="area")

    def inpaint(x: Tensor, sigma: float | Sequence[float]) -> Tensor:
        return share * denoise(x, sigma) + (1 - share) * known

    return inpaint
