"""`Engine`: the loaded parts of one (model, mode), and the calls they serve."""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self
from weakref import ref

import torch
from PIL import Image
from torch import Tensor

from fewstep import devices, loop
from fewstep.addons.cache import AddonCache
from fewstep.addons.controlnet import Control
from fewstep.addons.ip_adapter import Reference
from fewstep.addons.lora_apply import EngineLoras
from fewstep.cancel import CancelToken
from fewstep.catalog import vaes
from fewstep.catalog.licences import join_licences
from fewstep.catalog.runtimes import RuntimeInfo, choose_runtime
from fewstep.codec import Codec
from fewstep.devices import Placement
from fewstep.devices.memory import free_memory
from fewstep.engine_base import EngineBase, Redraw
from fewstep.errors import (
    DeviceMemoryError,
    Failure,
    FewstepError,
    GenerationError,
    RequestError,
    raise_as_memory_error,
)
from fewstep.loading import from_pipe
from fewstep.loading.footprint import measure_model
from fewstep.loading.parts import Parts, count_bytes, load_parts
from fewstep.loading.used_weights import weights_of_call
from fewstep.loop import Call, Networks, Step
from fewstep.progress import Notify, Progress, show_progress
from fewstep.prompts import Embedding
from fewstep.request import Job
from fewstep.request.engine_choice import EngineChoice, features_of_call, licences_of_call
from fewstep.request.schema import EngineKey
from fewstep.result import Result
from fewstep.runtimes import load_runtime
from fewstep.runtimes.batching import Turns
from fewstep.torch_state import FreshTorchState

_log = logging.getLogger("fewstep")
_run_steps = FreshTorchState()(loop.run_steps)
_decode_pictures = FreshTorchState()(loop.decode_pictures)


class _Never(CancelToken):
    """Of calls that nobody stops."""

    def check(self) -> None:
        """Do nothing."""


_NEVER = _Never()


@dataclass(frozen=True, kw_only=True)
class _Loaded:
    """What an open engine holds."""

    parts: Parts
    networks: dict[str, Networks]  # by runtime: those that calls so far ran on
    loras: EngineLoras
    addons: AddonCache


@dataclass(frozen=True, kw_only=True)
class _Drawing:
    """A call under way, and what its result says of the engine, which may be closed meanwhile."""

    choice: EngineChoice
    placement: Placement
    parts: Parts
    networks: Networks
    call: Call
    redraw: Redraw
    notes: dict[str, None]  # in order, each sentence once


class Engine(EngineBase[Step]):
    """A model kept loaded: `generate`, `agenerate`, `stream`, `plan`, as in `EngineBase`, until `close`.

    No call leaves anything behind on it but encoded prompts, and what it had loaded, so that calls
    in any order, or from several threads, give the same pictures; those that run at once take turns,
    step by step. Where their LoRAs differ each turn puts its own on first, which takes time.
    """

    def __init__(self, choice: EngineChoice, placement: Placement, parts: Parts):
        """Use `fewstep.load`."""
        self.choice: EngineChoice = choice
        self.placement: Placement = placement
        self._runtime = choose_runtime(choice.key.options["runtime"])  # of calls without add-ons
        # The mode's own adapter goes on first: a runtime may take the weights as they are.
        loras = EngineLoras(parts)
        networks = {self._runtime.name: _networks_on(self._runtime, parts, placement)}
        self._state: _Loaded | None = _Loaded(
            parts=parts, networks=networks, loras=loras, addons=AddonCache(parts.unet, placement)
        )

    @classmethod
    @FreshTorchState()
    def from_pipe(cls, pipe: Any, mode: str | None = None, *, steps: int | None = None) -> Self:
        """Return an engine on the networks of a diffusers SDXL pipeline, which stays as it is, and usable.

        mode: None is what its UNet shows, "lcm" or "base". Where a mode's weights are an adapter or
            a checkpoint, the pipeline is taken at the caller's word to have them, fused or active.
        steps: as in `fewstep.load`: which of the weights these are, where each has its own.
        """
        model, recipe = from_pipe.choose_pipe_mode(pipe, from_pipe.describe_pipe(pipe), mode, steps)
        key = EngineKey.of(recipe.mode, model=model.name)
        choice = EngineChoice(key, from_pipe.limit_size(model, recipe), recipe)
        return cls(choice, *from_pipe.parts_of_pipe(pipe, model, recipe))

    @FreshTorchState()
    def embed(self, prompt: str) -> Embedding:
        """Encode a prompt, to keep or to change; it may stand for a prompt in every call on this model."""
        loaded = self._loaded
        with loaded.parts.lock:
            loaded.loras.apply(())
            return loaded.parts.text.embed(prompt)

    def run(self, job: Job, *, cancel: CancelToken | None = None, progress: Progress = None) -> Result:
        started, notes = time.perf_counter(), dict[str, None]()
        drawing = self._drawing(job, cancel, notes, notes.setdefault)
        with show_progress(progress, job.request.steps) as report_step:
            for step in _run_steps(drawing.networks, drawing.call):
                report_step(step)
        return _finish(drawing, step.latents, time.perf_counter() - started)

    def stream_job(self, job: Job, cancel: CancelToken | None = None) -> Generator[Step, None, Result]:
        notes = dict[str, None]()

        def notify(sentence: str) -> None:
            notes.setdefault(sentence)
            _log.warning(sentence)

        drawing = self._drawing(job, cancel, notes, notify)
        for sentence in job.plan.warnings:
            _log.warning(sentence)
        return _stream(drawing)

    def close(self) -> None:
        self._state, self.closed = None, True
        free_memory()

    @property
    def parts(self) -> Parts:
        """Return the networks; raises `FewstepError` after `close`."""
        return self._loaded.parts

    @property
    def _loaded(self) -> _Loaded:
        if self._state is None:
            raise FewstepError("this engine is closed: load another with fewstep.load()")
        return self._state

    @FreshTorchState()
    def _drawing(
        self, job: Job, cancel: CancelToken | None, notes: dict[str, None], notify: Notify
    ) -> _Drawing:
        """Return a job under way; what of its prompts is not read is refused or said."""
        if not isinstance(cancel, CancelToken | None):
            raise RequestError(f"cancel={cancel!r}: give a fewstep.CancelToken()")
        loaded = self._loaded
        for sentence in loaded.parts.text.check((*job.prompts, job.negative), job.request.long_prompt):
            notify(sentence)
        loras, networks = job.request.loras, loaded.networks[self._runtime.name]
        if loras or job.control or job.reference:
            networks = self._networks_for_addons(loaded, job, notify)
        controls: tuple[Control, ...] = ()
        references: tuple[Reference, ...] = ()
        if job.control or job.reference:
            with raise_as_memory_error("while ControlNets or IP-Adapters were loaded"):
                controls, references = loaded.addons.controls(job), loaded.addons.references(job)
        active = loaded.loras.read(loras) if loras else ()
        call = Call(
            job=job,
            recipe=self.choice.recipe,
            token=_NEVER if cancel is None else cancel,
            loras=active,
            apply_loras=partial(loaded.loras.apply, active),
            restore=loaded.loras.restore,
            notify=notify,
            controls=controls,
            references=references,
        )
        return _Drawing(
            choice=self.choice,
            placement=self.placement,
            parts=loaded.parts,
            networks=networks,
            call=call,
            redraw=Redraw(engine=ref(self), door=self.door),
            notes=notes,
        )

    def _networks_for_addons(self, loaded: _Loaded, job: Job, notify: Notify) -> Networks:
        """Return the parts on the engine's runtime, or on one that can run this call, and say so."""
        features = features_of_call(job.request)
        runtime = choose_runtime(self.choice.key.options["runtime"], features)
        if runtime is not self._runtime:
            lacking = ", ".join(sorted({*features} - self._runtime.features))
            notify(f"the {self._runtime.name} runtime cannot run {lacking}: this call ran on {runtime.name}")
        if runtime.name not in loaded.networks:
            loaded.networks[runtime.name] = _networks_on(runtime, loaded.parts, self.placement)
        return loaded.networks[runtime.name]


def _stream(drawing: _Drawing) -> Generator[Step, None, Result]:
    """Yield the steps of a call, and return its result; the time that the reader takes is not the call's."""
    seconds, started = 0.0, time.perf_counter()
    for step in _run_steps(drawing.networks, drawing.call):
        seconds += time.perf_counter() - started
        yield step
        started = time.perf_counter()
    return _finish(drawing, step.latents, seconds)


def _finish(drawing: _Drawing, latents: Tensor, seconds: float) -> Result:
    """Return the pictures of steps that took so long; raises `GenerationError` where any did not come out."""
    started = time.perf_counter()
    pictures = _decode_pictures(drawing.networks, drawing.call, latents)
    decode = time.perf_counter() - started
    failures = [picture for picture in pictures if isinstance(picture, Failure)]
    images = {i: picture for i, picture in enumerate(pictures) if isinstance(picture, Image.Image)}
    parts, job, placement = drawing.parts, drawing.call.job, drawing.placement
    licence, weights, count = parts.licence, parts.weights, len(job.prompts)
    if job.request.loras or job.control or job.reference:
        licence = join_licences((licence, *licences_of_call(job.request).values()))
        weights = (*weights, *weights_of_call(job.request))
    job = replace(job, rows=tuple(range(count)), batch=count)
    result = Result(
        images=tuple(images.values()),
        jobs=(job.only([*images]) if failures else job,),
        engine_key=drawing.choice.key,
        redraw=drawing.redraw,
        timings={"steps": seconds, "decode": decode, "total": seconds + decode},
        warnings=(*job.plan.warnings, *drawing.notes),
        model=drawing.choice.model.source,
        licence=licence,
        revision=parts.revision,
        device=str(placement.device),
        precision=str(placement.dtype).removeprefix("torch."),
        runtime=drawing.networks.runtime,
        processor=devices.processor_name(placement.device),
        threads=torch.get_num_threads(),
        weights=weights,
        places=tuple(images) if failures else (),
    )
    if failures:
        raise _failure(failures, result, placement)
    return result


def _failure(failures: Sequence[Failure], result: Result, placement: Placement) -> GenerationError:
    """Return the error of a call of which not all pictures came out, with those that did."""
    out_of_memory = not len(result) and all(failure.memory for failure in failures)
    error_class = DeviceMemoryError if out_of_memory else GenerationError
    failed = ", ".join(f"picture {f.picture} (seed {f.seed})" for f in failures)
    if failures[0].memory:
        advice = ""  # the reason has it
    elif placement.dtype == placement.vae_dtype == torch.float32:
        advice = "; this is fp32 already: try another seed, or another model"
    else:
        advice = "; try precision='fp32'"
    survivors = len(result)
    note = f"; the other {survivors} of this call are in the error's survivors" if survivors else ""
    message = f"{failed}: {failures[0].reason}{advice}{note}"
    return error_class(message, failures, result if survivors else None)


def _networks_on(info: RuntimeInfo, parts: Parts, placement: Placement) -> Networks:
    """Return a model's parts as the loop calls them, run by this runtime."""
    runtime = load_runtime(info)
    return Networks(
        text=parts.text,
        network=runtime.network(parts.unet),
        codec=Codec(parts.vae, placement, parts.lock, runtime),
        runtime=info.name,
        process=parts.process,
        guidance_width=parts.guidance_width,
        placement=placement,
        turns=Turns(parts.lock),
        lock=parts.lock,
    )


@FreshTorchState()
def load_engine(choice: EngineChoice) -> Engine:
    """See `fewstep.load`."""
    options, model = choice.key.options, choice.model
    vae = choice.key.file("vae")
    size = measure_model(model, vaes.fetch_vae(vae, model) if vae else None)
    device = options["device"]
    machine = devices.probe(device)
    placement = devices.place(machine, size, device, options["precision"], options["offload"])
    devices.limit_threads(placement)
    for reason in placement.reasons:
        _log.info("%s", reason)
    with raise_as_memory_error("while the model was loaded"):
        parts = load_parts(model, choice.recipe, choice.key, placement)
        # Of a hub id, the files that have just come may say another noise process than was planned with.
        engine = Engine(choice._replace(model=replace(model, noise=parts.noise)), placement, parts)
    engine.weight_bytes = count_bytes(parts)
    home = placement.home
    engine.free_bytes = machine.cuda[home.index or 0].free if home.type == "cuda" else machine.cpu.free
    return engine
