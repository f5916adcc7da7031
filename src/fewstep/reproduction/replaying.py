"""`replay`: a saved picture is drawn again from its own file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep import api
from fewstep.errors import RequestError
from fewstep.images import open_image
from fewstep.metadata import Record, read_record
from fewstep.reproduction.calls import call_of_facts
from fewstep.reproduction.comparison import Compared, compare_pictures
from fewstep.reproduction.foreign import call_of_foreign
from fewstep.reproduction.places import Places
from fewstep.request.engine_choice import split_options
from fewstep.request.facts import check_facts
from fewstep.result import Result

if TYPE_CHECKING:
    from fewstep.engine_base import EngineBase


MAX_BATCH = 16  # pictures that are drawn together, to have one of them again


@dataclass(frozen=True, kw_only=True)
class Replay(Result):
    """A picture drawn again: a `Result`, and how it compares with the saved one."""

    path: Path  # of the saved one
    compared: Compared

    def __repr__(self) -> str:
        return f"<fewstep.Replay of {str(self.path)!r}: {self.compared}>"


def replay(
    path: str | os.PathLike[str],
    *,
    search: Sequence[str | os.PathLike[str]] = (),
    engine: EngineBase[Any] | None = None,
    **options: Any,
) -> Replay:
    """Draw a saved picture again from its own file, and compare the two.

    search: folders to look in for weights and pictures that are neither where they were nor beside the file.
    engine: what to draw with, in place of one loaded as the file says.
    options: of `fewstep.generate`, in place of the file's: model=, image=, prompt= where it has none.

    `compared` says whether it came out the same, and what of its making is not as it was. Raises
    `RequestError` for what says nothing, and where something is missing: it names all, with hashes.
    """
    record = read_record(path)
    if not record.facts:
        advice = ""
        if find_spec("sd_parsers") is None:
            advice = (
                "; pictures of ComfyUI, InvokeAI, NovelAI and Fooocus need pip install 'fewstep[metadata]'"
            )
        raise RequestError(f"{str(path)!r} does not say how it was made{advice}")
    places = Places(path=Path(path), embedded=record.embedded, search=tuple(map(Path, search)))
    doubts: tuple[str, ...] = ()
    if record.ours:
        check_facts(record.facts, path)
        call = call_of_facts(record.facts, places, options) | _device(record, options)
    else:
        call, doubts = call_of_foreign(record.facts, places, options)
    call = {name: value for name, value in call.items() if value is not None}
    saved = open_image(path, "picture").image
    result = _draw(call, engine)
    compared = compare_pictures(result[0], saved, record, result.facts(0), doubts)
    row, pictures = _batch(record)
    if not compared.same_bits and pictures > 1:  # bits may depend on how many were drawn together
        together = _draw(_as_batch(call, pictures), engine).only([row])
        again = compare_pictures(together[0], saved, record, together.facts(0), doubts)
        if again.same_bits:
            result, compared = together, again
    return Replay(
        **{field.name: getattr(result, field.name) for field in fields(Result)},
        path=Path(path),
        compared=compared,
    )


def _batch(record: Record) -> tuple[int, int]:
    """Return a picture's row in the batch that it was drawn in, and that one's pictures; 1 where alone."""
    batch, reproducible = record.facts.get("batch", {}), record.facts.get("reproducible", False)
    row, pictures = batch.get("row", 0), batch.get("pictures", 1)
    return (row, pictures) if not reproducible and 0 <= row < pictures <= MAX_BATCH else (0, 1)


def _as_batch(call: dict[str, Any], pictures: int) -> dict[str, Any]:
    """Return the call for so many of the same picture."""
    return {**call, "prompt": [call["prompt"]] * pictures, "seed": [call.get("seed")] * pictures}


def _draw(call: dict[str, Any], engine: EngineBase[Any] | None) -> Result:
    if engine is None:
        return api.generate(**call)
    picture_options: dict[str, Any] = {**split_options(call)[1]}
    picture_options.pop("mode", None)  # the engine's own
    return engine.generate(**picture_options)


def _device(record: Record, options: dict[str, Any]) -> dict[str, Any]:
    """Return the device that the picture was drawn on, where this machine has it."""
    kind = str(record.facts.get("device", "")).partition(":")[0]
    if "device" in options:
        return {}
    if kind == "cpu":
        return {"device": "cpu"}
    import torch

    if (kind == "cuda" and torch.cuda.is_available()) or (
        kind == "mps" and torch.backends.mps.is_available()
    ):
        return {"device": kind}
    return {}
