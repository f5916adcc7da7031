"""New."""

from __future__ import annotations

import json
import os
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO

from fewstep.errors import (
    CorruptModelError,
    FewstepError,
    ModelError,
    ModelNotFoundError,
    describe_error,
    is_out_of_memory,
)
from fewstep.files import untrusted


@contextmanager
def raise_as_corrupt(path: Path) -> Iterator[None]:
    """Raise what a foreign reader raises as `CorruptModelError`: `path` is damaged, or something else.

    Our own errors stay as they are, and a key that is missing is named. What cannot be the file's fault, a
    library that is not there or a host's warning made an error, is a `ModelError` that does not blame it.
    """
    try:
        yield
    except FewstepError:
        raise
    except KeyError as error:
        raise CorruptModelError(f"{path} lacks {error.args[0]!s:.200}") from error
    except (ImportError, NameError, Warning) as error:
        raise ModelError(f"{path} was not read, by no fault of its own: {describe_error(error)}") from error
    except Exception as error:  # tokenizers raises no narrower one
        if is_out_of_memory(error):
            raise
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise CorruptModelError(f"{path} cannot be read, or is not what it should be: {first}") from error


def read_config(path: Path) -> dict[str, Any]:
    """A configuration file of a model; `CorruptModelError` where it is missing or broken."""
    try:
        return untrusted.read_json(path)
    except ModelNotFoundError:
        raise CorruptModelError(f"{path} is missing: this is not a complete diffusers folder") from None


MAX_HEADER = 16 * 2**20  # bytes; SDXL's whole checkpoint has 0.4 MB


MAX_TENSORS = 20_000  # SDXL's whole checkpoint has 2,515; its widest LoKr about 6,000


MAX_JSON_TOKENS = 32 * MAX_TENSORS  # commas, quotes or brackets in the JSON; a tensor takes up to 24


MAX_JSON_DEPTH = 3  # {tensor: {"shape": [...]}}


class FileFaultError(ValueError):
    """What is wrong with a file; the path is put before it."""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of a model that may be as hostile as its weights."""
    with open_regular_file(path) as file:
        try:
            if os.fstat(file.fileno()).st_size > MAX_HEADER:
                raise FileFaultError(f"is larger than {MAX_HEADER} bytes")
            return parse_json(file.read(MAX_HEADER + 1))
        except (ValueError, RecursionError, MemoryError, OSError) as error:
            raise file_error(path, error, "cannot be read: it should hold a JSON object") from None


def file_error(path: Path, error: Exception, otherwise: str) -> CorruptModelError:
    """An error of one line that names the file, whatever a reader stumbled over."""
    return CorruptModelError(
        f"{printable_path(path)} {error if isinstance(error, FileFaultError) else otherwise}"
    )


def printable_path(path: Path) -> str:
    """A path as it may stand in a message of one line."""
    return str(path) if str(path).isprintable() else repr(str(path))


def open_regular_file(path: Path) -> BinaryIO:
    """A regular file, and nothing that blocks: a FIFO or a device is not even opened."""
    try:
        _require_regular(path, path.stat().st_mode)
        file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115  # the caller closes it
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a NUL in the name
        raise ModelNotFoundError(f"{printable_path(path)} is missing: there is no such file") from None
    except OSError as error:
        raise CorruptModelError(f"{printable_path(path)} cannot be read: {error.strerror}") from None
    try:
        _require_regular(path, os.fstat(file.fileno()).st_mode)  # it may have been swapped since
    except CorruptModelError:
        file.close()
        raise
    return file


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _require_regular(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "no regular file"
        raise CorruptModelError(f"{printable_path(path)} is {kind}: give a .safetensors file")


def parse_json(raw: bytes) -> dict[str, Any]:
    """JSON of an object, of bounded size and depth, in UTF-8, without duplicate keys."""
    _bound_json(raw)
    text = raw.decode("utf-8")
    if text[:1] != "{":
        raise FileFaultError("should hold a JSON object")
    content: dict[str, Any] = json.loads(
        text, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant
    )
    return content


def _bound_json(raw: bytes) -> None:
    """Count brackets and commas before a parser meets them; those inside strings do not count."""
    plain = raw.replace(rb"\\", b"").replace(rb"\"", b"")
    if plain.count(b'"') > MAX_JSON_TOKENS:
        raise FileFaultError(f"has more than {MAX_JSON_TOKENS} quotes in its JSON")
    skeleton = b"".join(plain.split(b'"')[::2])
    brackets = skeleton.translate(None, bytes({*range(256)} - {*b"[]{}"}))
    if max(len(brackets), skeleton.count(b",")) > MAX_JSON_TOKENS:
        raise FileFaultError(f"has more than {MAX_JSON_TOKENS} values in its JSON")
    deepest = max(accumulate(1 if bracket in b"[{" else -1 for bracket in brackets), default=0)
    if deepest > MAX_JSON_DEPTH:
        raise FileFaultError(f"has JSON nested {deepest} deep; the most is {MAX_JSON_DEPTH}")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise FileFaultError(f"names {twice!r:.80} twice")
    "".join(unique).encode()  # half a surrogate pair is no text
    return unique


def _refuse_constant(name: str) -> None:
    raise FileFaultError(f"has {name} in its JSON")
