"""A picture drawn again against the one that was saved: bits, distance, and what differs in their making."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL.Image import Image

from fewstep.metadata import Record
from fewstep.request.schema import fingerprint

_CONDITIONS = {  # facts that may change bits, though not what is asked for
    "device": "device", "precision": "precision", "runtime": "runtime", "threads": "threads",
    "processor": "processor", "revision": "the model's revision",
}  # fmt: skip
_LEVELS = "schedule"


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Something that is not as it was when the picture was saved."""

    kind: str  # version, weights, input, file, or the name of a fact
    message: str

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True, kw_only=True)
class Compared:
    """What came of drawing a picture again."""

    same_bits: bool  # as the one that was drawn then
    within: int  # the greatest difference to the file's pixels, of 255; -1: its size is another
    lossless: bool  # whether the file keeps every bit of what was drawn
    differences: tuple[Difference, ...] = ()
    doubts: tuple[str, ...] = ()  # about a picture of another tool

    @property
    def same(self) -> bool:
        """Return whether every bit is as the file has it or, where that lost some, as it was drawn then."""
        return self.within == 0 if self.lossless else self.same_bits

    def __str__(self) -> str:
        if self.same_bits and self.same and self.lossless:
            verdict = "the same bits"
        elif self.same_bits:
            lost = "" if self.lossless else ", which lost some,"
            verdict = f"the same bits as were drawn (the file{lost} is within {self.within}/255)"
        elif self.within < 0:
            verdict = "another size"
        else:
            verdict = f"within {self.within}/255" + (
                "" if self.lossless else " of a file that lost some bits"
            )
        notes = [*map(str, self.differences), *self.doubts]
        return f"{verdict}; {'; '.join(notes)}" if notes else verdict


def compare_pictures(
    drawn: Image, saved: Image, record: Record, facts: Mapping[str, Any], doubts: tuple[str, ...] = ()
) -> Compared:
    """Return how a picture drawn again, which has `facts`, compares with its file."""
    pixels = record.facts.get("pixels", "")
    within = greatest_difference(drawn, saved)
    same_bits = fingerprint(drawn) == pixels if pixels else record.lossless and within == 0
    differences = [*find_differences(record, facts)] if record.ours else []
    if pixels and record.lossless and fingerprint(saved) != pixels:
        message = "the file's pixels are not those that were drawn: it was changed after it was saved"
        differences.insert(0, Difference(kind="file", message=message))
    return Compared(
        same_bits=same_bits,
        within=within,
        lossless=record.lossless,
        differences=tuple(differences),
        doubts=doubts,
    )


def greatest_difference(first: Image, second: Image) -> int:
    """Return the greatest difference of any channel, of 255; -1 where sizes differ."""
    if first.size != second.size:
        return -1
    pair = (np.asarray(image.convert("RGB"), dtype=np.int16) for image in (first, second))
    return int(np.abs(np.subtract(*pair)).max())


def find_differences(record: Record, now: Mapping[str, Any]) -> Iterator[Difference]:
    """Yield what is not as it was: facts that somebody changed, inputs, weights, versions, conditions."""
    then = record.facts
    for name in record.changed:
        message = f"{name!r} was changed in the file after it was saved"
        yield Difference(kind={"prompts": "prompt"}.get(name, name), message=message)
    yield from _inputs(then, now)
    yield from _weights(then, now)
    for package, version in then.get("versions", {}).items():
        current = now["versions"].get(package, "none")
        if current != version:
            yield Difference(kind="version", message=f"{package} was {version}, and is {current} here")
    for name, words in _CONDITIONS.items():
        if name in then and then[name] != now.get(name):
            yield Difference(kind=name, message=f"{words} was {then[name]!r}, and is {now.get(name)!r} here")
    if _LEVELS in then and then[_LEVELS] != now.get(_LEVELS) and _LEVELS not in record.changed:
        yield Difference(kind=_LEVELS, message="the noise levels are computed otherwise than then")


def _inputs(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Difference]:
    for option, hashes in then.get("sources", {}).items():
        current = now["sources"].get(option, [])
        if hashes != current:
            message = f"{option} is another picture: sha256 {_short(hashes)} then, {_short(current)} now"
            yield Difference(kind="input", message=message)


def _weights(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Difference]:
    """Yield each file of weights that is another, by the options' order."""
    current = [(entry["option"], entry["files"]) for entry in now.get("weights", ())]
    for entry in then.get("weights", ()):
        option, files = entry["option"], entry["files"]
        match = next((item for item in current if item[0] == option), None)
        if match is None:
            yield Difference(kind="weights", message=f"{option} {entry['source']!r} was not used this time")
            continue
        current.remove(match)
        # A moved file may have another name: of one alone the hash counts.
        there = match[1] if len(files) > 1 else dict.fromkeys(files, next(iter(match[1].values()), ""))
        for name, digest in files.items():
            if digest != there.get(name, ""):
                label = f"{option} {entry['source']!r}" + (f", {name}," if len(files) > 1 else "")
                now_there = _short([there.get(name, "")])
                message = f"{label} is another file: sha256 {_short([digest])} then, {now_there} now"
                yield Difference(kind="weights", message=message)


def _short(digests: list[str]) -> str:
    return (
        ", ".join(
            f"{digest:.12}…" if digest else "not known, or changed since it was read" for digest in digests
        )
        or "none"
    )
