"""`Engine`: the loaded parts of one (model, mode), and the calls they serve."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Self

import torch
from PIL import Image

from fewstep import devices, loop, modes
from fewstep.addons.cache import AddonCache
from fewstep.addons.lora_apply import EngineLoras
from fewstep.cancel import CancelToken
from fewstep.catalog import vaes
from fewstep.catalog.licences import join_licences
from fewstep.catalog.models import Model
from fewstep.codec import Codec
from fewstep.devices import Placement
from fewstep.engine_base import EngineBase
from fewstep.errors import DeviceMemoryError, Failure, FewstepError, GenerationError, RequestError
from fewstep.loading import from_pipe as pipes
from fewstep.loading import parts as loading
from fewstep.loading.footprint import measure_model
from fewstep.loading.parts import Parts
from fewstep.loop import Call, Networks, Step
from fewstep.progress import Progress, show_progress
from fewstep.prompts import Embedding
from fewstep.recipe import Recipe
from fewstep.request import Job
from fewstep.request.choose import licences_of_call
from fewstep.request.schema import EngineKey
from fewstep.result import Result
from fewstep.runtimes.eager import eager_unet
from fewstep.runtimes.memory import Notify, free_memory, raise_as_memory_error

_log = logging.getLogger("fewstep")


class Engine(EngineBase[Step]):
    """A model kept loaded: `generate`, `agenerate`, `stream`, `plan`, as in `Calls`, until `close`.

    No call leaves anything behind on it but encoded prompts, and what it had loaded, so that calls
    in any order, or from several threads, give the same pictures; those that run at once take turns,
    step by step. Where their LoRAs differ each turn puts its own on first, which takes time.
    """

    def __init__(self, model: Model, recipe: Recipe, placement: Placement, parts: Parts):
        """Use `fewstep.load`."""
        self.model: Model = model
        self.recipe: Recipe = recipe
        self.placement: Placement = placement
        self._process = os.getpid()
        networks = Networks(
            text=parts.text,
            unet=eager_unet(parts.unet),
            codec=Codec(parts.vae, placement, parts.lock),
            prediction=parts.prediction,
            guidance_width=parts.guidance_width,
            placement=placement,
            lock=parts.lock,
        )
        self._loaded: tuple[Parts, Networks, EngineLoras, AddonCache] | None = (
            parts, networks, EngineLoras(parts), AddonCache(parts.unet, placement)
        )  # fmt: skip

    @classmethod
    def from_pipe(cls, pipe: Any, mode: str | None = None, *, steps: int | None = None) -> Self:
        """An engine on the networks of a diffusers SDXL pipeline, which stays as it is, and usable.

        mode: None is what its UNet shows, "lcm" or "base". Where a mode's weights are an adapter or
            a checkpoint, the pipeline is taken at the caller's word to have them, fused or active.
        steps: as in `fewstep.load`: which of the weights these are, where each has its own.
        """
        about = pipes.describe_pipe(pipe)
        named = modes.find_recipe(pipes.pipe_mode(pipe) if mode is None else mode)
        recipe = named.on(about.family).for_steps(steps)
        return cls(pipes.limit_size(about, recipe), recipe, *pipes.parts_of_pipe(pipe, about, recipe))

    def embed(self, prompt: str) -> Embedding:
        """Encode a prompt, to keep or to change; it may stand for a prompt in every call on this model."""
        with self._networks.lock:
            self._adapters.wear(())
            return self._networks.text.embed(prompt)

    def run(self, job: Job, *, cancel: CancelToken | None = None, progress: Progress = None) -> Result:
        started = time.perf_counter()
        (parts, networks, *_), notes = self._open, dict[str, None]()  # in order, each sentence once
        call = self._call(job, cancel, notes.setdefault)
        with show_progress(progress, job.request.steps) as tell:
            for step in self._steps(networks, call):
                tell(step)
        stepped = time.perf_counter()
        made = loop.decode_pictures(networks, call, step.latents)
        ended = time.perf_counter()
        fine = [index for index, one in enumerate(made) if isinstance(one, Image.Image)]
        result = Result(
            images=tuple(one for one in made if isinstance(one, Image.Image)),
            plan=job.plan.only(fine),
            timings={"steps": stepped - started, "decode": ended - stepped, "total": ended - started},
            warnings=(*job.plan.warnings, *notes),
            model=self.model.source,
            licence=join_licences((parts.licence, *licences_of_call(job.request).values())),
            accelerator=parts.given,
            vae=parts.given_vae,
            embeddings=parts.embeddings,
            revision=parts.revision,
            device=str(self.placement.device),
            precision=str(self.placement.dtype).removeprefix("torch."),
            edited=job.image is not None,
            places=tuple(fine) if len(fine) < len(made) else (),
        )
        failures = [one for one in made if isinstance(one, Failure)]
        if failures:
            lacking = not fine and all(failure.memory for failure in failures)
            kind = DeviceMemoryError if lacking else GenerationError
            raise kind(self._told(failures, len(fine)), failures, result if fine else None)
        return result

    def _told(self, failures: Sequence[Failure], others: int) -> str:
        """One line for all pictures that failed."""
        which = ", ".join(f"picture {f.picture} (seed {f.seed})" for f in failures)
        if failures[0].memory:
            advice = ""  # the reason has it
        elif self.placement.dtype == self.placement.vae_dtype == torch.float32:
            advice = "; this is fp32 already: try another seed, or another model"
        else:
            advice = "; try precision='fp32'"
        rest = f"; the other {others} of this call are in the error's survivors" if others else ""
        return f"{which}: {failures[0].reason}{advice}{rest}"

    def close(self) -> None:
        self._loaded = None
        free_memory()

    @property
    def parts(self) -> Parts:
        """The networks; `FewstepError` after `close`."""
        return self._open[0]

    @property
    def _networks(self) -> Networks:
        return self._open[1]

    @property
    def _adapters(self) -> EngineLoras:
        return self._open[2]

    @property
    def _beside(self) -> AddonCache:
        return self._open[3]

    @property
    def _open(self) -> tuple[Parts, Networks, EngineLoras, AddonCache]:
        if os.getpid() != self._process:
            raise FewstepError(
                "this engine was loaded before a fork, which torch's threads and CUDA do not survive: "
                "start children by multiprocessing.get_context('spawn'), and load it there"
            )
        if self._loaded is None:
            raise FewstepError("this engine is closed: load another with fewstep.load()")
        return self._loaded

    def _stepping(self, job: Job, cancel: CancelToken | None) -> Iterator[Step]:
        return self._steps(self._networks, self._call(job, cancel, _log.warning))

    @staticmethod
    def _steps(networks: Networks, call: Call) -> Iterator[Step]:
        try:
            yield from loop.run_steps(networks, call)
        finally:
            call.undress()

    def _call(self, job: Job, cancel: CancelToken | None, say: Notify) -> Call:
        """A job under way; what of its prompts will not be read is refused or said."""
        if not isinstance(cancel, CancelToken | None):
            raise RequestError(f"cancel={cancel!r}: give a fewstep.CancelToken()")
        for sentence in self._networks.text.check((*job.prompts, job.negative), job.request.long_prompt):
            say(sentence)
        with raise_as_memory_error("while ControlNets or IP-Adapters were loaded"):
            controls, references = self._beside.controls(job), self._beside.references(job)
        adapters = self._adapters
        return Call(
            job=job,
            recipe=self.recipe,
            token=CancelToken() if cancel is None else cancel,
            dress=partial(adapters.wear, adapters.read(job.request.loras)),
            undress=adapters.leave,
            say=say,
            controls=controls,
            references=references,
        )


def load_engine(key: EngineKey, about: Model, recipe: Recipe) -> Engine:
    """See `fewstep.load`."""
    need = measure_model(about, vaes.fetch_vae(key.vae, about) if key.vae else None)
    placement = devices.place(devices.probe(key.device), need, key.device, key.precision, key.offload)
    devices.limit_threads(placement)
    for reason in placement.reasons:
        _log.info("%s", reason)
    with raise_as_memory_error("while the model was loaded"):
        return Engine(about, recipe, placement, loading.load_parts(about, recipe, key, placement))
