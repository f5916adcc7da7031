"""What was done in a studio, as calls: each runs, and is written as code, from the same data."""

from __future__ import annotations

import base64
import io
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from fewstep import api
from fewstep.errors import RequestError

if TYPE_CHECKING:
    from fewstep.result import Result

WIDTH = 100  # letters in a line of code
NAMES = {"generate": "drafts", "refine": "refined", "vary": "varied", "inpaint": "inpainted"}
_PLAIN = (str, int, float, bool, type(None), Path)


@dataclass(frozen=True, kw_only=True)
class Move:
    """One thing done: `fewstep.generate`, or a method of some pictures of an earlier result."""

    method: str  # "generate", "refine", "vary" or "inpaint"
    arguments: tuple[str, ...] = ()  # prompts, given by position
    options: Mapping[str, Any] = field(default_factory=dict)
    parent: Move | None = None
    picked: tuple[int, ...] = ()  # of the parent's pictures
    mask: bytes = field(default=b"", repr=False)  # a PNG, black and white
    passing: bool = False  # drafted while typing: the next draft takes its place

    @property
    def noun(self) -> str:
        """What its pictures are called."""
        return NAMES[self.method]

    @property
    def pictures(self) -> int:
        """How many it makes."""
        count: int = self.options.get("count", 1)
        return count * max(1, len(self.picked))

    def without(self, failures: Collection[int], survivors: Result) -> Move | None:
        """Return the move that makes the other pictures alone; None where no one call does."""
        if self.method == "generate":
            seeds = list(survivors.seeds)
            return replace(self, options={**self.options, "count": len(seeds), "seed": seeds})
        picked = tuple(number for place, number in enumerate(self.picked) if place not in failures)
        return replace(self, picked=picked) if self.method == "refine" else None

    def draw(self, parent: Result | None, **options: Any) -> Result:
        """Make its pictures. `parent`: those of the move it follows; `options`: cancel and progress."""
        if parent is None:
            return api.generate(self.arguments[0], **self.options, **options)
        masks = (self.mask,) if self.mask else ()
        method = getattr(parent.pick(*self.picked), self.method)
        result: Result = method(*masks, *self.arguments, **self.options, **options)
        return result

    def line(self) -> Iterator[Move]:
        """Yield the moves that led here, the first one first, and this one last."""
        moves: list[Move] = []
        move: Move | None = self
        while move is not None:
            moves.append(move)
            move = move.parent
        yield from reversed(moves)


def write_code(moves: list[Move]) -> str:
    """Return a program that does these moves, each after its parent, and shows the last one's pictures."""
    if not moves:
        return ""
    imports = ["import base64", ""] if any(move.mask for move in moves) else []
    names: dict[int, str] = {}  # by id of the move
    body: list[str] = []
    for move in moves:
        name = _free_name(move.noun, names.values())
        if move.mask:
            mask = _free_name("mask", names.values())
            body.append(_mask_lines(mask, move.mask))
        call = "fewstep.generate" if move.parent is None else _call_on(move, names[id(move.parent)])
        arguments = [mask] if move.mask else []
        arguments += map(_literal, move.arguments)
        arguments += [f"{option}={_literal(value)}" for option, value in move.options.items()]
        names[id(move)] = name
        body.append(_wrapped(f"{name} = {call}", arguments))
    return "\n".join([*imports, "import fewstep", "", *body, names[id(moves[-1])], ""])


def check_plain(options: Mapping[str, Any]) -> None:
    """Check that code can name these options; raises `RequestError`."""
    for name, value in options.items():
        if not _is_plain(value):
            raise RequestError(
                f"{name}={type(value).__name__}: a studio writes down what it does as code, which can name "
                f"text, numbers and files; give a path"
            )


def black_and_white(mask: bytes) -> bytes:
    """Return a mask as a small PNG of one bit a pixel, white where it is half white or more."""
    with Image.open(io.BytesIO(mask)) as picture:
        bits = picture.convert("L").point(lambda value: 255 * (value >= 128)).convert("1")
    file = io.BytesIO()
    bits.save(file, "PNG", optimize=True)
    return file.getvalue()


def _is_plain(value: Any) -> bool:
    return isinstance(value, _PLAIN) or (isinstance(value, list | tuple) and all(map(_is_plain, value)))


def _literal(value: Any) -> str:
    """Return a plain value as Python code: a path as text, text in double quotes where that is simple."""
    if isinstance(value, Path | str):
        text = repr(str(value))
        return text if '"' in text else f'"{repr(chr(39) + str(value))[2:]}'
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_literal, value))}]" if isinstance(value, list) else _tuple(value)
    return repr(value)


def _tuple(values: tuple[Any, ...]) -> str:
    return f"({', '.join(map(_literal, values))}{',' * (len(values) == 1)})"


def _call_on(move: Move, parent: str) -> str:
    return f"{parent}.pick({', '.join(map(str, move.picked))}).{move.method}"


def _free_name(noun: str, taken: Any) -> str:
    """Return a name for a variable: drafts, drafts_2, ..."""
    names, number = set(taken), 2
    name = noun
    while name in names:
        name, number = f"{noun}_{number}", number + 1
    return name


def _wrapped(call: str, arguments: list[str]) -> str:
    """Return a call in one line, or where that is too long, an argument a line."""
    line = f"{call}({', '.join(arguments)})"
    if len(line) <= WIDTH:
        return line
    return "\n".join([f"{call}(", *(f"    {argument}," for argument in arguments), ")"])


def _mask_lines(name: str, mask: bytes) -> str:
    """Return the mask itself: the code needs no file."""
    text = base64.b64encode(mask).decode()
    pieces = [text[start : start + WIDTH - 6] for start in range(0, len(text), WIDTH - 6)]
    return "\n".join([f"{name} = base64.b64decode(", *(f'    "{piece}"' for piece in pieces), ")"])
