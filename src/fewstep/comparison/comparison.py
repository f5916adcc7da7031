"""`compare`: options as lists → a `Comparison`: cells as they are drawn, a sheet, a table and a plot."""

from __future__ import annotations

import base64
import io
import os
import secrets
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from fewstep import metadata, values
from fewstep.cancel import CancelToken
from fewstep.comparison import plot
from fewstep.comparison.axes import agree, grid, split_axes
from fewstep.comparison.cells import Cell, Planned, draw_cells, plan_cells
from fewstep.comparison.distance import Against, Distance, find_references, rmse
from fewstep.comparison.sheet import draw_sheet
from fewstep.comparison.table import Table, make_table
from fewstep.errors import FewstepError, OutputError, RequestError
from fewstep.files.output import write_file
from fewstep.request.options import OPTIONS

MAX_REPEATS = 1000


class Comparison:
    """The same picture by several settings. It draws while it is read, and once.

    comparison = fewstep.compare("a fox", mode=["turbo", "lcm"], steps=[1, 4], seed=7)
    for cell in comparison:  # as they are drawn, engine by engine
        print(cell.settings, cell.milliseconds)
    comparison.sheet().save("fox.png")  # draws what is not drawn yet, as all others do
    """

    def __init__(
        self,
        axes: Mapping[str, Sequence[Any]],
        planned: Sequence[Planned],
        refused: Mapping[int, Cell],
        drawing: Generator[tuple[int, Cell], None, None],
        title: str = "",
    ):
        """Use `fewstep.compare`. refused: those that cannot be drawn, by their place in the grid."""
        self.axes: Mapping[str, Sequence[Any]] = axes
        self.title = title
        self._settings, self._planned, self._drawing = grid(axes), planned, drawing
        self._cells: dict[int, Cell] = dict(refused)  # by place, in the order in which they came

    def __len__(self) -> int:
        return len(self._settings)

    def __iter__(self) -> Iterator[Cell]:
        """Yield each cell once it is there: first those that cannot be drawn, then as they are drawn."""
        done = 0
        while done < len(self):
            if done == len(self._cells) and not self._draw_next():
                return
            yield [*self._cells.values()][done]
            done += 1

    def _draw_next(self) -> bool:
        """Draw one more cell; returns whether there was one. There is none after a cancelled one."""
        place, cell = next(self._drawing, (-1, None))
        if cell is not None:
            self._cells[place] = cell
        if len(self._cells) == len(self):
            self._drawing.close()  # lets the last engine go
        return cell is not None

    @property
    def cells(self) -> tuple[Cell, ...]:
        """All cells in the order of the sheet, row by row."""
        for _ in self:
            pass
        return tuple(self._cells[place] for place in sorted(self._cells))

    def cell(self, **settings: Any) -> Cell:
        """Return the only cell with these settings: `cell(mode="lcm", steps=4)`; raises `RequestError`."""
        places = [
            place for place, cell_settings in enumerate(self._settings)
            if agree(cell_settings, settings)
        ]  # fmt: skip
        if len(places) != 1:
            raise RequestError(
                f"{len(places)} cells have {settings}: name one value of each of {', '.join(self.axes)}"
            )
        while places[0] not in self._cells and self._draw_next():
            pass
        if places[0] not in self._cells:
            raise FewstepError(f"the cell {settings} is not drawn: the comparison was cancelled")
        return self._cells[places[0]]

    def sheet(self) -> Image.Image:
        """Return all pictures in rows and columns, a third axis as blocks, labelled, with milliseconds.

        A time is the median of a cell's calls, prompt to picture; loading and an engine's first call are
        not in it. A cell that could not be drawn says why.
        """
        for _ in self:
            pass
        return draw_sheet(self.axes, [self._cells.get(place) for place in range(len(self))], self.title)

    def table(self, against: Against = None, distance: Distance = rmse) -> Table:
        """Return a row for each cell, a list of dicts: axes, steps, seed, milliseconds, distance, error.

        against: what the pictures are compared with: the settings of a cell, {"mode": "base", "steps": 25},
            of which each cell keeps those that are not named, its seed for one; or a picture. None is the
            cell that evaluates the network most often, for each prompt, seed and size.
        distance: of two PIL images; `rmse` is that of their colours.
        """
        cells = self.cells
        references = find_references(cells, self._planned, against)
        return make_table(cells, references, distance)

    def plot(
        self,
        against: Against = None,
        distance: Distance = rmse,
        path: str | os.PathLike[str] | None = None,
        *,
        overwrite: bool = False,
    ) -> Image.Image:
        """Return the time of a picture against its distance to a reference, which `table` explains.

        A point is a mean over prompts and seeds. path: a PNG to write it to as well. Needs matplotlib:
        fewstep[plot].
        """
        plot.require_matplotlib()
        targets = [] if path is None else metadata.output_paths(path, (), overwrite=overwrite)
        png = plot.draw_plot(
            self.axes, self.table(against, distance), getattr(distance, "__name__", "distance")
        )
        for target in targets:
            write_file(target, png, overwrite=overwrite)
        return Image.open(io.BytesIO(png))

    def save(
        self, path: str | os.PathLike[str], *, overwrite: bool = False, against: Against = None
    ) -> list[Path]:
        """Write the sheet as PNG, and beside it the table as CSV; returns both paths."""
        png, table = self.paths(path, overwrite=overwrite)
        facts = [cell.result.facts() for cell in self.cells if cell.result is not None]
        edited = any(cell.result is not None and cell.result.edited for cell in self.cells)
        write_file(
            png, metadata.encode(self.sheet(), {"comparison": facts}, edited=edited), overwrite=overwrite
        )
        write_file(table, self.table(against).csv().encode(), overwrite=overwrite)
        return [png, table]

    @staticmethod
    def paths(path: str | os.PathLike[str], *, overwrite: bool = False) -> tuple[Path, Path]:
        """Return where `save` writes sheet and table; raises `OutputError` where it cannot."""
        (png,) = metadata.output_paths(path, (), overwrite=overwrite)
        if png.suffix.lower() != ".png":
            raise OutputError(
                f"{str(path)!r}: sheets are saved as PNG; type {str(png.with_suffix('.png'))!r}"
            )
        table = png.with_suffix(".csv")
        if os.path.lexists(table) and not overwrite:
            raise OutputError(f"{str(table)!r} exists: choose another name, or overwrite=True (--overwrite)")
        return png, table

    def _repr_html_(self) -> str:
        """Return the notebook's view: the sheet, and the table below."""
        buffer = io.BytesIO()
        self.sheet().save(buffer, "PNG", compress_level=1)
        data = base64.b64encode(buffer.getvalue()).decode()
        return f'<img alt="comparison" src="data:image/png;base64,{data}">{self.table()._repr_html_()}'

    def __repr__(self) -> str:
        axes = ", ".join(f"{name} of {len(members)}" for name, members in self.axes.items())
        return f"<fewstep.Comparison: {axes}; {len(self._cells)} of {len(self)} cells are there>"


def compare(  # noqa: PLR0913  as `generate`, whose options these are
    prompt: Any,
    steps: Any = None,
    mode: Any = None,
    *,
    model: Any = "tiny",
    prompt_2: Any = None,
    negative_prompt: Any = "",
    long_prompt: Any = "chunk",
    guidance: Any = None,
    guidance_rescale: Any = 0.0,
    seed: Any = None,
    width: Any = None,
    height: Any = None,
    image: Any = None,
    mask: Any = None,
    only_masked: Any = False,
    padding: Any = 32,
    tiles: Any = False,
    strength: Any = None,
    scheduler: Any = None,
    sampler: Any = None,
    eta: Any = None,
    timesteps: Any = None,
    reproducible: Any = False,
    loras: Any = (),
    control: Any = (),
    reference: Any = (),
    accelerator: Any = "",
    accelerator_weight: Any = None,
    vae: Any = "",
    embeddings: Any = (),
    prediction: Any = "",
    revision: Any = "",
    commercial: bool = False,
    device: Any = "auto",
    precision: Any = "auto",
    offload: Any = "auto",
    runtime: Any = "auto",
    repeats: int = 1,
    cancel: CancelToken | None = None,
) -> Comparison:
    """Return the same picture by several settings: those that are given as lists, up to three of them.

        fewstep.compare("a fox", mode=["turbo", "lcm", "base"], steps=[1, 4, 25])

    The options are those of `generate`, the prompt among them; each list is an axis of the sheet. What is
    a list itself, such as `loras`, is an axis as a list of lists: `loras=[[], ["fx"], [("fx", 0.5)]]`.
    Where no seed is given one is drawn, for all. A cell that cannot be drawn, in steps that its mode does
    not allow for one, says why; raises `RequestError` where none can be.

    It draws while it is read, and loads each engine once, one at a time: `for cell in comparison`,
    `comparison.sheet()`, `.table()`, `.plot()`, `.save("fox.png")`; in a notebook it shows itself.
    repeats: calls of each cell; its time is their median.
    cancel: stops it at its next step; what is drawn until then stays.
    """
    options = {
        name: value for name, value in locals().items() if name in ("prompt", "steps", "mode", *OPTIONS)
    }
    changed = {
        name: value
        for name, value in options.items()
        if name not in OPTIONS or value is not OPTIONS[name].default
    }
    repeat_count = values.whole(repeats)
    if type(repeat_count) is not int or not 1 <= repeat_count <= MAX_REPEATS:
        raise RequestError(f"repeats={values.shown(repeats)}: give a whole number from 1 to {MAX_REPEATS}")
    if seed is None:
        changed["seed"] = secrets.randbelow(2**32)
    axes, shared = split_axes(changed)
    planned, refused = plan_cells(grid(axes), shared)
    title = shared["prompt"] if isinstance(shared.get("prompt"), str) else ""
    return Comparison(axes, planned, refused, draw_cells(planned, repeat_count, cancel), title)
