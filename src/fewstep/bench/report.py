"""What `fewstep bench` prints: the machine, the rows as a Markdown table or JSON, a plot."""

from __future__ import annotations

import io
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fewstep.bench.timing import Row, Timing
from fewstep.devices.probe import cores, cpu_name
from fewstep.errors import FewstepError
from fewstep.files.output import write_file
from fewstep.result import installed_versions

PACKAGES = ("fewstep", "torch", "diffusers", "transformers", "openvino", "optimum-intel")
FIGURES = {"speed": "{:.2f} x as fast", "time": "{:.2f} x as long", "share": "{:.0%} hidden"}


def machine_facts(threads: int) -> dict[str, Any]:
    """Return what the numbers were measured on; load is what others did on the machine meanwhile."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "processor": cpu_name(Path("/")), "cores": cores(Path("/")), "threads": threads,
        "load": None if load is None else round(load, 2), "system": platform.platform(),
        "versions": {"python": platform.python_version()} | installed_versions(PACKAGES),
    }  # fmt: skip


def rows_as_json(rows: Sequence[Row], machine: Mapping[str, Any]) -> dict[str, Any]:
    """Return all that was measured, ready for JSON."""
    return {"machine": dict(machine), "rows": [row.to_dict() for row in rows]}


def machine_line(machine: Mapping[str, Any]) -> str:
    """Return the machine in one line."""
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    load = "" if machine["load"] is None else f", load {machine['load']:g}"
    return f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads{load}; {versions}"


def table(rows: Sequence[Row]) -> str:
    """Return the rows in Markdown: medians with quartiles; a figure is against the row's first arm."""
    cells = [("suite", "what", "arm", "median", "quartiles", "against the first", "pictures")]
    for row in rows:
        for place, timing in enumerate(row.timings):
            begin = (row.suite, row.name) if place == 0 else ("", "")
            cells.append((*begin, *_arm_cells(row, timing)))
        cells += [("", f"({note})", "", "", "", "", "") for note in row.notes]
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in cells
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def _arm_cells(row: Row, timing: Timing) -> tuple[str, str, str, str, str]:
    """Return an arm's name, times, figure and difference."""
    low, high = timing.quartiles
    figure = row.figures.get(timing.arm)
    difference = row.differences.get(timing.arm)
    apart = "" if difference is None else f"{difference.largest} of 255, {difference.psnr:g} dB"
    said = "" if figure is None else FIGURES[row.figure].format(figure)
    return timing.arm, seconds(timing.median), f"{seconds(low)} to {seconds(high)}", said, apart


def seconds(value: float) -> str:
    """Return a time with three digits that count."""
    if value >= 100:
        return f"{value:.0f} s"
    return f"{value:.3g} s" if value >= 1 else f"{value * 1000:.3g} ms"


def check_plot() -> None:
    """Check that a plot can be made; to be asked before the work."""
    if find_spec("matplotlib") is None:
        raise FewstepError("a plot needs matplotlib: pip install 'fewstep[plot]'")


def plot(rows: Sequence[Row], machine: Mapping[str, Any], path: Path) -> None:
    """Write a PNG: a bar for each arm of each row, as long as its median, the quartiles at its end."""
    check_plot()
    from matplotlib.figure import Figure

    arms = [(row, timing) for row in rows for timing in row.timings]
    figure = Figure(figsize=(9, 1.2 + 0.32 * (len(arms) + len(rows))), dpi=100, layout="constrained")
    axes, place, labels = figure.subplots(), 0.0, dict[float, str]()
    for row in rows:
        axes.text(
            0.0,
            place - 0.1,
            f"{row.suite}: {row.name}",
            size=9,
            weight="bold",
            transform=axes.get_yaxis_transform(),
        )
        for index, timing in enumerate(row.timings):
            place += 1
            low, high = timing.quartiles
            spread = [[timing.median - low], [high - timing.median]]
            axes.barh(place, timing.median, xerr=spread, color="0.7" if index == 0 else "C0", capsize=3)
            labels[place] = timing.arm
        place += 1.2
    axes.set_yticks([*labels], [*labels.values()], size=9)
    axes.set_xscale("log")
    axes.invert_yaxis()
    axes.set_xlabel("seconds (median, quartiles)")
    figure.supxlabel(machine_line(machine).replace("; ", "\n"), size=7, color="0.35")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_file(path, buffer.getvalue(), overwrite=True)
