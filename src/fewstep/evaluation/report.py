"""Rows as a CSV file, which an interrupted evaluation goes on from, as a table, and as a plot."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fewstep import metadata
from fewstep.errors import FewstepError, OutputError, RequestError
from fewstep.files.output import try_writing, write_file

_TYPES = {"str": str, "int": int, "float": float}
_SHOWN = (  # columns of the table: heading, field, format
    ("mode", "mode", "10"), ("steps", "steps", "5"), ("cfg", "guidance", "4g"), ("name@1", "name_1", "7.1%"),
    ("name@5", "name_5", "7.1%"), ("style@1", "style_1", "7.1%"), ("seen@1", "seen_1", "7.1%"),
    ("held@1", "held_out_1", "7.1%"), ("fréchet", "frechet", "7.4f"), ("rmse", "rmse", "6.3f"),
    ("apart", "feature_distance", "6.3f"), ("seeds", "diversity", "6.3f"),
    ("sharp", "sharpness", "6.4f"), ("ms", "milliseconds", "7.1f"),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Row:
    """How well, and how fast, one mode draws in so many steps. Shares are in [0, 1]; nan is of nothing.

    A picture is right where the nearest real one, in the feature space, has its prompt's name.
    """

    model: str
    mode: str
    steps: int
    guidance: float
    pictures: int
    prompts: int
    name_1: float  # retrieval@1: the nearest real picture has the name
    name_5: float  # retrieval@5: one of the five nearest has it
    style_1: float  # the nearest has the style
    seen_1: float  # as name_1, of pairs that were trained on
    held_out_1: float  # as name_1, of pairs that were not
    frechet: float  # squared Fréchet distance of features to those of all real pictures
    rmse: float  # to the base model's 50 steps from the same noise; colours in [0, 1]
    feature_distance: float  # to the same, as cosine distance of features
    diversity: float  # cosine distance between the pictures of one prompt
    sharpness: float  # variance of the Laplacian of luminance, as colours in [0, 1]
    milliseconds: float  # one picture, prompt to PIL, warm: median
    milliseconds_low: float  # lower quartile
    milliseconds_high: float  # upper quartile
    device: str
    precision: str
    processor: str
    threads: int
    torch: str  # version
    fewstep: str  # version
    loras: str
    key: str  # sha256 of all that the quality depends on


def read(path: Path) -> list[Row]:
    """The rows of a file that `append` wrote; none where it is not there."""
    if not path.exists():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            table = csv.DictReader(file)
            if table.fieldnames != [f.name for f in fields(Row)]:
                raise ValueError("its header is another")
            return [Row(**{f.name: _TYPES[str(f.type)](line[f.name]) for f in fields(Row)}) for line in table]
    except (ValueError, TypeError, csv.Error) as error:
        raise RequestError(
            f"{path} was not written by this version of fewstep eval ({error}): give another --csv"
        ) from error


def append_row(row: Row, path: Path) -> None:
    """Add one row at once; the header too where the file is new."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = not path.exists()
        with path.open("a", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, [f.name for f in fields(Row)])
            if new:
                table.writeheader()
            table.writerow(asdict(row))
    except OSError as error:
        raise OutputError(f"{str(path)!r} cannot be written: {error.strerror or error}") from error


def table(rows: Sequence[Row]) -> str:
    """What matters of the rows, to be read on a terminal, with a note of what they were made on."""
    lines = ["  ".join(f"{head:>{_column_width(form)}}" for head, _, form in _SHOWN)]
    lines += ["  ".join(f"{getattr(row, name):>{form}}" for _, name, form in _SHOWN) for row in rows]
    return "\n".join([*lines, "", row_note(rows[0])] if rows else lines)


def row_note(row: Row) -> str:
    """Machine and counts, one line."""
    beside = f" with {row.loras}" if row.loras else ""
    return (
        f"model {row.model}{beside}; {row.prompts} prompts, {row.pictures} pictures a row; {row.processor}, "
        f"{row.threads} threads, {row.device}, {row.precision}; fewstep {row.fewstep}, torch {row.torch}"
    )


def check_plot(path: Path) -> None:
    """Check that a plot can be made, and put there; to be asked before the work."""
    if find_spec("matplotlib") is None:
        raise FewstepError("a plot needs matplotlib: pip install 'fewstep[train]'")
    try_writing(metadata.output_paths(path, (), overwrite=True), 1 << 16)


def plot(rows: Sequence[Row], path: Path) -> None:
    """Quality against time as a PNG, 800 pixels wide: a line for each mode, a point for each step count.

    An older plot is replaced.
    """
    check_plot(path)
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    figure = Figure(figsize=(8, 5.2), dpi=100, layout="constrained")  # Agg draws it, whatever the backend
    axes = figure.subplots()
    modes = list(dict.fromkeys(row.mode for row in rows))
    for place, mode in enumerate(modes):
        _plot_mode(axes, sorted((r for r in rows if r.mode == mode), key=lambda r: r.steps), place)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("milliseconds for one picture (median, quartiles)", size=12)
    axes.set_ylabel("retrieval@1 of the name asked for, %", size=12)
    axes.set_ylim(0, 108)
    axes.grid(visible=True, alpha=0.25)
    axes.legend(title="mode; points are steps", fontsize=11)
    if rows:
        figure.supxlabel(_in_two_lines(row_note(rows[0])), size=8.5, color="0.35")
    _save_plot(figure, path)


def _plot_mode(axes: Any, rows: Sequence[Row], place: int) -> None:
    """One mode's points; the numbers of every second mode are below them, so that they do not meet."""
    times, accuracy = [row.milliseconds for row in rows], [100 * row.name_1 for row in rows]
    low = [row.milliseconds - row.milliseconds_low for row in rows]
    high = [row.milliseconds_high - row.milliseconds for row in rows]
    mark, colour = "osD^vP*X"[place % 8], f"C{place % 10}"
    axes.errorbar(times, accuracy, xerr=[low, high], marker=mark, color=colour, capsize=3, label=rows[0].mode)
    above = (0, 8) if place % 2 == 0 else (0, -17)
    for x, y, row in zip(times, accuracy, rows, strict=True):
        axes.annotate(
            str(row.steps), (x, y), above, textcoords="offset points", ha="center", size=11, color=colour
        )


def _in_two_lines(line: str) -> str:
    """A note in two lines."""
    parts = line.split("; ")
    return "; ".join(parts[:2]) + "\n" + "; ".join(parts[2:])


def _save_plot(figure: Any, path: Path) -> None:
    """Write the plot whole or not at all."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_file(path, buffer.getvalue(), overwrite=True)


def _column_width(form: str) -> int:
    """Return the width of a column."""
    return int(form.rstrip("%gf").split(".")[0])
