"""Lines of A1111's "Prompts from file": `--prompt "a fox" --steps 4 --seed 7 --sampler_name LCM`.

Names as in that program's scripts/prompts_from_file.py, or fewstep's own.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterator
from typing import Any

from fewstep.batch.rows import NAMES, BadLine, Line, Notify, Row, name_columns, read_text, split_sampler
from fewstep.errors import RequestError

# What that program takes and fewstep does not do.
_FOREIGN = (
    "outpath_samples", "outpath_grids", "prompt_for_display", "styles", "seed_resize_from_w",
    "seed_resize_from_h", "sampler_index", "subseed", "subseed_strength", "restore_faces", "tiling",
    "do_not_save_samples", "do_not_save_grid",
)  # fmt: skip
_RANDOM = -1  # as a seed: that program draws one


def option_line(line: int, text: str, keep: Collection[str], notify: Notify) -> Line:
    """Return the row of a line of options, or why there is none."""
    try:
        return Row(line=line, values=_read_options(text, keep, notify))
    except (RequestError, ValueError) as error:  # of shlex: no closing quotation
        return BadLine(line=line, reason=str(error))


def _read_options(text: str, keep: Collection[str], notify: Notify) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name, value in _pairs(shlex.split(text)):
        if name in _FOREIGN:
            raise RequestError(f"--{name} is A1111's, and fewstep has nothing like it: leave it out")
        own_name = name_columns([name if name in keep else name.replace("-", "_")], keep, notify).popitem()[1]
        if own_name == "sampler":
            row |= split_sampler(value)
            continue
        number = value if own_name in keep else read_text(own_name, value)
        if own_name == "count":  # batch_size and n_iter multiply
            number = row.get("count", 1) * number if isinstance(number, int) else number
        elif own_name in row:
            raise RequestError(f"--{name} is there twice: keep one of them")
        if own_name == "seed" and number == _RANDOM:
            notify("seed -1 is read as no seed: each such line gets its own")
            continue
        row[own_name] = number
    if "prompt" not in row:
        raise RequestError('it has no --prompt: write --prompt "a fox"')
    return row


def _pairs(words: list[str]) -> Iterator[tuple[str, str]]:
    """Yield names and values; a prompt may be several words without quotes, as that program has it."""
    place = 0
    while place < len(words):
        word, place = words[place], place + 1
        if not word.startswith("--"):
            raise RequestError(f"{word!r:.80} belongs to no option: put a prompt in quotes")
        name, equals, value = word[2:].partition("=")
        if not equals:
            if place == len(words):
                raise RequestError(f"--{name:.80} has no value")
            value, place = words[place], place + 1
            if name.replace("-", "_") in ("prompt", "negative_prompt") or name not in NAMES:
                while place < len(words) and not words[place].startswith("--"):
                    value, place = f"{value} {words[place]}", place + 1
        yield name, value
