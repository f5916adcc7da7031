"""A table as Python has it, a list of dicts; as HTML in a notebook, and as CSV."""

from __future__ import annotations

import csv
import html
import io
import math
from collections.abc import Sequence
from typing import Any

from PIL import Image

from fewstep.comparison.axes import describe
from fewstep.comparison.cells import Cell
from fewstep.comparison.distance import Distance

Row = dict[str, Any]


class Table(list[Row]):
    """Rows with the same columns."""

    def csv(self) -> str:
        """Return the rows as CSV, with a header; what is not a number is an empty field."""
        file = io.StringIO()
        if self:
            writer = csv.DictWriter(file, [*self[0]], lineterminator="\n")
            writer.writeheader()
            writer.writerows({name: _plain(value) for name, value in row.items()} for row in self)
        return file.getvalue()

    def text(self) -> str:
        """Return the rows in columns, to be read on a terminal."""
        if not self:
            return ""
        lines = [[*self[0]], *([_shown(value) for value in row.values()] for row in self)]
        widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        )

    def _repr_html_(self) -> str:
        """Return the notebook's view."""
        if not self:
            return "<table></table>"
        head = "".join(f"<th>{html.escape(name)}</th>" for name in self[0])
        rows = ("".join(f"<td>{html.escape(_shown(value))}</td>" for value in row.values()) for row in self)
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def make_table(cells: Sequence[Cell], references: Sequence[Image.Image | None], distance: Distance) -> Table:
    """Return a row for each cell; `references` are what each is compared with."""
    pairs = zip(cells, references, strict=True)
    return Table(_row(cell, reference, distance) for cell, reference in pairs)


def _row(cell: Cell, reference: Image.Image | None, distance: Distance) -> Row:
    """Return the axes, then what was measured; numbers that are not there are NaN."""
    request = None if cell.result is None else cell.result.plan.request
    settings = {
        name: value if isinstance(value, int | float) else describe(name, value)
        for name, value in cell.settings.items()
    }
    return {
        **settings,
        **({} if "steps" in settings else {"steps": "" if request is None else request.steps}),
        **({} if "seed" in settings else {"seed": "" if request is None else request.seeds[0]}),
        "milliseconds": cell.milliseconds,
        "distance": math.nan if cell.image is None or reference is None else distance(cell.image, reference),
        "error": "" if cell.error is None else str(cell.error),
    }


def _plain(value: Any) -> Any:
    return "" if isinstance(value, float) and math.isnan(value) else value


def _shown(value: Any) -> str:
    """Return a value for people: numbers with four digits."""
    return f"{value:.4g}" if isinstance(value, float) and not math.isnan(value) else str(_plain(value))
