"""The labelled sheet: pictures in rows and columns, a third axis as blocks, the time under each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from fewstep.comparison.axes import label
from fewstep.comparison.cells import Cell

MOST = 512  # pixels: larger pictures are shown at this side
LEAST = 96  # pixels: a cell is at least so wide, for what is written under it
GAP = 6  # pixels between cells
INK, PALE, PAPER = "black", "#eeeeee", "white"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Sizes of a sheet, in pixels."""

    cell: tuple[int, int]  # of a picture
    font: ImageFont.FreeTypeFont
    small: ImageFont.FreeTypeFont
    margin: int  # at the left, for the labels of rows

    @property
    def line(self) -> int:
        """The height of a line of text."""
        return round(1.4 * self.font.size)


def draw_sheet(axes: Mapping[str, Sequence[Any]], cells: Sequence[Cell | None], title: str) -> Image.Image:
    """Return the sheet; `cells` are in the order of the grid, None where one is not drawn yet."""
    (rows_name, rows), (columns_name, columns), blocks = _sides(axes)
    layout = _layout(cells, [label(rows_name, value) for value in rows] if rows_name else [])
    size = len(rows) * len(columns)
    parts = [
        _block(layout, (rows_name, rows), (columns_name, columns), cells[start : start + size])
        for start in range(0, len(cells), size)
    ]
    titles = [title, *[""] * (len(parts) - 1)]
    if blocks:
        titles = [label(blocks[0], value) for value in blocks[1]]
        titles[0] = f"{title}\n{titles[0]}" if title else titles[0]
    return _stack(layout, parts, titles)


def _sides(axes: Mapping[str, Sequence[Any]]) -> tuple[Any, Any, Any]:
    """Return rows, columns and blocks, each (axis, values); a lone axis lies across."""
    names = [*axes.items()]
    columns = names.pop()
    rows = names.pop() if names else ("", [None])
    return rows, columns, names.pop() if names else None


def _layout(cells: Sequence[Cell | None], row_labels: Sequence[str]) -> Layout:
    pictures = [cell.image for cell in cells if cell is not None and cell.image is not None]
    width = max((picture.width for picture in pictures), default=MOST // 2)
    height = max((picture.height for picture in pictures), default=MOST // 2)
    scale = min(1.0, MOST / max(width, height))
    cell = max(LEAST, round(width * scale)), max(1, round(height * scale))
    size = max(13, cell[0] // 16)
    font, small = _font(size), _font(max(11, size - 2))
    widest = max((font.getlength(text) for text in row_labels), default=0)
    margin = min(math.ceil(widest), cell[0]) + 2 * GAP if row_labels else GAP
    return Layout(cell=cell, font=font, small=small, margin=margin)


def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)  # Pillow's wheels have FreeType
    return font


def _block(
    layout: Layout,
    rows: tuple[str, Sequence[Any]],
    columns: tuple[str, Sequence[Any]],
    cells: Sequence[Cell | None],
) -> Image.Image:
    """Return one grid with its labels."""
    (width, height), line = layout.cell, layout.line
    heads = [wrap(label(columns[0], value), layout.font, width, 3) for value in columns[1]]
    top = line * max(map(len, heads)) + GAP
    down = height + line + GAP
    size = (layout.margin + len(columns[1]) * (width + GAP), top + len(rows[1]) * down)
    block = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(block)
    for column, head in enumerate(heads):
        _write(pen, layout, (layout.margin + column * (width + GAP), 0), head)
    for row, value in enumerate(rows[1]):
        y = top + row * down
        if rows[0]:
            _write(
                pen,
                layout,
                (GAP, y),
                wrap(label(rows[0], value), layout.font, layout.margin - GAP, height // line),
            )
        for column in range(len(columns[1])):
            _cell(
                block,
                layout,
                (layout.margin + column * (width + GAP), y),
                cells[row * len(columns[1]) + column],
            )
    return block


def _cell(block: Image.Image, layout: Layout, corner: tuple[int, int], cell: Cell | None) -> None:
    """Paste a picture with its time below, or write why there is none."""
    pen, (x, y), (width, height) = ImageDraw.Draw(block), corner, layout.cell
    if cell is not None and cell.image is not None:
        picture = cell.image
        scale = min(1.0, width / picture.width, height / picture.height)
        if scale < 1:
            size = (round(picture.width * scale), round(picture.height * scale))
            picture = picture.resize(size, Image.Resampling.LANCZOS)
        block.paste(picture, corner)
        pen.text((x, y + height + 1), f"{cell.milliseconds:,.0f} ms", INK, layout.small)
        return
    pen.rectangle((x, y, x + width - 1, y + height - 1), PALE)
    reason = "not drawn yet" if cell is None else str(cell.error)
    line = round(1.25 * layout.small.size)
    lines = wrap(reason, layout.small, width - 2 * GAP, (height - GAP) // line)
    pen.multiline_text((x + GAP, y + GAP), "\n".join(lines), INK, layout.small, spacing=2)


def _write(pen: ImageDraw.ImageDraw, layout: Layout, corner: tuple[int, int], lines: Sequence[str]) -> None:
    for number, text in enumerate(lines):
        pen.text((corner[0], corner[1] + number * layout.line), text, INK, layout.font)


def _stack(layout: Layout, parts: Sequence[Image.Image], titles: Sequence[str]) -> Image.Image:
    """Return the blocks below each other, each under its title."""
    width = max(part.width for part in parts)
    heads = [
        [line for text in title.split("\n") if text for line in wrap(text, layout.font, width - 2 * GAP, 2)]
        for title in titles
    ]
    height = sum(part.height + layout.line * len(head) + GAP for part, head in zip(parts, heads, strict=True))
    sheet = Image.new("RGB", (width, height + GAP), PAPER)
    pen, y = ImageDraw.Draw(sheet), GAP
    for part, head in zip(parts, heads, strict=True):
        _write(pen, layout, (GAP, y), head)
        y += layout.line * len(head)
        sheet.paste(part, (0, y))
        y += part.height + GAP
    return sheet


def wrap(text: str, font: ImageFont.FreeTypeFont, width: int, lines: int) -> list[str]:
    """Return a text in at most so many lines of so many pixels; what is left over ends in "…"."""
    wrapped, rest = list[str](), " ".join(text.split())
    while rest and len(wrapped) < max(1, lines):
        length = _fitting(rest, font, width)
        space = rest.rfind(" ", 0, length + 1)
        if length < len(rest) and space > 0:
            length = space
        wrapped.append(rest[:length].rstrip())
        rest = rest[length:].lstrip()
    if rest:
        last = wrapped[-1]
        while last and font.getlength(f"{last}…") > width:
            last = last[:-1]
        wrapped[-1] = f"{last}…"
    return wrapped


def _fitting(text: str, font: ImageFont.FreeTypeFont, width: int) -> int:
    """Return how many letters fit into one line; one at least."""
    length = min(len(text), width)  # no letter is narrower than a pixel
    while length > 1 and font.getlength(text[:length]) > width:
        length -= 1
    return length
