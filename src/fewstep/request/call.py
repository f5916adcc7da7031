"""A job → the keywords of `fewstep.generate` that ask for it again, and where its pictures came from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fewstep.catalog.models import describe_model
from fewstep.images import FACTS_KEY
from fewstep.prompts import Embedding, Prompt
from fewstep.request.options import OPTIONS
from fewstep.request.schema import EngineKey, Job, fingerprint

MAX_PARENTS = 32  # of one picture, the nearest first
_PARENT_FACTS = ("model", "mode", "steps", "strength", "seeds", "prompts")
# Fields of a request that are options by the same name.
FIELDS = (
    "steps", "mode", "long_prompt", "guidance", "guidance_rescale", "width", "height", "scheduler", "sampler",
    "eta", "only_masked", "padding", "tiles", "reproducible",
)  # fmt: skip
_PER_PICTURE = ("prompt", "prompt_2", "seed", "image", "mask", "strength", "steps")


def call_keywords(jobs: Sequence[Job], key: EngineKey) -> dict[str, Any]:
    """Return the keywords for pictures of one engine; where they differ, lists with a value per picture."""
    pictures = [_keywords_of_picture(job, i) for job in jobs for i in range(len(job.prompts))]
    call = dict(pictures[0])
    for name in _PER_PICTURE if len(pictures) > 1 else ():
        listed = [picture.get(name) for picture in pictures]
        if name == "prompt" or any(value is not listed[0] and value != listed[0] for value in listed):
            call[name] = listed
    engine: dict[str, Any] = {**key.options, "commercial": jobs[0].commercial}
    revision = engine["revision"]
    if revision and revision == describe_model(key.file("model")).revision:  # nobody has to say it
        engine["revision"] = ""
    call |= {name: list(value) if isinstance(value, tuple) else value for name, value in engine.items()}
    return {name: value for name, value in call.items() if not is_default(name, value)}


def _keywords_of_picture(job: Job, index: int) -> dict[str, Any]:
    """Return what a call says of one picture."""
    request, pictures = job.request, job.given_pictures(index)
    call: dict[str, Any] = {"prompt": _text(job.prompts[index])}
    call |= {name: getattr(request, name) for name in FIELDS}
    call |= {"negative_prompt": _text(job.negative), "seed": request.seeds[index]}
    if request.prompts_2:
        call["prompt_2"] = request.prompts_2[index]
    call |= {name: pictures[name][0] for name in ("image", "mask") if name in pictures}
    if request.timesteps:
        call["timesteps"] = list(request.timesteps)
    elif job.images:
        call["strength"] = request.strength
    call["loras"] = list(request.loras)
    for name in ("control", "reference"):
        scaled = zip(getattr(request, name), pictures.get(name, ()), strict=True)
        call[name] = [(source, picture, scale) for (source, scale), picture in scaled]
    return call


def _text(prompt: Prompt | Embedding) -> str | Embedding:
    return prompt if isinstance(prompt, Embedding) else prompt.first


def is_default(name: str, value: Any) -> bool:
    """Return whether a call that leaves this option out means the same."""
    default = OPTIONS[name].default if name in OPTIONS else None
    return value is None or value == ([] if default == () else default)


def parent_facts(job: Job, index: int = 0) -> list[dict[str, Any]]:
    """Return how the picture that this one started from was made, and those before, the nearest first."""
    if not job.images:
        return []
    parent = job.parents[index] if job.parents else None
    facts = _facts_in(job.images[index].info) if parent is None else parent.facts(weights=False)
    if not facts:
        return []
    picture = job.images[index] if parent is None else parent.images[0]
    nearest = {name: facts[name] for name in _PARENT_FACTS if name in facts}
    older = facts.get("parents")
    return [{**nearest, "sha256": fingerprint(picture)}, *(older if isinstance(older, list) else [])][
        :MAX_PARENTS
    ]


def _facts_in(info: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the facts that a picture of ours carries; {} for others'."""
    text = info.get(FACTS_KEY)
    try:
        facts = json.loads(text) if isinstance(text, str) else {}
    except (ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) else {}
