"""`fewstep compare`: one picture by several settings, as a labelled sheet and a table."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from fewstep.cli.arguments import (
    NOT_GIVEN,
    GuideAction,
    add_command,
    number,
    typed,
    whole_number,
    with_weight,
)
from fewstep.cli.generate import CALL_OPTIONS
from fewstep.cli.streams import report_of_work, tell
from fewstep.errors import RequestError
from fewstep.request.options import OPTIONS, File, Guide, Option

if TYPE_CHECKING:
    from fewstep.comparison import Cell, Comparison

_NONE = "none"  # in a list of LoRAs: without
_READERS: dict[Any, Callable[[str], Any]] = {int: whole_number, float: number}


def add_compare(commands: Any) -> None:
    """Add the command."""
    command = add_command(
        commands, "compare", _run_compare, "draw one picture by several settings, side by side"
    )
    command.add_argument("prompt", nargs="*", help="what to draw; several prompts are an axis of their own")
    command.add_argument("--steps", default=NOT_GIVEN, type=_list_of(whole_number), help="such as 1,4,25")
    command.add_argument("--mode", default=NOT_GIVEN, type=_list_of(str), help="such as turbo,lcm,base")
    for option in OPTIONS.values():
        if option.name not in ("count", "budget_ms"):
            flag = f"--{(option.flag or option.name).replace('_', '-')}"
            command.add_argument(flag, dest=option.name, default=NOT_GIVEN, **_keywords(option))
    command.add_argument(
        "--repeats", default=1, type=whole_number, help="calls of each cell, for a steadier time (1)"
    )
    command.add_argument(
        "--against", default=None, metavar="NAME=VALUE,...",
        help="what distances are to: a cell, such as mode=base,steps=25, or a picture (the costliest cell)",
    )  # fmt: skip
    command.add_argument(
        "-o", "--output", default="compare.png", help="PNG of the sheet; the table goes beside it as CSV"
    )
    command.add_argument("--plot", default=None, metavar="PNG", help="also plot time against distance")
    command.add_argument("--overwrite", action="store_true", help="replace files that exist")
    command.add_argument("--json", action="store_true", help="print the table as JSON")
    command.add_argument("-q", "--quiet", action="store_true", help="print nothing on success")


def _keywords(option: Option) -> dict[str, Any]:
    """Return argparse's words for an option: several values stand between commas."""
    members = (option.type, *get_args(option.type))
    if option.type is bool:
        return {"action": "store_true", "help": option.help}
    if option.type == Sequence[Guide]:
        return {
            "action": GuideAction,
            "nargs": 3,
            "metavar": ("MODEL", "IMAGE", "SCALE"),
            "help": option.help,
        }
    if option.name == "timesteps":
        return {"type": whole_number, "nargs": "+", "help": option.help}
    if option.type == Sequence[File | tuple[File, float]]:
        return {
            "type": _list_of(_loras),
            "metavar": "PATH[:WEIGHT],...",
            "help": f"{option.help}; none is without",
        }
    if option.type == Sequence[File]:
        return {"action": "append", "metavar": "PATH", "help": option.help}
    reader = next((_READERS[member] for member in members if member in _READERS), str)
    return {"type": _list_of(reader), "help": f"{option.help}; several, between commas"}


def _list_of(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return what reads one value, or several between commas as a list."""

    def parse(text: str) -> Any:
        words = [text] if os.path.exists(text) else [word.strip() for word in text.split(",")]
        return [read(word) for word in words] if len(words) > 1 else read(words[0])

    return parse


def _loras(text: str) -> list[str | tuple[str, float]]:
    """Return the LoRAs of one cell: those between plus signs."""
    return [] if text == _NONE else [with_weight(word.strip()) for word in text.split("+")]


def _run_compare(arguments: argparse.Namespace) -> int:
    from fewstep.comparison import Comparison, compare, plot
    from fewstep.files.output import try_writing

    options = typed(arguments, ("prompt", *CALL_OPTIONS))
    if len(options["prompt"]) == 1:
        (options["prompt"],) = options["prompt"]
    targets = [*Comparison.paths(arguments.output, overwrite=arguments.overwrite)]
    if arguments.plot is not None:
        plot.require_matplotlib()
        targets.append(Path(arguments.plot))
    try_writing(targets[:1], 1 << 20)
    comparison = compare(**options, repeats=arguments.repeats)
    for cell in comparison:
        if not arguments.quiet:
            tell(_line(cell))
    return _report(comparison, arguments)


def _line(cell: Cell) -> str:
    from fewstep.comparison.axes import label

    settings = ", ".join(label(name, value) for name, value in cell.settings.items())
    return f"{settings}: {cell.milliseconds:.0f} ms" if cell.error is None else f"{settings}: {cell.error}"


def _report(comparison: Comparison, arguments: argparse.Namespace) -> int:
    """Write sheet, table and plot, and say where."""
    against = _against(arguments.against)
    paths = comparison.save(arguments.output, overwrite=arguments.overwrite, against=against)
    if arguments.plot is not None:
        comparison.plot(against, path=arguments.plot, overwrite=arguments.overwrite)
        paths.append(Path(arguments.plot))
    with report_of_work():
        if arguments.json:
            print(json.dumps([_plain(row) for row in comparison.table(against)]))
        elif not arguments.quiet:
            print(comparison.table(against).text())
            print(*paths, sep="\n")
    return 0


def _against(text: str | None) -> Any:
    """Return the settings of a cell, or a picture's path."""
    if text is None or "=" not in text:
        return text
    settings = {}
    for word in text.split(","):
        name, _, value = word.partition("=")
        reader = whole_number if name == "steps" else _reader(name.strip())
        try:
            settings[name.strip()] = reader(value.strip())
        except argparse.ArgumentTypeError as error:
            raise RequestError(f"--against {text!r}: {error}") from None
    return settings


def _reader(name: str) -> Callable[[str], Any]:
    option = OPTIONS.get(name)
    members = () if option is None else (option.type, *get_args(option.type))
    return next((_READERS[member] for member in members if member in _READERS), str)


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row for JSON, which has no NaN."""
    return {name: None if value != value else value for name, value in row.items()}
