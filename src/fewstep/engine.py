"""`Engine`: the loaded parts of one (model, mode). One loop serves every task and mode."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Unpack

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from fewstep import backends, devices, request
from fewstep.codec import Codec
from fewstep.denoiser import Cfg, Denoiser, Unet, guidance_embedding
from fewstep.devices import Placement
from fewstep.errors import FewstepError, GenerationError
from fewstep.models import load as loading
from fewstep.models.catalog import Model
from fewstep.models.load import Parts
from fewstep.picture import as_mask, as_tensor, fitted
from fewstep.recipe import Recipe
from fewstep.request import Options, Plan, Request
from fewstep.result import Result
from fewstep.runtimes.eager import eager_unet, in_batches
from fewstep.samplers import SAMPLERS, Denoise


@dataclass(frozen=True, kw_only=True)
class Step:
    """One finished step of all pictures of a call."""

    index: int  # from 0
    steps: int
    timestep: float  # the level it started from
    latents: Tensor  # (B, 4, h, w), after the step
    x0: Tensor  # (B, 4, h, w), the pictures as predicted in this step
    codec: Codec

    def preview(self, picture: int = 0) -> Image.Image:
        """The picture as predicted so far."""
        return Image.fromarray(self.codec.decode(self.x0[picture : picture + 1])[0].numpy())


@dataclass(frozen=True)
class _Loaded:
    """The networks, and two of them as the loop calls them."""

    parts: Parts
    codec: Codec
    unet: Unet


@dataclass(frozen=True)
class _Job:
    """A plan and the pictures it starts from."""

    plan: Plan
    image: Tensor | None  # (1, 3, H, W) in [-1, 1]
    mask: Tensor | None  # (1, 1, H, W) in [0, 1], 1 is made anew

    @property
    def request(self) -> Request:
        return self.plan.request


class Engine:
    """A model kept loaded. Use as a context manager, or call `close`.

    No call leaves anything behind on it but encoded prompts, so that calls in any order, or
    from several threads, give the same pictures.
    """

    def __init__(self, model: Model, recipe: Recipe, placement: Placement, parts: Parts):
        """Use `fewstep.load`."""
        self.model, self.recipe, self.placement = model, recipe, placement
        unet = in_batches(eager_unet(parts.unet), placement.batch)
        self._loaded: _Loaded | None = _Loaded(parts, Codec(parts.vae, placement), unet)

    def plan(self, prompt: str | Sequence[str], steps: int | None = None, **options: Unpack[Options]) -> Plan:
        """What `generate` would run; the options are those of `fewstep.generate`."""
        return self._job(prompt, steps, options).plan

    def generate(
        self, prompt: str | Sequence[str], steps: int | None = None, **options: Unpack[Options]
    ) -> Result:
        """Make the pictures; the options are those of `fewstep.generate`."""
        started = time.perf_counter()
        job = self._job(prompt, steps, options)
        warnings = (*job.plan.warnings, *self._cut(job.request))
        *_, last = self._run(job)
        stepped = time.perf_counter()
        images = self._finish(job, last)
        ended = time.perf_counter()
        return Result(
            images=images,
            plan=job.plan,
            timings={"steps": stepped - started, "decode": ended - stepped, "total": ended - started},
            warnings=warnings,
            model=self.model.source,
            licence=self.model.licence,
            device=str(self.placement.device),
            precision=str(self.placement.dtype).removeprefix("torch."),
            edited=job.image is not None,
        )

    def stream(
        self, prompt: str | Sequence[str], steps: int | None = None, **options: Unpack[Options]
    ) -> Iterator[Step]:
        """Yield each step as it happens; leaving the loop cancels. The request is checked at once."""
        return self._run(self._job(prompt, steps, options))

    def close(self) -> None:
        """Let go of the weights and their memory; calls still running keep them to their end."""
        self._loaded = None
        gc.collect()
        if self.placement.device.type == "cuda":
            torch.cuda.empty_cache()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def parts(self) -> Parts:
        """The networks; `FewstepError` after `close`."""
        return self._open.parts

    @property
    def _open(self) -> _Loaded:
        if self._loaded is None:
            raise FewstepError("this engine is closed: load another with fewstep.load()")
        return self._loaded

    def _job(self, prompt: str | Sequence[str], steps: int | None, options: Options) -> _Job:
        """Check everything and read the pictures given; nothing is computed yet."""
        about = self.model
        made, image, mask = request.resolve(about.name, about.size, self.recipe, prompt, steps, options)
        size = (made.request.width, made.request.height)
        return _Job(
            made,
            None if image is None else as_tensor(fitted(image, size, "image")),
            None if mask is None else as_mask(fitted(mask, size, "mask")),
        )

    @torch.no_grad()
    def _run(self, job: _Job) -> Iterator[Step]:
        """The loop: draw, encode, start, step."""
        asked, schedule, codec = job.request, job.plan.schedule, self._open.codec
        sampler = SAMPLERS[asked.sampler]
        denoise: Denoise = self._denoiser(asked)
        shape = (1, 4, asked.height // 8, asked.width // 8)
        posterior, first, *noise = draw(
            asked.seeds, shape, 2 + schedule.steps * sampler.draws, job.image is None
        )
        noise = [n.to(self.placement.device) for n in noise]
        x = first.to(self.placement.device) * (job.plan.start if job.image is None else schedule.sigmas[0])
        if job.image is not None:
            known = codec.encode(job.image.expand(len(x), -1, -1, -1), posterior.split(1))
            x = x + known
            if job.mask is not None:
                denoise = masked(denoise, known, job.mask.to(self.placement.device))
        stepping = sampler.steps(denoise, x, schedule, noise, asked.eta)
        for index, (latents, x0) in enumerate(stepping):
            yield Step(
                index=index, steps=schedule.steps, timestep=schedule.timesteps[index],
                latents=latents, x0=x0, codec=codec,
            )  # fmt: skip

    def _denoiser(self, asked: Request) -> Denoiser:
        parts, unet, pictures = self._open.parts, self._open.unet, len(asked.prompts)
        size = (asked.height, asked.width)
        conditioning = parts.text.encode(asked.prompts, size)
        kind = self.recipe.guidance.kind
        cfg, embedding = None, None
        if kind == "cfg" and asked.guidance > 1:
            negative = parts.text.encode([asked.negative_prompt] * pictures, size)
            cfg = Cfg(negative=negative, scale=asked.guidance, rescale=asked.guidance_rescale)
        if parts.guidance_width:
            w = torch.full((pictures,), asked.guidance - 1, device=self.placement.device)
            embedding = guidance_embedding(w, parts.guidance_width).to(self.placement.dtype)
        return Denoiser(unet, conditioning, prediction=parts.prediction, cfg=cfg, embedding=embedding)

    @torch.no_grad()
    def _finish(self, job: _Job, last: Step) -> tuple[Image.Image, ...]:
        """Latents → pictures; outside a mask the given picture comes back untouched."""
        for index, fine in enumerate(last.latents.isfinite().flatten(1).all(dim=1).tolist()):
            if not fine:
                seed = job.request.seeds[index]
                raise GenerationError(
                    f"picture {index} (seed {seed}): the UNet gave numbers that are not finite; "
                    "try precision='fp32'"
                )
        pixels = last.codec.decode(last.latents)
        if job.image is not None and job.mask is not None:
            given = ((job.image + 1) * 127.5).permute(0, 2, 3, 1)
            share = job.mask.permute(0, 2, 3, 1)
            pixels = (share * pixels + (1 - share) * given).round().to(torch.uint8)
        return tuple(Image.fromarray(one.numpy()) for one in pixels)

    def _cut(self, asked: Request) -> Iterator[str]:
        for prompt in dict.fromkeys((*asked.prompts, asked.negative_prompt)):
            rest = self.parts.text.cut(prompt)
            if rest:
                yield f"the prompt is longer than 77 tokens; this end of it was not read: {rest!r}"


def draw(seeds: Sequence[int], shape: tuple[int, ...], count: int, skip_first: bool) -> list[Tensor]:
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


def masked(denoise: Denoise, known: Tensor, mask: Tensor) -> Denoise:
    """A denoiser that knows the picture where the mask is 0, so that x keeps the right noise there."""
    share = F.interpolate(mask, known.shape[-2:], mode="area")

    def inpaint(x: Tensor, sigma: float | Sequence[float]) -> Tensor:
        return share * denoise(x, sigma) + (1 - share) * known

    return inpaint


def load(model: str, mode: str | None, accelerator: str, device: str, precision: str) -> Engine:
    """See `fewstep.load`."""
    about, recipe = backends.chosen(model, mode)
    placement = devices.place(devices.probe(), device, precision, small=about.family == "tiny")
    return Engine(about, recipe, placement, loading.load(about, recipe, accelerator, placement))
