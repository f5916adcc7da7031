"""Options given as lists → axes, and their values as labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from fewstep import values
from fewstep.errors import RequestError
from fewstep.prompts import Embedding
from fewstep.request.options import OPTIONS

MAX_AXES = 3
MAX_CELLS = 1024
# Blocks, rows, columns: an axis further back in this order lies further across the sheet.
ORDER = (
    "model",
    "mode",
    "prompt",
    *(name for name in OPTIONS if name not in ("model", "seed")),
    "steps",
    "seed",
)
LISTS = (
    "timesteps",
    "loras",
    "control",
    "reference",
    "embeddings",
)  # themselves lists: axes are lists of lists
# Axes that say what is drawn; the others say how.
SUBJECTS = ("prompt", "prompt_2", "negative_prompt", "seed", "width", "height", "image", "mask")

Settings = dict[str, Any]  # axis → value


def split_axes(options: Mapping[str, Any]) -> tuple[dict[str, tuple[Any, ...]], dict[str, Any]]:
    """Return the options that are lists, each with its values, in the order of a sheet; and the others.

    Raises `RequestError` where there is nothing to compare, or more than a sheet shows.
    """
    axes = {
        name: tuple(members) for name in ORDER if name in options and (members := _axis(name, options[name]))
    }
    if not axes:
        raise RequestError("nothing to compare: give a list, such as mode=['turbo', 'lcm'] or steps=[1, 4]")
    if len(axes) > MAX_AXES:
        raise RequestError(
            f"{', '.join(axes)} are lists: a sheet has at most {MAX_AXES} axes; give one value for some"
        )
    cells = 1
    for name, entries in axes.items():
        cells *= len(entries)
        if len({describe(name, value) for value in entries}) < len(entries):
            raise RequestError(f"{name}={values.shown(list(entries))} names a value twice: give each once")
    if cells > MAX_CELLS:
        raise RequestError(f"{cells} pictures: at most {MAX_CELLS} in one comparison")
    return axes, {name: value for name, value in options.items() if name not in axes}


def _axis(name: str, value: Any) -> list[Any] | None:
    """Return the values of an option that is an axis; None for one value."""
    members = values.members(value)
    if name == "count" and members is not None:
        raise RequestError("count= is no axis, each cell is one picture: give seeds, seed=[1, 2, 3]")
    if members is not None and name in LISTS:
        return members if members and all(isinstance(member, list) for member in members) else None
    if members is not None and not members:
        raise RequestError(f"{name}=[] has no values: give some, or leave {name} out")
    return members


def grid(axes: Mapping[str, Sequence[Any]]) -> list[Settings]:
    """Return the settings of all cells, the last axis running fastest."""
    return [dict(zip(axes, combination, strict=True)) for combination in product(*axes.values())]


def describe(name: str, value: Any) -> str:
    """Return an axis's value as text, one for each value."""
    if value is None:
        return "default"
    if isinstance(value, list):
        return " + ".join(_entry(entry) for entry in value) or "none"
    if isinstance(value, Embedding):
        return value.text or "embedding"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, str | Path) and name in ("model", "vae", "accelerator"):
        return _file(value) or "own"
    if isinstance(value, str | int | Path):
        return str(value) or "none"
    return f"{type(value).__name__} {id(value) % 10000:04}"


def agree(settings: Settings, named: Mapping[str, Any]) -> bool:
    """Return whether a cell has these settings."""
    return all(
        name in settings and describe(name, settings[name]) == describe(name, value)
        for name, value in named.items()
    )


def label(name: str, value: Any) -> str:
    """Return an axis's value with the axis's name, for the margins of a sheet."""
    return f"{name} {describe(name, value)}"


def _entry(entry: Any) -> str:
    """Return a LoRA, a guide or a learned word, with its weight where one is given."""
    if isinstance(entry, tuple | list) and entry:
        return f"{_file(entry[0])} {entry[-1]}"
    return _file(entry)


def _file(path: Any) -> str:
    """Return a file's name; of a hub id or a name, all of it."""
    return Path(path).stem if str(path).endswith(".safetensors") else str(path)
