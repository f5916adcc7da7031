"""Lists of options: a call in which pictures differ in image, mask, strength or steps → calls in which not.

The rule: a list has one value for each picture. All lists of a call (prompt, image, mask, strength, steps)
are equally long; what is given once, or in a list of one, is the same for all. `count` then draws each so
many times, and picture i uses seed + i. Axes, every value with every other, are `fewstep.compare`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

from fewstep import values
from fewstep.errors import RequestError
from fewstep.prompts import Embedding
from fewstep.request.options import PictureOptions
from fewstep.request.pictures import Given, open_given
from fewstep.request.resolve import checked_count, picture_seeds

PER_PICTURE = ("image", "mask", "strength")  # and steps
_ONE_PICTURE = (str, bytes, bytearray, memoryview)  # sequences that are one


class PartialCall(NamedTuple):
    """A call of those pictures that are drawn together."""

    prompts: list[Any]
    steps: Any
    options: PictureOptions
    places: tuple[int, ...]  # of its pictures in the whole call

    @property
    def arguments(self) -> tuple[Any, Any, PictureOptions]:
        """What comes before, in the order of a call."""
        return self[:3]


def is_list(name: str, value: Any) -> bool:
    """Return whether this option was given for each picture; a `Result` is a list of its pictures."""
    if name in ("image", "mask"):
        return isinstance(value, Sequence) and not isinstance(value, _ONE_PICTURE)
    return values.members(value) is not None


def split_call(prompt: Any, steps: Any, options: PictureOptions) -> list[PartialCall]:
    """Return the calls that draw pictures of like steps, strength and size together.

    Raises `RequestError` where lists are not equally long.
    """
    columns = _columns(prompt, steps, options)
    entries = _entries(columns)
    count = checked_count(options.get("count", 1))
    seeds = picture_seeds(options.get("seed"), entries * count)
    rows = [{name: column[i % len(column)] for name, column in columns.items()} for i in range(entries)]
    groups: dict[str, list[int]] = {}
    for picture in range(entries * count):
        row = rows[picture // count]
        image, mask = row.get("image"), row.get("mask")
        size = None if image is None else image.images[0].size
        # Each masked area has a canvas of its own.
        area = id(mask) if options.get("only_masked") else None
        groups.setdefault(repr((row.get("steps"), row.get("strength"), size, area)), []).append(picture)
    return [
        _partial_call([rows[i // count] for i in group], [seeds[i] for i in group], options, tuple(group))
        for group in groups.values()
    ]


def _columns(prompt: Any, steps: Any, options: PictureOptions) -> dict[str, list[Any]]:
    """Return what may be listed, each as a list; pictures opened, a `Result` as its pictures."""
    prompts = None if isinstance(prompt, str | Embedding) else values.members(prompt)
    columns: dict[str, list[Any]] = {"prompt": [prompt] if prompts is None else prompts}
    single_values = {"steps": steps, "prompt_2": options.get("prompt_2"), "strength": options.get("strength")}
    for name, value in single_values.items():
        if value is not None:
            members = values.members(value)
            columns[name] = [value] if members is None else members
            for member in columns[name]:
                if values.members(member) is not None:
                    kind = "a whole number" if name == "steps" else "one value"
                    raise RequestError(f"{name}={values.shown(member)}: give {kind} for each picture")
    for name in ("image", "mask"):
        value = cast(Mapping[str, Any], options).get(name)
        if value is not None:
            columns[name] = _open_all(value, name)
    return columns


def _open_all(value: Any, name: str) -> list[Given]:
    """Return each picture of a list, opened."""
    opened: list[Given] = []
    for member in value if is_list(name, value) and not _is_result(value) else [value]:
        if _is_result(member):
            opened += [open_given(member.images[i], name, member.only([i])) for i in range(len(member))]
        else:
            opened.append(open_given(member, name))
    return opened


def _is_result(value: Any) -> bool:
    """Return whether it is a `Result`, which lies above and is not imported."""
    return hasattr(value, "only") and hasattr(value, "images")


def _entries(columns: Mapping[str, Sequence[Any]]) -> int:
    """Return how long the lists are; raises `RequestError` where one is empty, or not like the longest."""
    longest = max(columns, key=lambda name: len(columns[name]))
    entries = len(columns[longest])
    for name, column in columns.items():
        if not column:
            raise RequestError(f"{name} is an empty list: give a value for each picture, or one for all")
        if len(column) not in (1, entries):
            raise RequestError(
                f"{name} lists {len(column)} and {longest} lists {entries}: a list has one value for each "
                "picture, so give as many, or one for all"
            )
    return entries


def _partial_call(
    rows: Sequence[Mapping[str, Any]], seeds: Sequence[int], options: PictureOptions, places: tuple[int, ...]
) -> PartialCall:
    """Return the call of these pictures."""
    first = rows[0]
    joined: dict[str, Any] = {**options, "seed": [*seeds], "count": 1}
    if "strength" in first:
        joined["strength"] = first["strength"]
    if "prompt_2" in first:
        joined["prompt_2"] = [row["prompt_2"] for row in rows]
    for name in ("image", "mask"):
        if name in first:
            joined[name] = _joined([row[name] for row in rows])
    return PartialCall(
        [row["prompt"] for row in rows], first.get("steps"), cast(PictureOptions, joined), places
    )


def _joined(pictures: Sequence[Given]) -> Given:
    """Return the pictures of an option, one for each that is drawn."""
    parents = tuple(picture.parents[0] if picture.parents else None for picture in pictures)
    return Given(
        images=tuple(picture.images[0] for picture in pictures),
        notes=tuple(note for picture in pictures for note in picture.notes),
        parents=parents if any(parent is not None for parent in parents) else (),
    )
