"""`fewstep refine` and `fewstep inpaint`: saved pictures drawn over; the rest is in their own files."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fewstep
from fewstep.cli.arguments import NOT_GIVEN, Parser, add_command, number, typed, whole_number
from fewstep.cli.generate import add_option_flags
from fewstep.cli.saving import check_output, save_or_rescue
from fewstep.cli.streams import report_of_work, tell
from fewstep.errors import RequestError
from fewstep.request.options import OPTIONS

if TYPE_CHECKING:
    from fewstep.result import Result
    from fewstep.saved import SavedPicture

_GIVEN = ("image", "mask")  # not options here: the picture itself, and an argument
_OPTIONS = ("steps", "mode", *(name for name in OPTIONS if name not in _GIVEN))


def add_refinements(commands: Any) -> None:
    """Add both commands."""
    refine = add_command(commands, "refine", _run_refine, "draw over saved pictures, as they were made")
    refine.add_argument("pictures", nargs="+", metavar="PICTURE", help="a picture that fewstep saved")
    refine.add_argument(
        "--pick", type=whole_number, nargs="+", default=NOT_GIVEN, metavar="N", help="only these, from 0"
    )
    refine.add_argument("--prompt", default=NOT_GIVEN, help="another prompt")
    refine.add_argument("--scale", type=number, default=NOT_GIVEN, help="enlarge first, 1 to 8 times")
    refine.add_argument(
        "--upscaler",
        default=NOT_GIVEN,
        metavar="PATH",
        help="enlarges instead of Lanczos: a .safetensors file",
    )
    _add_common(refine, "refined.png")
    inpaint = add_command(commands, "inpaint", _run_inpaint, "draw a part of a saved picture anew")
    inpaint.add_argument("picture", metavar="PICTURE", help="a picture that fewstep saved")
    inpaint.add_argument("mask", metavar="MASK", help="white where it is to be made anew")
    inpaint.add_argument(
        "new_prompt", nargs="?", metavar="PROMPT", help="what to draw there; its own if left out"
    )
    inpaint.add_argument(
        "--feather", type=whole_number, default=NOT_GIVEN, help="pixels over which old turns into new"
    )
    _add_common(inpaint, "inpainted.png")


def _add_common(command: Parser, output: str) -> None:
    add_option_flags(command, without=_GIVEN)
    command.add_argument("--json", action="store_true", help="print JSON")
    command.add_argument("-o", "--output", default=output, help=f"PNG to write ({output})")
    command.add_argument("--overwrite", action="store_true", help="replace files that exist")
    command.add_argument("-q", "--quiet", action="store_true", help="print nothing on success")


def _run_refine(arguments: argparse.Namespace) -> int:
    paths = _picked(arguments.pictures, getattr(arguments, "pick", None))
    options = typed(arguments, (*_OPTIONS, "prompt", "scale", "upscaler"))
    outputs = _outputs(arguments.output, len(paths))
    for path, output in zip(paths, outputs, strict=True):
        _draw(path, output, arguments, lambda result: result.refine(**options))
    return 0


def _run_inpaint(arguments: argparse.Namespace) -> int:
    options = typed(arguments, (*_OPTIONS, "feather")) | {"prompt": arguments.new_prompt}
    mask = arguments.mask
    _draw(arguments.picture, arguments.output, arguments, lambda result: result.inpaint(mask, **options))
    return 0


def _draw(
    path: str, output: str, arguments: argparse.Namespace, refine: Callable[[SavedPicture], Result]
) -> None:
    """Draw over one picture, write what comes out, and say where."""
    from fewstep.saved import open_saved

    saved = open_saved(path, fewstep.generate)
    check_output(output, fewstep.plan(**saved.call()), overwrite=arguments.overwrite)
    result = refine(saved)
    paths = save_or_rescue(result, output, overwrite=arguments.overwrite)
    with report_of_work():
        for warning in result.warnings:
            tell(f"fewstep: warning: {warning}")
        if arguments.json:
            facts = [{"path": path, **result.facts(index)} for index, path in enumerate(paths)]
            print(json.dumps({"pictures": facts, "timings": dict(result.timings)}))
        elif not arguments.quiet:
            for path, seed in zip(paths, result.seeds, strict=True):
                print(f"{path}  (seed {seed})")


def _picked(pictures: Sequence[str], numbers: Sequence[int] | None) -> list[str]:
    """Return the pictures of these numbers; raises `RequestError`."""
    for place in numbers or ():
        if not 0 <= place < len(pictures):
            raise RequestError(f"--pick {place}: the pictures are numbered 0 to {len(pictures) - 1}")
    return [*pictures] if numbers is None else [pictures[place] for place in numbers]


def _outputs(output: str, pictures: int) -> list[str]:
    """Return a name for each picture: with -0, -1, ... before the ending where there are several."""
    path = Path(output)
    return [output] if pictures == 1 else [str(path.with_stem(f"{path.stem}-{i}")) for i in range(pictures)]
