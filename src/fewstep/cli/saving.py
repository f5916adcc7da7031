"""Where `fewstep generate` puts pictures: tried before the work; where it fails after it, kept elsewhere."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.cli.arguments import Parser, whole_number
from fewstep.errors import OutputError

if TYPE_CHECKING:
    from fewstep.request import Plan
    from fewstep.result import Result

STDOUT = "-"  # as the name of the file


def add_saving_options(command: Parser) -> None:
    """Add where pictures go, and what is in their files."""
    command.add_argument(
        "-o", "--output", default="fewstep.png",
        help="PNG, JPEG or WebP to write, by its ending; - for stdout (fewstep.png)",
    )  # fmt: skip
    command.add_argument("--overwrite", action="store_true", help="replace files that exist")
    command.add_argument("--format", help="png, jpeg or webp, where the name does not end so")
    command.add_argument("--quality", type=whole_number, help="of JPEG and WebP, 1 to 100 (95 and 90)")
    command.add_argument(
        "--no-metadata", dest="metadata", action="store_false", help="leave out how pictures were made"
    )
    command.add_argument(
        "--no-prompts", dest="prompts", action="store_false", help="leave the prompts out of it"
    )
    command.add_argument(
        "--embed", action="store_true", default=None, help="put given pictures into the file, without loss"
    )


def saving_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return those that `Result.save` takes."""
    return {name: getattr(arguments, name) for name in ("format", "quality", "metadata", "prompts", "embed")}


def check_output(
    output: str,
    plan: Plan,
    *,
    overwrite: bool,
    format: str | None = None,
    quality: int | None = None,
) -> None:
    """Check that the pictures of a plan can be written; raises `OutputError` where not."""
    from fewstep import metadata
    from fewstep.files.output import try_writing

    request, pictures = plan.request, len(plan.request.prompts)
    metadata.make_encoding(format, quality, path=None if output == STDOUT else output)
    if output == STDOUT:
        _check_stdout(pictures)
        return
    paths = metadata.output_paths(
        output, range(pictures) if pictures > 1 else (), overwrite=overwrite, format=format
    )
    try_writing(paths, 3 * request.width * request.height * pictures)


def _check_stdout(pictures: int) -> None:
    if pictures != 1:
        raise OutputError(f"-o -: stdout takes one picture, not {pictures}: give a file, -o fox.png")
    if sys.stdout is None or sys.stdout.isatty():
        raise OutputError("-o -: a terminal shows no picture: give a file, -o fox.png, or a pipe")


def save_or_rescue(result: Result, output: str, *, overwrite: bool, **saving: Any) -> list[str]:
    """Write the pictures; returns the paths. Where that fails the error says where else they are.

    saving: other options of `Result.save`.
    """
    try:
        if output != STDOUT:
            return [str(path) for path in result.save(output, overwrite=overwrite, **saving)]
        sys.stdout.buffer.write(result.bytes(0, **saving))
        sys.stdout.buffer.flush()
    except BrokenPipeError:  # its reader wants no more
        raise
    except OutputError as error:
        raise OutputError(f"{error}; {_rescue(result)}") from error
    except OSError as error:
        raise OutputError(f"stdout cannot be written: {error.strerror}; {_rescue(result)}") from error
    return [STDOUT]


def _rescue(result: Result) -> str:
    """Keep the pictures in a new folder for temporary files; returns what to say of it."""
    try:
        folder = Path(tempfile.mkdtemp(prefix="fewstep-"))
        result.save(folder / "rescued.png")
    except OSError:
        return f"nor can they be kept elsewhere: seeds {list(result.seeds)} draw them again"
    return f"the pictures are in {str(folder)!r}"
