"""Where a batch may be stopped by a crash, by name: tests stop it at each."""

from __future__ import annotations

from collections.abc import Callable

POINTS = (
    "planned", "group drawn", "names recorded", "file half written", "file written", "file in place",
    "files in place", "manifest half written", "group recorded", "tar written", "tar in place",
    "tar recorded", "data set half written", "data set written",
)  # fmt: skip


listener: Callable[[str], object] = str


def reached(point: str) -> None:
    """Tell the listener: tests have one that ends the process here."""
    listener(point)
