"""Where `fewstep generate` puts pictures: tried before the work; where it fails after it, kept elsewhere."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from fewstep.errors import OutputError

if TYPE_CHECKING:
    from fewstep.request import Plan
    from fewstep.result import Result

STDOUT = "-"  # as the name of the file


def check_output(output: str, plan: Plan, *, overwrite: bool) -> None:
    """Check that the pictures of a plan can be written; raises `OutputError` where not."""
    from fewstep import metadata
    from fewstep.files.output import try_writing

    request, pictures = plan.request, len(plan.request.prompts)
    if output == STDOUT:
        _check_stdout(pictures)
        return
    paths = metadata.output_paths(output, range(pictures) if pictures > 1 else (), overwrite=overwrite)
    try_writing(paths, 3 * request.width * request.height * pictures)


def _check_stdout(pictures: int) -> None:
    if pictures != 1:
        raise OutputError(f"-o -: stdout takes one picture, not {pictures}: give a file, -o fox.png")
    if sys.stdout is None or sys.stdout.isatty():
        raise OutputError("-o -: a terminal shows no PNG: give a file, -o fox.png, or a pipe")


def save_or_rescue(result: Result, output: str, *, overwrite: bool) -> list[str]:
    """Write the pictures; returns the paths. Where that fails the error says where else they are."""
    try:
        if output != STDOUT:
            return [str(path) for path in result.save(output, overwrite=overwrite)]
        sys.stdout.buffer.write(result.png())
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
