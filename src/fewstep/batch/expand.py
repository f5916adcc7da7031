"""One line → the pictures it asks for: options set for all, sweeps, dynamic prompts, `count`."""

from __future__ import annotations

import hashlib
import itertools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fewstep import values
from fewstep.batch.rows import parse_json, read_text
from fewstep.errors import FewstepError, RequestError, describe_error
from fewstep.request.schema import MAX_PICTURES

MAX_PROMPTS = 10_000  # that one line may make


def expand_row(
    row: Mapping[str, Any],
    overrides: Mapping[str, Any],
    sweep: Mapping[str, Sequence[Any]],
    prompts: PromptMaker | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield the options of each picture, `seed` counted up and `count` gone; raises `RequestError`.

    The last sweep changes fastest, then the prompt, then the seed.
    """
    row = {**row, **overrides}
    for combination in itertools.product(*sweep.values()):
        swept = {**row, **dict(zip(sweep, combination, strict=True))}
        for number, prompt in enumerate([swept.get("prompt")] if prompts is None else prompts.make(swept)):
            options = {**swept, "prompt": prompt}
            if prompts is not None and number and type(options.get("seed")) is int:
                options["seed"] += number * _count(options)
            yield from _count_up(options)


def _count_up(options: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield `count` pictures of one prompt: picture i has seed + i, as in `fewstep.generate`."""
    count = _count(options)
    options = {name: value for name, value in options.items() if name != "count"}
    if not isinstance(options.get("prompt"), str) and count > 1:
        raise RequestError(
            f"prompt={values.shown(options.get('prompt'))}: give a string; a line is one prompt"
        )
    seed = values.whole(options.get("seed"))
    listed = values.members(options.get("seed"))
    if listed is not None and len(listed) != count:
        raise RequestError(f"seed lists {len(listed)} seeds for {count} pictures: give one seed, or {count}")
    for number in range(count):
        if listed is not None:
            yield {**options, "seed": listed[number]}
        elif type(seed) is int:
            yield {**options, "seed": seed + number}
        else:
            yield dict(options)


def _count(options: Mapping[str, Any]) -> int:
    count = values.whole(options.get("count", 1))
    if type(count) is not int or not 1 <= count <= MAX_PICTURES:
        raise RequestError(
            f"count={values.shown(options['count'])}: give a whole number from 1 to {MAX_PICTURES}"
        )
    return count


class PromptMaker:
    """Makes prompts from `{a|b}`, `{2$$a|b}` and `__wildcard__`, the same ones every time.

    The syntax is that of sd-dynamic-prompts, read by the library `dynamicprompts` (fewstep[dynamic]).
    """

    def __init__(self, count: int | str, wildcards: str | Path = ""):
        """count: prompts that a line makes, drawn by its seed and words; "all": every combination."""
        try:
            from dynamicprompts.generators import CombinatorialPromptGenerator, RandomPromptGenerator
            from dynamicprompts.wildcards import WildcardManager
        except ModuleNotFoundError as error:
            raise FewstepError(
                f"dynamic prompts need {error.name}: pip install 'fewstep[dynamic]'"
            ) from error
        if wildcards and not Path(wildcards).is_dir():
            raise RequestError(f"wildcards={str(wildcards)!r} is no folder")
        self._count = count
        manager = WildcardManager(Path(wildcards) if wildcards else None)
        self._all = CombinatorialPromptGenerator(manager) if count == "all" else None
        self._random: Any = RandomPromptGenerator
        self._manager = manager

    def make(self, options: Mapping[str, Any]) -> list[str]:
        """Return the prompts of a line; raises `RequestError` for bad syntax, and for too many."""
        template = options.get("prompt")
        if not isinstance(template, str):
            raise RequestError(f"prompt={values.shown(template)}: give a string")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the library's parser has deprecated its own names
                prompts = self._generate(template, options)
        except Exception as error:  # the library's own, and those of its parser
            raise RequestError(f"prompt={values.shown(template)}: {describe_error(error)}") from error
        if len(prompts) > MAX_PROMPTS:
            raise RequestError(f"prompt={values.shown(template)} makes over {MAX_PROMPTS} prompts")
        return [str(prompt) for prompt in prompts]

    def _generate(self, template: str, options: Mapping[str, Any]) -> list[Any]:
        """Return every combination, or as many as are asked for, drawn by what the line says."""
        if self._all is not None:
            every: list[Any] = self._all.generate(template, max_prompts=MAX_PROMPTS + 1)
            return every
        words = f"{template}\n{options.get('seed', '')}\n{options.get('id', '')}"
        seed = int.from_bytes(hashlib.sha256(words.encode()).digest()[:8])
        drawn: list[Any] = self._random(self._manager, seed=seed).generate(template, num_images=self._count)
        return drawn


def read_assignment(text: str) -> tuple[str, Any]:
    """Return the option and the value of `steps=4`, as `--set` has it; raises `RequestError`."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise RequestError(f"{text!r}: write NAME=VALUE, such as steps=4")
    return name, _read_value(name, value)


def read_sweep(text: str) -> tuple[str, list[Any]]:
    """Return the option and the values of `seed=1..8`, `mode=lcm,turbo` or `prompt=["a, b", "c"]`."""
    name, equals, value = text.partition("=")
    if not equals or not name or not value:
        raise RequestError(f"{text!r}: write NAME=VALUES, such as seed=1..8 or mode=lcm,turbo")
    if value.startswith("["):
        try:
            listed = parse_json(value)
        except ValueError as error:
            raise RequestError(f"{text!r} is no JSON list: {error}") from None
        if not isinstance(listed, list):
            raise RequestError(f"{text!r} is no JSON list")
        return name, listed
    low, dots, high = value.partition("..")
    if dots and low.strip().isdecimal() and high.strip().isdecimal():
        first, last = int(low), int(high)
        if not first <= last < first + MAX_PROMPTS:
            raise RequestError(f"{text!r}: give a range upwards, of at most {MAX_PROMPTS}")
        return name, list(range(first, last + 1))
    return name, [_read_value(name, word) for word in value.split(",")]


def _read_value(name: str, value: str) -> Any:
    try:
        return read_text(name, value)
    except KeyError:
        return value  # `Settings` says that there is no such option
