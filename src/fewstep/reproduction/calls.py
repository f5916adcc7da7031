"""The facts of one of our pictures → the keywords of `fewstep.generate` that draw it again."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from fewstep.catalog import runtimes
from fewstep.errors import RequestError
from fewstep.reproduction.places import Places, missing_message
from fewstep.request.facts import keywords_of_facts

PRECISIONS: MappingProxyType[str, str] = MappingProxyType(
    {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
)
_FILES = ("model", "accelerator", "vae")  # options that are one file, folder or name
_EMBEDDED_PROMPT = "<embedding "  # how a request records an `Embedding`


def call_of_facts(facts: Mapping[str, Any], places: Places, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keywords for a picture; `options` are the caller's own, which count first.

    Raises `RequestError` that names everything that is missing, and where it was looked for.
    """
    missing: list[str] = []
    call = keywords_of_facts(facts) | _scalars(facts)
    call |= _weights(facts, places, options, missing)
    call |= _pictures(facts, places, options, missing)
    call |= options
    missing += _missing_words(call)
    if missing:
        raise RequestError(missing_message(places.path, missing))
    return call


def _scalars(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what depends on other facts: levels, strength, place and runtime."""
    call: dict[str, Any] = {}
    if not facts.get("timesteps") and "image" in facts.get("sources", ()):
        call["strength"] = facts.get("strength")
    if facts.get("precision") in PRECISIONS:
        call["precision"] = PRECISIONS[facts["precision"]]
    if facts.get("runtime") in runtimes.NAMES:
        call["runtime"] = facts["runtime"]
    return call


def _missing_words(call: Mapping[str, Any]) -> list[str]:
    """Return what a call cannot do without, and the file does not say."""
    lacking = [
        f"{name} is not in the file: type {name}=..."
        for name in ("mode", "steps", "seed")
        if name not in call
    ]
    if "prompt" not in call:
        lacking.append("its prompt was left out when it was saved: type prompt=...")
    for name in ("prompt", "negative_prompt"):
        if isinstance(call.get(name), str) and _EMBEDDED_PROMPT in call[name]:
            lacking.append(f"{name} was an Embedding, {call[name]!r:.80}: give it as {name}=")
    return lacking


def _weights(
    facts: Mapping[str, Any], places: Places, options: Mapping[str, Any], missing: list[str]
) -> dict[str, Any]:
    """Return model, LoRAs and the like where they are now."""
    call: dict[str, Any] = {}
    for name in _FILES:
        if facts.get(name) and name not in options:
            call[name] = places.weights(name, facts[name], facts, missing)
    if facts.get("loras") and "loras" not in options:
        call["loras"] = [
            (places.weights("loras", source, facts, missing), weight) for source, weight in facts["loras"]
        ]
    if facts.get("embeddings") and "embeddings" not in options:
        call["embeddings"] = [
            places.weights("embeddings", source, facts, missing) for source in facts["embeddings"]
        ]
    revision = facts.get("revision")
    if revision and _of_model(facts) and "model" not in options:
        call["revision"] = revision
    return call


def _of_model(facts: Mapping[str, Any]) -> bool:
    """Return whether the revision is the model's own, and no checkpoint's that a mode put in its place."""
    entries = (entry for entry in facts.get("weights", ()) if entry.get("option") == "model")
    return all(entry.get("source") == facts.get("model") for entry in entries)


def _pictures(
    facts: Mapping[str, Any], places: Places, options: Mapping[str, Any], missing: list[str]
) -> dict[str, Any]:
    """Return image, mask, control and reference: from the file itself, or from where they were."""
    call: dict[str, Any] = {}
    for name in ("image", "mask"):
        if name in facts.get("sources", ()) and name not in options:
            call[name] = places.picture(name, 0, facts, missing)
    for name in ("control", "reference"):
        if facts.get(name) and name not in options:
            call[name] = [
                (
                    places.weights(name, source, facts, missing),
                    places.picture(name, index, facts, missing),
                    scale,
                )
                for index, (source, scale) in enumerate(facts[name])
            ]
    return call
