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
from fewstep.architectures.text import PromptLike, TextEncoder
from fewstep.cancel import CancelToken
from fewstep.codec import Codec
from fewstep.denoiser import Cfg, Denoiser, Network, guidance_embedding
from fewstep.devices import Placement
from fewstep.errors import BackendError, DeviceMemoryError, Failure
from fewstep.images import byte_tensor, image_to_tensor, mask_to_tensor
from fewstep.noise_process import NoiseProcess, signal_of
from fewstep.progress import Notify
from fewstep.recipe import Recipe
from fewstep.request import Job
from fewstep.runtimes.batching import SharedNetwork, Turns
from fewstep.samplers import Denoise
from fewstep.tiles import anchored_denoiser, tiled_denoiser
from fewstep.torch_state import FreshTorchState


@dataclass(frozen=True, kw_only=True)
class Step:
    """One finished step of all pictures of a call."""

    index: int  # from 0
    steps: int
    timestep: float  # the level it started from
    latents: Tensor = field(repr=False)  # (B, 4, h, w), after the step
    x0: Tensor = field(repr=False)  # (B, 4, h, w), the pictures as predicted in this step
    codec: Codec = field(repr=False)

    @FreshTorchState()
    def preview(self, picture: int = 0) -> Image.Image:
        """Return a quick look at a picture as predicted so far; with a large VAE colours and layout only."""
        return Image.fromarray(self.codec.preview(self.x0[picture : picture + 1]).numpy())


@dataclass(frozen=True, kw_only=True)
class Networks:
    """The parts of a model as the loop calls them."""

    text: TextEncoder
    network: Network
    codec: Codec
    runtime: str  # that of network and codec
    process: NoiseProcess
    guidance_width: int  # of LCM's guidance embedding; 0 is none
    placement: Placement
    turns: Turns  # of the calls that run at once
    lock: AbstractContextManager[Any]  # held while one of them runs


@dataclass(frozen=True, kw_only=True)
class Call:
    """What belongs to one call."""

    job: Job
    recipe: Recipe
    token: CancelToken
    loras: object  # those on the networks during this call; calls with equal ones can share network calls
    apply_loras: Callable[[], object]  # puts them on, under the networks' lock
    restore: Callable[[], object]  # leaves the networks as they are to be found after it
    notify: Notify  # takes what had to be done to get through, for the result's warnings
    controls: tuple[Control, ...] = ()
    references: tuple[Reference, ...] = ()

    def take_turn(self) -> None:
        """Be the call that the networks serve now; raises where it is cancelled."""
        self.token.check()
        self.apply_loras()


@torch.no_grad()
def run_steps(networks: Networks, call: Call) -> Iterator[Step]:
    """Draw, encode, start, step."""
    call.token.check()
    request, schedule = call.job.request, call.job.plan.schedule
    images, canvas = call.job.images, call.job.canvas
    sampler, device = call.recipe.sampler(request.sampler), networks.placement.device
    try:
        denoise: Denoise = _make_denoiser(networks, call)
        if canvas.tile is not None:
            tile = (canvas.tile[1] // 8, canvas.tile[0] // 8)
            denoise = tiled_denoiser(denoise, tile)
        shape = (1, 4, canvas.size[1] // 8, canvas.size[0] // 8)
        draws = 2 + schedule.steps * sampler.draws
        posterior, start_noise, *noise = draw_noise(request.seeds, shape, draws, not images)
        x = start_noise.to(device) * (schedule.sigmas[0] if images else call.job.plan.start)
        if images:
            image_latents = _encode_images(networks.codec, posterior, call)
            signal = signal_of(schedule.sigmas[0])
            x = x + (image_latents if signal == 1 else signal * image_latents)
            if canvas.tile is not None and not call.job.masks:
                denoise = anchored_denoiser(denoise, image_latents, tile)
            if call.job.masks:
                masks = torch.cat([mask_to_tensor(canvas.place(mask)) for mask in call.job.masks])
                denoise = masked_denoiser(denoise, image_latents, masks.to(device))
        stepping = sampler.steps(denoise, x, schedule, [n.to(device) for n in noise], request.eta)
        done = 0
        for done, (timestep, (latents, x0)) in enumerate(zip(schedule.timesteps, stepping, strict=False), 1):
            yield Step(
                index=done - 1, steps=schedule.steps, timestep=timestep, latents=latents, x0=x0,
                codec=networks.codec,
            )  # fmt: skip
        if done < schedule.steps:
            raise BackendError(
                f"sampler={request.sampler!r} of mode={request.mode!r} made {done} steps, "
                f"not {schedule.steps}: "
                "choose another, and run fewstep.testing.check_backend on its recipe"
            )
    finally:
        call.restore()


@torch.no_grad()
def decode_pictures(networks: Networks, call: Call, latents: Tensor) -> list[Image.Image | Failure]:
    """Return latents as pictures, one at a time; outside a mask the given picture comes back untouched."""
    pictures: list[Image.Image | Failure] = []
    for index, (latent, seed) in enumerate(zip(latents.split(1), call.job.request.seeds, strict=True)):
        call.token.check()
        if not latent.isfinite().all():
            reason = "the UNet gave numbers that are not finite"
            pictures.append(Failure(picture=index, seed=seed, stage="UNet", reason=reason))
            continue
        try:
            pixels = networks.codec.decode(latent, call.notify)
        except (FloatingPointError, DeviceMemoryError) as error:
            memory = isinstance(error, DeviceMemoryError)
            pictures.append(Failure(picture=index, seed=seed, stage="VAE", reason=str(error), memory=memory))
            continue
        picture = Image.fromarray(pixels.numpy())
        plain = call.job.canvas.size == call.job.canvas.outer and not call.job.masks
        pictures.append(picture if plain else _paste(picture, call.job, index))
    return pictures


def _encode_images(codec: Codec, posterior: Tensor, call: Call) -> Tensor:
    """Return the given pictures as latents (B, 4, h, w), a sample of the VAE's posterior for each row."""
    latents = []
    for image, sample in zip(call.job.images, posterior.split(1), strict=True):
        call.token.check()
        latents.append(codec.encode(image_to_tensor(call.job.canvas.place(image)), sample, call.notify))
    return torch.cat(latents)


def _make_denoiser(networks: Networks, call: Call) -> Denoiser:
    """Return the network of this call, told its prompts and guidance; add-ons only where the call has any."""
    request, placement, canvas = call.job.request, networks.placement, call.job.canvas
    pictures, guidance, cfg, embedding = len(request.prompts), request.guidance, None, None
    encode_arguments: tuple[Sequence[PromptLike], tuple[int, int], str] = (
        call.job.prompts, (canvas.tile or canvas.size)[::-1], request.long_prompt
    )  # fmt: skip
    with networks.lock, networks.text.lock:
        call.apply_loras()
        # Of each without its pictures, and with them.
        token_pairs = [reference.tokens() for reference in call.references]
        if call.recipe.guidance.kind == "cfg" and guidance > 1:
            negative, conditioning = networks.text.encode_pairs(
                [call.job.negative] * pictures, *encode_arguments
            )
            negative = negative.with_references([blank for blank, _ in token_pairs])
            cfg = Cfg(negative=negative, scale=guidance, rescale=request.guidance_rescale)
        else:
            conditioning = networks.text.encode(*encode_arguments)
        if token_pairs:
            conditioning = conditioning.with_references([tokens for _, tokens in token_pairs])
    if networks.guidance_width:
        w = torch.full((pictures,), guidance - 1, dtype=torch.float32, device=placement.device)
        embedding = guidance_embedding(w, networks.guidance_width).to(placement.dtype)
    network = networks.network
    if call.references:
        network = with_ip_adapters(network, call.references)
    if call.controls:
        network = with_controlnets(network, call.controls)
    shared = SharedNetwork(
        network,
        limit=1 if request.reproducible else placement.batch,
        turns=networks.turns,
        before=call.take_turn,
        notify=call.notify,
        kind=None if request.reproducible else call.loras,
    )
    return Denoiser(shared, conditioning, process=networks.process, cfg=cfg, embedding=embedding)


def _paste(drawn: Image.Image, job: Job, index: int) -> Image.Image:
    """Return the given picture, and where its mask is white what was drawn; where it is black, untouched."""
    drawn = job.canvas.take_out(drawn)
    if not job.masks:
        return drawn
    original, share = (
        byte_tensor(job.images[index]).float(),
        mask_to_tensor(job.masks[index])[0].permute(1, 2, 0),
    )
    left, top, right, bottom = job.canvas.box or (0, 0, *drawn.size)
    area = (slice(top, bottom), slice(left, right))
    original[area] = share[area] * byte_tensor(drawn) + (1 - share[area]) * original[area]
    return Image.fromarray(original.round().to(torch.uint8).numpy())


def draw_noise(seeds: Sequence[int], shape: tuple[int, ...], count: int, skip_first: bool) -> list[Tensor]:
    """Return `count` draws of noise (B, 4, h, w), on the CPU, from one generator per picture.

    The order is that of diffusers: the VAE's posterior (only where a picture is given; `skip_first`
    leaves zeros in its place), the start, then the steps.
    """
    columns: list[list[Tensor]] = []
    for seed in seeds:
        generator = torch.Generator("cpu").manual_seed(seed)
        start = [torch.zeros(shape, dtype=torch.float32, device="cpu")] if skip_first else []
        columns.append(start + [
            torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
            for _ in range(count - len(start))
        ])  # fmt: skip
    return [torch.cat(row) for row in zip(*columns, strict=True)]


def masked_denoiser(denoise: Denoise, image_latents: Tensor, mask: Tensor) -> Denoise:
    """Return a denoiser that keeps the picture where the mask is 0, so that x has the right noise there."""
    share = F.interpolate(mask, image_latents.shape[-2:], mode="area")

    def inpaint(x: Tensor, sigma: float | Sequence[float]) -> Tensor:
        return share * denoise(x, sigma) + (1 - share) * image_latents

    return inpaint
