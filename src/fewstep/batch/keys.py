"""What a picture is known by: a hash of all that it is made from. Seeds of lines that have none."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from fewstep.catalog import hub, mode_weights
from fewstep.catalog.hub import existing_path
from fewstep.request import Job
from fewstep.request.engine_choice import EngineChoice

DRAWING = 1  # version of the drawing code: raised when a release draws other pictures for the same request
KEY_DIGITS = 32  # hex digits of a key: two of a billion pictures agree by chance once in 10**20
SHORT_DIGITS = 16  # of them in a file's name

_PLACES = ("device", "offload", "commercial")  # where, or whether, a picture is drawn: not what
_LISTED = ("prompts", "prompts_2", "seeds")  # of a request, one for each picture
_SAMPLES, _BLOCK = 64, 4096  # of a weights file: blocks that are read, and their bytes


def digest_of(data: Any) -> str:
    """Return a hash of plain data: equal data, equal digits."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_DIGITS]


def describe_engine(choice: EngineChoice) -> dict[str, Any]:
    """Return what of an engine changes its pictures: options, and which weights these are."""
    options: dict[str, Any] = dict(choice.key.options)
    weights = mode_weights.choose_weights(choice.model, choice.recipe, options["accelerator"])
    files = [choice.model.source, options["vae"], *options["embeddings"]]
    files += [] if weights is None else [weights.source]
    return {
        "mode": choice.key.mode,
        "steps": choice.key.steps,
        "options": {name: value for name, value in options.items() if name not in _PLACES},
        "weights": [identify_weights(str(file), choice.model.revision) for file in files],
        "drawing": DRAWING,
    }


def describe_call(job: Job, engine: Mapping[str, Any]) -> dict[str, Any]:
    """Return all that a picture is made from but its prompt and seed, as plain data."""
    request = job.request.model_dump(mode="json")
    guides = (*job.request.loras, *job.request.control, *job.request.reference)
    return {
        "engine": engine,
        "request": {name: value for name, value in request.items() if name not in _LISTED},
        "sources": job.source_hashes(),
        "addons": [identify_weights(source) for source, _ in guides],
    }


def describe_prompt(job: Job) -> list[Any]:
    """Return what the only picture of a job is told."""
    return [list(job.request.prompts), list(job.request.prompts_2)]


def derive_seed(content: str, repeat: int | str) -> int:
    """Return the seed of a line without one, from what it asks: 32 bits.

    repeat: how many lines before it ask the same, so that equal lines are several pictures; or its id.
    """
    return int.from_bytes(hashlib.sha256(f"{content} {repeat}".encode()).digest()[:4])


def identify_weights(source: str, revision: str = "") -> str:
    """Return what tells a model's weights from others: digits of its files, or its commit on the hub.

    "" where neither is known before it is loaded.
    """
    path = existing_path(source) if source else None
    if path is None:
        return hub.known_revision(source, revision) if source and hub.is_hub_id(source) else ""
    files = (
        [path]
        if path.is_file()
        else sorted(p for p in path.rglob("*") if p.suffix in (".safetensors", ".json"))
    )
    digest = hashlib.sha256()
    for file in files:
        status = file.stat()
        name = "" if path == file else file.relative_to(path).as_posix()
        digest.update(f"{name} {_fingerprint(file, status.st_size, status.st_mtime_ns)}\n".encode())
    return digest.hexdigest()[:KEY_DIGITS]


@lru_cache(maxsize=4096)
def _fingerprint(file: Path, size: int, changed: int) -> str:
    """Return a hash of a file's size, and of blocks from all over it: a fine-tune changes every one."""
    digest = hashlib.sha256(str(size).encode())
    with file.open("rb") as data:
        digest.update(data.read(16 * _BLOCK))  # the names and places of its tensors
        for sample in range(1, _SAMPLES + 1):
            data.seek(max(0, size - _BLOCK) * sample // _SAMPLES)
            digest.update(data.read(_BLOCK))
    return digest.hexdigest()
