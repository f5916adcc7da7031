"""stdout and stderr: what they cannot show is escaped, and that nobody reads them fails no finished work."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TextIO


@contextmanager
def escaping_streams() -> Iterator[None]:
    """Write letters that a stream's encoding lacks as escapes (`\\u732b`), in here."""
    with ExitStack() as restore:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                restore.callback(_set_errors, stream, stream.errors)
                _set_errors(stream, "backslashreplace")
        yield


def _set_errors(stream: io.TextIOWrapper, errors: str | None) -> None:
    """Set how a stream writes letters that its encoding lacks."""
    with suppress(OSError):  # it writes what is buffered first
        stream.reconfigure(errors=errors)


def tell(text: str) -> None:
    """Print a line to stderr, where there is one."""
    if sys.stderr is not None:  # pythonw has none, and print would take stdout
        try:
            print(text, file=sys.stderr, flush=True)
        except OSError:
            silence(sys.stderr)


def flush_stdout() -> None:
    """Write what is buffered: that nobody reads it is learned here, and not at Python's exit."""
    if sys.stdout is not None:
        sys.stdout.flush()


@contextmanager
def report_of_work() -> Iterator[None]:
    """Print in here what was done; where that cannot be printed, stderr says so, and the work stays."""
    try:
        yield
        flush_stdout()
    except OSError as error:
        silence(sys.stdout)
        if not isinstance(error, BrokenPipeError):
            tell(f"fewstep: warning: it is done, but stdout cannot be written: {error.strerror or error}")


def silence(stream: TextIO) -> None:
    """Send what is still buffered nowhere, so that Python's exit does not fail on it."""
    with suppress(OSError, ValueError):  # a stream of the caller's own, without a number
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
