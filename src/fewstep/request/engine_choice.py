"""Which engine serves a call, and what it is to draw: names → model, recipe, weights. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

from fewstep import inspection, modes, values
from fewstep.catalog import addons, licences, mode_weights, runtimes, vaes
from fewstep.catalog.models import Model
from fewstep.catalog.noise import noise_for
from fewstep.errors import RequestError
from fewstep.recipe import Recipe
from fewstep.request import inputs, limits, lists
from fewstep.request.options import OPTIONS, EngineOptions, File, PictureOptions, Prompts, with_defaults
from fewstep.request.resolve import resolve_job
from fewstep.request.schema import EngineKey, Job, Request


class EngineChoice(NamedTuple):
    """Which engine serves a call."""

    key: EngineKey
    model: Model
    recipe: Recipe


def split_options(options: Mapping[str, Any]) -> tuple[EngineOptions, PictureOptions]:
    """Return the options that choose an engine, and those of a call to it."""
    engine = {name: options[name] for name in EngineOptions.__annotations__ if name in options}
    picture = {name: value for name, value in options.items() if name not in engine and name != "budget_ms"}
    return cast(EngineOptions, engine), cast(PictureOptions, picture)


def count_steps(steps: object, options: PictureOptions) -> Any:
    """Return the number of steps, where a list of them or of timesteps says it; the first of several."""
    if steps is not None:
        return (values.members(steps) or [steps])[0]
    levels = values.members(options.get("timesteps"))
    return len(levels) if levels else None


def choose_engine(mode: str | None, steps: int | None, options: EngineOptions) -> EngineChoice:
    """Return the engine for these options, checked as far as names and configuration files tell.

    Raises `RequestError`, `BackendError` or `ModelError`.
    """
    options = with_defaults(options)
    limits.check_engine_names(options)
    model, recipe = _choose_mode(options["model"], values.text(mode), values.whole(steps))
    weights = mode_weights.choose_weights(model, recipe, options["accelerator"])
    weight = OPTIONS["accelerator_weight"].plain(options["accelerator_weight"])
    limits.check_accelerator_weight(weight, recipe, "" if weights is None else weights.attach)
    if options["revision"] != "":
        mode_weights.check_revision(options["revision"], model, weights)
        model = replace(model, revision=options["revision"])
    model = replace(
        model,
        noise=noise_for(model, recipe, weights, options["prediction"], options["accelerator"] != ""),
    )
    vaes.check_vae(options["vae"], model)
    embeddings = inputs.parse_files(options["embeddings"], "embeddings")
    addons.check_embeddings(embeddings, model)
    if options["commercial"]:
        terms = mode_weights.licences_of_mode(model, recipe, weights, embeddings, str(options["vae"]))
        licences.check_commercial(terms)
    completed: EngineOptions = {
        **options,
        "model": str(options["model"]),
        "accelerator": str(options["accelerator"]),
        "accelerator_weight": weight,
        "vae": str(options["vae"]),
        "embeddings": embeddings,
        "revision": model.revision,
        "commercial": False,  # asked at every call; the engine is the same
    }
    only_steps = recipe.steps.high if recipe.steps.low == recipe.steps.high else 0
    return EngineChoice(EngineKey(mode=recipe.mode, steps=only_steps, options=completed), model, recipe)


def resolve_call(
    choice: EngineChoice, prompt: Prompts, steps: Any, options: PictureOptions, commercial: bool
) -> tuple[Job, ...]:
    """Return the jobs of a call, one but for lists of options; given pictures are read, no weights needed.

    Raises `RequestError` or `ModelError`.
    """
    listable = {"steps": steps, **{name: options.get(name) for name in lists.PER_PICTURE}}
    if any(
        v is not None and type(v) not in (int, float) and lists.is_list(n, v) for n, v in listable.items()
    ):
        calls = lists.split_call(prompt, steps, options)
        jobs = [(resolve_call(choice, *call.arguments, commercial)[0], call.places) for call in calls]
        return tuple(replace(job, places=places if len(calls) > 1 else ()) for job, places in jobs)
    job = resolve_job(choice.model, choice.recipe, prompt, steps, options)
    request = job.request
    if request.prompts_2:
        _check_features(["prompt_2"], choice.model)
    if request.loras or request.control or request.reference:
        features = features_of_call(request)
        _check_features(features, choice.model)
        runtimes.choose_runtime(choice.key.options["runtime"], features)
        addons.check_loras(request.loras, choice.model)
        addons.check_guides(*_guide_sources(request))
        if commercial:
            licences.check_commercial(licences_of_call(request))
        sentences = addons.unread_words([source for source, _ in request.loras], choice.key.embeddings)
        if sentences:
            plan = replace(job.plan, warnings=(*job.plan.warnings, *sentences))
            job = replace(job, plan=plan)
    return (replace(job, commercial=True) if commercial else job,)


def features_of_call(request: Request) -> list[str]:
    """Return which of `fewstep.catalog.runtimes.FEATURES` a call uses."""
    return [name for name in runtimes.FEATURES if getattr(request, name)]


def _check_features(features: Sequence[str], model: Model) -> None:
    """Check that calls to a model of this architecture may bring these; raises `RequestError`."""
    for name in features:
        if name not in model.architecture.features:
            raise RequestError(
                f"{name}= is not there for model={model.name!r}, "
                f"which is of {model.architecture.title}: leave it "
                "out, or use a model of SDXL's"
            )


def only_job(jobs: Sequence[Job]) -> Job:
    """Return the job of a call; raises `RequestError` where lists of options make several."""
    if len(jobs) > 1:
        raise RequestError(
            "steps, strength or sizes that differ from picture to picture make several plans: ask for one at "
            "a time, or type generate(...), whose result has them as .plans"
        )
    return jobs[0]


def licences_of_call(request: Request) -> dict[str, str]:
    """Return what a call puts beside an engine's weights → its licence."""
    loras = mode_weights.licences_of_files([source for source, _ in request.loras])
    return loras | addons.licences_of_guides(*_guide_sources(request))


def _guide_sources(request: Request) -> tuple[list[str], list[str]]:
    """Return the sources of ControlNets and of IP-Adapters."""
    return [source for source, _ in request.control], [source for source, _ in request.reference]


def _choose_mode(model: File, mode: str | None, steps: int | None) -> tuple[Model, Recipe]:
    """Return the model, and the recipe of the mode, which a file or folder of the user's may itself tell."""
    described, recipe = modes.choose_mode(model, mode, steps)
    if mode is not None or not described.foreign or recipe.mode != "base":
        return described, recipe
    inspected = inspection.inspect(described.source) if described.local else None
    if inspected is not None and inspected.mode not in ("", recipe.mode):
        return modes.choose_mode(model, inspected.mode, steps)
    if inspected is not None and inspected.modes and not inspected.mode:
        raise RequestError(f"model={described.name!r}: {inspected.notes[-1]}")
    if inspected is not None and inspected.mode:
        doubt = inspected.doubt
    else:
        doubt = inspection.name_doubt(Path(described.name).stem if described.local else described.name)
    return replace(described, doubts=(f"model={described.name!r}: {doubt}",) if doubt else ()), recipe
