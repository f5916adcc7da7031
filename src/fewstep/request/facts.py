"""The facts that a picture's file has → the keywords of `fewstep.generate`. The file may be anybody's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from fewstep.errors import RequestError
from fewstep.request.call import FIELDS, is_default
from fewstep.request.options import EngineOptions


class _Weights(BaseModel):
    option: str
    source: str
    files: dict[str, str]


class _Facts(BaseModel):
    """The shape of the facts that is looked into; `fewstep.generate` checks what is passed on to it."""

    model_config = ConfigDict(extra="allow", strict=True)

    prompts: list[str] = []
    prompts_2: list[str] = []
    negative_prompt: str = ""
    seeds: list[int] = []
    model: str
    accelerator: str = ""
    vae: str = ""
    embeddings: list[str] = []
    loras: list[tuple[str, float]] = []
    control: list[tuple[str, float]] = []
    reference: list[tuple[str, float]] = []
    sources: dict[str, list[str]] = {}
    pictures: dict[str, list[str]] = {}
    weights: list[_Weights] = []
    versions: dict[str, str] = {}
    pixels: str = ""
    strength: float = 1.0
    batch: dict[str, int] = {}
    reproducible: bool = False
    revision: str = ""


def check_facts(facts: Mapping[str, Any], path: object) -> None:
    """Check that facts have the shape of ours; raises `RequestError`."""
    try:
        _Facts.model_validate_json(json.dumps(facts))  # from JSON a list is a tuple
    except ValidationError as error:
        place = ".".join(map(str, error.errors()[0]["loc"]))
        raise RequestError(
            f"{str(path)!r} does not say how it was made: {place} is of another kind"
        ) from None


def keywords_of_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keywords for the picture that these facts are of, but for pictures given to it."""
    names = (*FIELDS, "negative_prompt", *EngineOptions.__annotations__)
    call = {name: facts[name] for name in names if name in facts}
    singles = {"prompt": "prompts", "prompt_2": "prompts_2", "seed": "seeds"}
    call |= {name: facts[field][0] for name, field in singles.items() if facts.get(field)}
    call |= {"timesteps": facts.get("timesteps") or None}
    call["loras"] = [(source, weight) for source, weight in facts.get("loras", ())]
    for name in ("device", "precision", "runtime", "revision"):  # as it was run; it may run elsewhere
        call.pop(name, None)
    return {name: value for name, value in call.items() if not is_default(name, value)}
