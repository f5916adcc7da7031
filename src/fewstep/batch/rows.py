"""`Row`: one line of a job file under the option table's names; text from cells → values of their types."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, TypeAlias, get_args

from fewstep import values
from fewstep.errors import RequestError
from fewstep.request.options import ALIASES, OPTIONS

Notify: TypeAlias = Callable[[str], object]  # takes a sentence, once

OWN_NAMES = ("prompt", "steps", "mode", "id", "file_name")  # beside those of the table
NAMES = (*OWN_NAMES, *OPTIONS)
# Other programs' names: diffusers' are in the table, these are A1111's, and of data sets.
OTHER_NAMES: Mapping[str, str] = {
    "cfg_scale": "guidance", "sampler_name": "sampler", "n_iter": "count", "batch_size": "count",
    "sd_model": "model", "text": "prompt", "caption": "prompt", "denoising_strength": "strength",
}  # fmt: skip
_NO_COLUMNS = ("prompt_embeds", "negative_prompt_embeds", "generator", "control_image", "ip_adapter_image")
# A1111's names of samplers; "Karras" after one is a scheduler.
_SAMPLERS: Mapping[str, str] = {
    "euler": "euler", "euler a": "euler_ancestral", "dpm++ 2m": "dpmpp_2m", "dpm++ sde": "dpmpp_sde",
    "ddim": "ddim", "lcm": "lcm", "tcd": "tcd",
}  # fmt: skip
_LISTS = ("loras", "embeddings", "timesteps", "control", "reference")  # may be text in JSON too
_TRUE, _FALSE = ("true", "yes", "1"), ("false", "no", "0")


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one line asks; nothing of it has been checked but its names."""

    line: int  # in the file, or the place among what was given, from 1
    values: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class BadLine:
    """A line that says nothing that can be done."""

    line: int
    reason: str


Line: TypeAlias = Row | BadLine


def name_columns(names: Collection[Any], keep: Collection[str], notify: Notify) -> dict[str, str]:
    """Return what each given name is called here, those to keep as they are; raises `RequestError`.

    notify: told of other programs' names, which are read as fewstep's.
    """
    columns: dict[str, str] = {}
    for name in names:
        if not isinstance(name, str):
            raise RequestError(f"{name!r:.80} is no name of an option: give text")
        own_name = name if name in NAMES or name in keep else _foreign_name(name)
        if own_name != name:
            notify(f"{name} is read as {own_name}")
        if own_name in columns.values():
            raise RequestError(f"{own_name!r} is there twice: keep one of them")
        columns[name] = own_name
    return columns


def _foreign_name(name: str) -> str:
    """Return the option that another program calls so; raises `RequestError`."""
    aliases = {alias: option for alias, option in ALIASES.items() if alias not in _NO_COLUMNS}
    aliases |= OTHER_NAMES
    if name in aliases:
        return aliases[name]
    matches = get_close_matches(name, [*NAMES, *aliases], n=1)
    hint = (
        f"did you mean {matches[0]}?" if matches else "to take it along into metadata.jsonl, name it in keep"
    )
    raise RequestError(f"{name!r:.80} is not an option: {hint}")


def make_row(
    line: int, columns: Mapping[Any, Any], keep: Collection[str], notify: Notify, *, text: bool = False
) -> Line:
    """Return a row of what a line holds, or why there is none; what is null or empty text is not given.

    text: whether the values come from cells, where all are text.
    """
    try:
        names = name_columns(columns, keep, notify)
        row = {
            own_name: read_text(own_name, columns[name])
            if own_name not in keep and (text or (own_name in _LISTS and isinstance(columns[name], str)))
            else columns[name]
            for name, own_name in names.items()
            if columns[name] is not None and not (text and columns[name] == "")
        }
    except RequestError as error:
        return BadLine(line=line, reason=str(error))
    return Row(line=line, values=row)


def read_text(name: str, text: str) -> Any:
    """Return a value from a cell, `--set` or `--sweep`, of the option's type.

    What is not of that type comes back as it is: the check that follows says what is allowed.
    """
    if name in ("prompt", "id", "file_name", "mode"):
        return text
    if name == "sampler":
        return _SAMPLERS.get(text.lower(), text)
    option_type = int if name == "steps" else OPTIONS[name].type
    kinds = (option_type, *get_args(option_type))
    word = text.strip()
    if text.lstrip().startswith("[") and not {str} & {*kinds}:
        return _read_list(name, word)
    for kind, read in ((int, int), (float, float)):
        if kind in kinds:
            try:
                return read(word)
            except ValueError:
                break
    if bool in kinds:
        return word.lower() in _TRUE if word.lower() in (*_TRUE, *_FALSE) else text
    if name in ("loras", "embeddings"):
        return [split_weight(word)] if name == "loras" else [word]
    if name == "timesteps":
        words = word.replace(",", " ").split()
        return [int(part) if part.isdecimal() else part for part in words]
    return text


def split_weight(text: str) -> str | tuple[str, float]:
    """Return `PATH:WEIGHT` as a pair, a path alone as it is."""
    path, colon, weight = text.rpartition(":")
    try:
        return (path, float(weight)) if colon and path else text
    except ValueError:
        return text


def split_sampler(name: str) -> dict[str, str]:
    """Return A1111's name of a sampler as options: "DPM++ 2M Karras" is a sampler and a scheduler."""
    lowered = name.strip().lower()
    if lowered.endswith(" karras"):
        return {"sampler": _SAMPLERS.get(lowered.removesuffix(" karras"), name), "scheduler": "karras"}
    return {"sampler": _SAMPLERS.get(lowered, name)}


def _read_list(name: str, text: str) -> Any:
    try:
        return parse_json(text)
    except ValueError as error:
        raise RequestError(f"{name}={values.shown(text)} is no JSON list: {error}") from None


def parse_json(text: str) -> Any:
    """Return JSON as plain data; raises `ValueError` for NaN, a name given twice, and what is too deep."""
    try:
        return json.loads(text, object_pairs_hook=_unique_names, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) < len(pairs):
        counted = [name for name, _ in pairs]
        twice = next(name for name in names if counted.count(name) > 1)
        raise ValueError(f"{twice!r:.80} is there twice")
    return names


def _refuse_constant(word: str) -> Any:
    raise ValueError(f"{word} is no number")
