"""The functions: sugar over `Engine`. `plan`, and every refusal that needs no weights, come without torch."""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, Unpack

from fewstep import values
from fewstep.cancel import CancelToken, run_in_thread
from fewstep.engine_cache import EngineCache, load_engine
from fewstep.request import File, Job, Plan, Prompts, limits
from fewstep.request.engine_choice import (
    EngineChoice,
    choose_engine,
    count_steps,
    only_job,
    resolve_call,
    split_options,
)
from fewstep.request.options import OPTIONS, GenerateOptions, Guide, Pictures
from fewstep.streaming import Stream, stream_in_thread

if TYPE_CHECKING:
    from fewstep.engine import Engine
    from fewstep.loop import Step
    from fewstep.progress import Progress
    from fewstep.prompts import Embedding
    from fewstep.result import Result

# What gives the engine of a call and what is to be said of it; and the call's jobs.
_Prepared: TypeAlias = tuple[Callable[[], tuple[Any, tuple[str, ...]]], tuple[Job, ...]]


def generate(  # noqa: PLR0913  the public call names every choice
    prompt: Prompts,
    steps: int | Sequence[int] | None = None,
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
    image: Pictures | None = None,
    mask: Pictures | None = None,
    only_masked: bool = False,
    padding: int = 32,
    tiles: bool = False,
    strength: float | Sequence[float] | None = None,
    scheduler: str | None = None,
    sampler: str | None = None,
    eta: float | None = None,
    timesteps: Sequence[int] | None = None,
    reproducible: bool = False,
    loras: Sequence[File | tuple[File, float]] = (),
    control: Sequence[Guide] = (),
    reference: Sequence[Guide] = (),
    accelerator: File = "",
    accelerator_weight: float | None = None,
    vae: File = "",
    embeddings: Sequence[File] = (),
    prediction: str = "",
    revision: str = "",
    commercial: bool = False,
    device: str = "auto",
    precision: str = "auto",
    offload: str = "auto",
    runtime: str = "auto",
    budget_ms: float | None = None,
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
    width, height: pixels, multiples of 8; the default is the model's size, or that of `image`.
    image: picture to start from (image-to-image): a path, a file's bytes, a PIL image of any mode, a numpy
        array or a tensor. What is transparent is laid on white.
    mask: white where `image` is to be made anew (inpainting), in the same forms. With one, `image` may have
        any size, which the result has too.
    only_masked, padding: True draws what the mask shows, with so many pixels around it, as large as the
        model's own pictures, and puts it back: small things come out sharper.
    tiles: True draws over an `image` of any size, which the result has too; what is larger than the model's
        own pictures in overlapping tiles, averaged at every step (MultiDiffusion, arXiv:2302.08113).
    strength: in (0, 1], with `image`: the noise level to start from, 0.6 by default; never changes `steps`.
    scheduler, sampler, eta: other noise levels, another step rule, its share of fresh noise.
    timesteps: exactly these levels, falling, in [0, 999].
    reproducible: True gives a picture the same bits whatever is drawn beside it, in this call or another:
        one by one, which takes longer. Otherwise they may differ by 1 of 255.
    loras: LoRA files or hub ids, or "fx" for "tiny", each alone or with its weight; the mode has a usual
        one.
    control: (ControlNet, picture, scale) each: the pictures' edges, depths or poses are followed.
    reference: (IP-Adapter, picture, scale) each: what the pictures show is taken up.
    accelerator: the mode's own weights, where not the usual ones: a UNet, or a LoRA file.
    accelerator_weight: of the mode's own LoRA, above 0, up to 2; None is as its authors have it. On
        fine-tunes users turn DMD2's down to 0.7, and Hyper-SD's to 0.75.
    vae: what decodes: "" is the model's own, "tiny" its family's tiny one, which is fast and rough; or a
        folder, a .safetensors file or a hub id of one for the same latents.
    embeddings: textual inversions; a file's name without its ending is the word to write in prompts.
    prediction: what the network was trained to predict, where its files do not say: "epsilon",
        "v_prediction" or "sample"; "" is what they say.
    revision: of a model on the hub, 40 hex digits; the default is pinned for known names.
    commercial: True refuses weights whose licence forbids commercial use, or is not known.
    device: "auto", "cuda", "cuda:1", "mps" or "cpu". precision: "auto", "fp32", "fp16" or "bf16".
    offload: what waits in main memory on a GPU too small: "auto", "none", "model" or "sequential".
    runtime: how networks are run: "auto" or "eager".
    budget_ms: milliseconds for one picture, warm: the best mode, steps and VAE that fit are taken, of those
        that are on this machine and not given here. What they cost is measured at the first such call, by
        loading each, and kept for later processes; `result.warnings` says what was taken, and why.
    cancel: stops the call at its next step, from any thread.
    progress: None shows a bar on stderr at a terminal and in a notebook; True and False insist; a
        function is called with each `Step`.

    Of prompt, steps, image, mask and strength a list has one value for each picture; what is given once is
    for all. `image` and `mask` may also be a `Result`, which is a list of its pictures.

    The engine stays loaded for the next call with the same model, mode, accelerator and weight of it, vae,
    embeddings, prediction, revision, device, precision, offload and runtime; another evicts it first where
    memory is short, and `unload` frees it. Raises `RequestError` for what cannot be done, `ModelError` for
    bad or missing files, `GenerationError` where pictures did not come out, with those that did in its
    `survivors`, and `GenerationCancelledError`.
    """
    options = {name: value for name, value in locals().items() if name in OPTIONS}
    ready, jobs = _prepare(prompt, steps, mode, options)
    engine, notes = ready()
    run, work = (engine.run, jobs[0]) if len(jobs) == 1 else (engine.run_jobs, jobs)
    result: Result = run(work, cancel=cancel, progress=progress)
    return _with_notes(result, notes)


async def agenerate(
    prompt: Prompts,
    steps: int | Sequence[int] | None = None,
    mode: str | None = None,
    *,
    cancel: CancelToken | None = None,
    progress: Progress = None,
    **options: Unpack[GenerateOptions],
) -> Result:
    """`generate` beside an event loop; cancelling the task stops it at its next step."""
    prepare = _prepare_for_thread(prompt, steps, mode, options)

    def call(token: CancelToken) -> Result:
        ready, jobs = prepare()
        engine, notes = ready()
        return _with_notes(engine.run_jobs(jobs, cancel=token, progress=progress), notes)

    return await run_in_thread(call, cancel)


def stream(
    prompt: Prompts,
    steps: int | None = None,
    mode: str | None = None,
    *,
    cancel: CancelToken | None = None,
    **options: Unpack[GenerateOptions],
) -> Stream[Step, Result]:
    """Yield each step as it happens, as `Engine.stream`, with the arguments of `generate` and its engine."""
    ready, jobs = _prepare(prompt, steps, mode, options)
    engine, notes = ready()
    return Stream(_stream_with_notes(engine.stream_job(only_job(jobs), cancel), notes))


def astream(
    prompt: Prompts,
    steps: int | None = None,
    mode: str | None = None,
    *,
    cancel: CancelToken | None = None,
    **options: Unpack[GenerateOptions],
) -> AsyncGenerator[Step | Result, None]:
    """Yield each step, then the result, as `Engine.astream`, with the arguments of `generate`."""
    prepare = _prepare_for_thread(prompt, steps, mode, options)

    def start(token: CancelToken) -> Generator[Step, None, Result]:
        ready, jobs = prepare()
        engine, notes = ready()
        return _stream_with_notes(engine.stream_job(only_job(jobs), token), notes)

    return stream_in_thread(start, cancel)


def _with_notes(result: Result, notes: tuple[str, ...]) -> Result:
    """Return a result with what is to be said of its engine."""
    return replace(result, warnings=(*result.warnings, *notes)) if notes else result


def _stream_with_notes(
    steps: Generator[Step, None, Result], notes: tuple[str, ...]
) -> Generator[Step, None, Result]:
    """Yield the steps of a job, and return its result with what is to be said of its engine."""
    result = yield from steps
    return _with_notes(result, notes)


def load(  # noqa: PLR0913  as `generate`
    model: File = "tiny",
    mode: str | None = None,
    *,
    steps: int | None = None,
    accelerator: File = "",
    accelerator_weight: float | None = None,
    vae: File = "",
    embeddings: Sequence[File] = (),
    prediction: str = "",
    revision: str = "",
    commercial: bool = False,
    device: str = "auto",
    precision: str = "auto",
    offload: str = "auto",
    runtime: str = "auto",
) -> Engine:
    """Load a model for one mode and keep it until `close`; arguments as in `generate`.

    `steps` chooses between the weights of a mode that has them for certain numbers of steps, as
    "lightning" has for 2, 4 and 8; in other modes each call says its own.
    """
    options, steps = split_options(locals())[0], values.whole(steps)
    choice = choose_engine(mode, steps, options)
    if steps is not None:
        limits.check_steps(steps, choice.recipe)
    engine: Engine = load_choice(choice)
    engine.commercial = commercial
    return engine


def load_choice(choice: EngineChoice) -> Any:
    """Return a new engine for a choice, beside the one that `generate` keeps."""
    return _engines.load_new(choice)


def plan(
    prompt: Prompts, steps: int | None = None, mode: str | None = None, **options: Unpack[GenerateOptions]
) -> Plan:
    """Return what `generate` would run: timesteps, sigmas, guidance meaning, size, warnings.

    All is checked as far as names and files here tell; nothing is loaded, nothing fetched.
    """
    return only_job(_prepare(prompt, steps, mode, options, measure=False)[1]).plan


def unload() -> None:
    """Free the engine that `generate` and `agenerate` keep; a call still running has it until it ends."""
    _engines.unload()


@contextmanager
def engines_from(load: Callable[[EngineChoice], Any]) -> Iterator[None]:
    """Inside, `generate`, `agenerate` and `load` take engines from `load`; what was kept is kept for after.

    `load` gives an `EngineBase` for a choice: the seam for tests of apps, and for engines of one's own.
    """
    global _engines
    previous, _engines = _engines, EngineCache(load, generate)
    try:
        yield
    finally:
        _engines = previous


_engines = EngineCache(load_engine, generate)


def _renew_lock() -> None:
    """Make a new lock in a forked child, where the parent's thread that holds it is not there."""
    _engines.lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


def _prepare(
    prompt: Prompts,
    steps: int | Sequence[int] | None,
    mode: str | None,
    options: Mapping[str, Any],
    *,
    measure: bool = True,
) -> _Prepared:
    """Return what gives the engine and what is to be said of it, and the jobs: all is checked here.

    measure: whether engines may be loaded to learn what a budget buys.
    """
    budget, reason = options.get("budget_ms"), ""
    if budget is not None:
        steps, mode, options, reason = _within_budget(budget, (prompt, steps, mode), options, measure)
    engine_options, picture_options = split_options(options)
    engines = _engines
    steps = steps if type(steps) is int else values.whole(steps)
    step_count = count_steps(steps, picture_options) if type(steps) is not int else steps
    choice = engines.choose(mode, step_count, engine_options)
    jobs = resolve_call(choice, prompt, steps, picture_options, engine_options.get("commercial", False))
    if reason:
        jobs = tuple(
            replace(job, plan=replace(job.plan, warnings=(*job.plan.warnings, reason))) for job in jobs
        )
    return lambda: engines.engine(choice), jobs


def _prepare_for_thread(
    prompt: Prompts, steps: int | Sequence[int] | None, mode: str | None, options: Mapping[str, Any]
) -> Callable[[], _Prepared]:
    """Return what prepares a call: done already, but for a budget, which may have to measure first."""
    if options.get("budget_ms") is not None:
        return partial(_prepare, prompt, steps, mode, options)
    prepared = _prepare(prompt, steps, mode, options)
    return lambda: prepared


def _within_budget(
    budget: object,
    call: tuple[Prompts, Any, str | None],
    options: Mapping[str, Any],
    measure: bool,
) -> tuple[int, str, dict[str, Any], str]:
    """Return steps, mode and options that fit a budget, and the reason."""
    from fewstep.budget import choose

    choice = choose(budget, call, options, _engines.costs(), load_choice if measure else None)
    return choice.steps, choice.mode, {**options, "vae": choice.vae}, choice.reason
