"""Time against distance as a PNG; matplotlib is an extra."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from fewstep.comparison.axes import SUBJECTS, describe
from fewstep.comparison.table import Row
from fewstep.errors import FewstepError, RequestError

Point = tuple[float, float, str]  # milliseconds, distance, what is written beside it


def require_matplotlib() -> None:
    """Check that matplotlib is here; raises `FewstepError`."""
    if find_spec("matplotlib") is None:
        raise FewstepError("a plot needs matplotlib: pip install 'fewstep[plot]'")


def draw_plot(axes: Mapping[str, Sequence[Any]], rows: Sequence[Row], measure: str) -> bytes:
    """Return a PNG, 800 pixels wide: a line for each mode (or other axis), a point for each step count."""
    require_matplotlib()
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    lines = _lines(axes, rows)
    if not lines:
        raise RequestError("nothing to plot: no cell has both a time and a distance to a reference")
    figure = Figure(figsize=(8, 5.2), dpi=100, layout="constrained")  # Agg draws it, whatever the backend
    plot = figure.subplots()
    for place, (name, points) in enumerate(lines.items()):
        _draw_line(plot, name, points, place)
    plot.set_xscale("log")
    plot.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    plot.xaxis.set_major_formatter(ScalarFormatter())
    plot.xaxis.set_minor_formatter(NullFormatter())
    plot.set_xlabel("milliseconds for one picture", size=12)
    plot.set_ylabel(f"distance to the reference ({measure})", size=12)
    plot.margins(x=0.08)
    highest = max(point[1] for points in lines.values() for point in points)
    plot.set_ylim(-0.08 * (highest or 1), 1.12 * (highest or 1))  # room for what is written beside points
    plot.grid(visible=True, alpha=0.25)
    plot.legend(fontsize=11)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _lines(axes: Mapping[str, Sequence[Any]], rows: Sequence[Row]) -> dict[str, list[Point]]:
    """Return lines of points by name: the mean of each setting over prompts, seeds and sizes."""
    settings = [name for name in axes if name not in SUBJECTS]
    along = settings[-1:]  # a line runs along the last of them
    groups = dict[tuple[str, str], list[Row]]()
    for row in rows:
        if not math.isnan(row["milliseconds"]) and not math.isnan(row["distance"]):
            line = ", ".join(f"{name} {describe(name, row[name])}" for name in settings[:-1])
            point = ", ".join(describe(name, row[name]) for name in along)
            groups.setdefault((line, point), []).append(row)
    lines = dict[str, list[Point]]()
    for (line, point), group in groups.items():
        milliseconds, distance = (
            sum(row[name] for row in group) / len(group) for name in ("milliseconds", "distance")
        )
        lines.setdefault(line or " ".join(along), []).append((milliseconds, distance, point))
    return lines


def _draw_line(plot: Any, name: str, points: Sequence[Point], place: int) -> None:
    """Draw one line; the words of every second one are below it, so that they do not meet."""
    milliseconds, distances, words = zip(*points, strict=True)
    mark, colour = "osD^vP*X"[place % 8], f"C{place % 10}"
    plot.plot(milliseconds, distances, marker=mark, color=colour, label=name)
    above = (0, 8) if place % 2 == 0 else (0, -17)
    for x, y, text in zip(milliseconds, distances, words, strict=True):
        plot.annotate(text, (x, y), above, textcoords="offset points", ha="center", size=11, color=colour)
