"""`Settings`: how a batch is run, checked; `BatchOptions` are the same as keywords of `fewstep.batch.run`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

from fewstep import values
from fewstep.batch import names
from fewstep.batch.rows import NAMES
from fewstep.errors import RequestError

READ_AS = ("", "jsonl", "json", "csv", "txt")
MAX_BATCH = 256  # pictures of one call
STREAM_WINDOW = 1024  # lines of a stream that are ordered and drawn together
_NOT_SWEPT = ("id", "file_name")


class BatchOptions(TypedDict, total=False):
    """Keywords of `fewstep.batch.run` and `plan`; `Settings` says what each is."""

    name: str
    set: Mapping[str, Any]
    sweep: Mapping[str, Sequence[Any]]
    keep: Sequence[str]
    read_as: str
    dynamic: int | Literal["all"]
    wildcards: str | Path
    batch: int
    window: int
    shard: tuple[int, int]
    strict: bool
    tars: int
    quality: int
    sheet: str | Path


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How jobs become pictures. What changes which pictures are drawn together is no matter of chance."""

    name: str = "{id}.png"  # of a picture's file; `fewstep.batch.names.FIELDS` may stand in it
    set: Mapping[str, Any] = field(default_factory=dict)  # options of every line, over what it says
    sweep: Mapping[str, Sequence[Any]] = field(default_factory=dict)  # each line once for each value
    keep: Sequence[str] = ()  # columns that are no options, taken along into metadata.jsonl
    read_as: str = ""  # jsonl, json, csv or txt, where the file's ending does not say it
    dynamic: int | Literal["all"] = (
        0  # prompts made from a line's `{a|b}` and `__wildcard__`; 0: they are text
    )
    wildcards: str | Path = ""  # folder of wildcards
    batch: int = 0  # pictures of one call; 0: as many as have 16 times 512 x 512 pixels, at most 16
    window: int = 0  # lines ordered and drawn together; 0: all of a file, STREAM_WINDOW of a stream
    shard: tuple[int, int] = (1, 1)  # (i, n): the i-th of n runners
    strict: bool = False  # the first line that cannot be done ends it
    tars: int = 0  # pictures of a webdataset shard; 0: a folder of pictures
    quality: int = 0  # of JPEG and WebP, from 1 to 100; 0: as `Result.save` has it
    sheet: str | Path = ""  # contact sheet to write, .png or .jpg, beside the output folder

    def __post_init__(self) -> None:
        for name, low, high in (
            ("batch", 0, MAX_BATCH), ("window", 0, 10**9), ("tars", 0, 10**6), ("quality", 0, 100),
        ):  # fmt: skip
            number = getattr(self, name)
            if type(number) is not int or not low <= number <= high:
                raise RequestError(f"{name}={values.shown(number)}: give a whole number from {low} to {high}")
        if self.read_as not in READ_AS:
            raise RequestError(f"read_as={self.read_as!r}: choose one of {', '.join(READ_AS[1:])}")
        if self.dynamic != "all" and (type(self.dynamic) is not int or not 0 <= self.dynamic <= 10**6):
            raise RequestError(f"dynamic={self.dynamic!r}: give how many prompts each line makes, or 'all'")
        index, count = self.shard
        if not 1 <= index <= count <= 10_000:
            raise RequestError(f"shard={index}/{count}: give i/n, with i from 1 to n")
        for option in (*self.set, *self.sweep):
            if option not in NAMES or option in _NOT_SWEPT:
                matches = get_close_matches(option, NAMES, n=1)
                hint = f"did you mean {matches[0]}?" if matches else "`fewstep generate --help` lists them"
                raise RequestError(f"{option!r} is not an option that can be set or swept: {hint}")
        for option, swept in self.sweep.items():
            if option in self.set or values.members(swept) in (None, []):
                raise RequestError(f"sweep of {option}: give a list of values, and do not set it as well")
        for column in self.keep:
            if column in NAMES:
                raise RequestError(f"keep={column!r}: that is an option, which is kept anyway")
        names.check_template(self.name, self.keep)

    @property
    def runner(self) -> str:
        """Return what the files of this runner are called by."""
        return f"{self.shard[0]}-of-{self.shard[1]}"

    @property
    def format(self) -> str:
        """Return the pictures' format by the name's ending: png, jpeg or webp."""
        return names.format_of(self.name)


def make_settings(**options: Unpack[BatchOptions]) -> Settings:
    """Return the settings that these keywords are; raises `RequestError`."""
    option_names = [field.name for field in dataclasses.fields(Settings)]
    for name in options:
        if name not in option_names:
            matches = get_close_matches(name, option_names, n=1)
            hint = f"did you mean {matches[0]}?" if matches else f"choose from {', '.join(option_names)}"
            raise RequestError(f"{name}= is not an option of a batch: {hint}")
    return Settings(**options)
