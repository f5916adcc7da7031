"""Progress of a call: a bar on stderr where somebody looks, or the caller's own function."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, TypeAlias

Progress: TypeAlias = bool | Callable[[Any], object] | None  # the function takes a `fewstep.Step`

Notify: TypeAlias = Callable[[str], object]  # takes a sentence for the result's warnings

BAR_DELAY = 0.5  # seconds: quicker calls show no bar


@contextmanager
def show_progress(progress: Progress, steps: int) -> Iterator[Callable[[Any], object]]:
    """What to call after each step. None is a bar at a terminal and in a notebook, and nothing elsewhere."""
    if callable(progress):
        yield progress
    elif progress is False or (progress is None and not _is_watched()):
        yield lambda _: None
    else:
        with _progress_bar(steps) as bar:
            yield lambda _: bar.update()


def ignore(sentence: str) -> None:
    """Tell nobody; a `Notify`."""


def _progress_bar(steps: int) -> Any:
    if find_spec("ipywidgets") is not None:
        from tqdm.auto import tqdm  # a widget in a notebook
    else:
        from tqdm import tqdm  # there, tqdm.auto would warn that it has no widgets
    return tqdm(total=steps, desc="fewstep", unit="step", leave=False, delay=BAR_DELAY, file=sys.stderr)


def _is_watched() -> bool:
    """Return whether stderr is a terminal, or this a notebook."""
    shell = sys.modules.get("IPython")
    notebook = shell is not None and "IPKernelApp" in getattr(shell.get_ipython(), "config", {})
    return notebook or (sys.stderr is not None and sys.stderr.isatty())
