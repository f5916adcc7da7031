"""Contact sheets: many pictures on one, or in a notebook, each under a label that can be read."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont
from PIL.Image import Resampling

LEAST_SIDE, MOST_SIDE = 160, 384  # pixels of a picture's longer side on a sheet
MOST_COLUMNS = 8
_GAP = 8  # pixels between cells
_PAGE, _INK = (250, 250, 250), (20, 20, 20)


def contact_sheet(
    pictures: Sequence[Image.Image], labels: Sequence[str], columns: int | None = None
) -> Image.Image:
    """Return the pictures in rows, each under its label, small ones enlarged and large ones made smaller.

    columns: how many stand beside each other; None makes the sheet about as wide as high, 8 at most.
    """
    across = columns or min(MOST_COLUMNS, math.ceil(math.sqrt(len(pictures))))
    shown = [_at_sheet_size(picture) for picture in pictures]
    width, height = (max(picture.size[axis] for picture in shown) for axis in (0, 1))
    font = ImageFont.load_default(max(14, width // 14))
    line = math.ceil(font.getbbox("Ag0")[3]) + 4
    down = math.ceil(len(shown) / across)
    cell = (width + _GAP, height + line + _GAP)
    sheet = Image.new("RGB", (across * cell[0] + _GAP, down * cell[1] + _GAP), _PAGE)
    draw = ImageDraw.Draw(sheet)
    for index, (picture, label) in enumerate(zip(shown, labels, strict=True)):
        left, top = index % across * cell[0] + _GAP, index // across * cell[1] + _GAP
        draw.text((left + 2, top), fit_label(label, font, width), fill=_INK, font=font)
        sheet.paste(picture, (left, top + line))
    return sheet


def _at_sheet_size(picture: Image.Image) -> Image.Image:
    """Return a picture with a longer side within bounds, its shape kept."""
    longer = max(picture.size)
    scale = min(max(LEAST_SIDE, longer), MOST_SIDE) / longer
    if scale == 1:
        return picture
    width, height = (max(1, round(side * scale)) for side in picture.size)
    return picture.resize((width, height), Resampling.LANCZOS)


def fit_label(label: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """Return the label on one line, cut where it would reach into the next cell."""
    line = " ".join(label.split())
    while line and font.getlength(line) > width:
        line = line[:-1]
    return line


def html_sheet(files: Sequence[bytes], labels: Sequence[str], titles: Sequence[str]) -> str:
    """Return PNG files as a sheet for notebooks: each under its label, with `titles` on hover."""
    cells = []
    for file, label, title in zip(files, labels, titles, strict=True):
        data, title = base64.b64encode(file).decode(), html.escape(title, quote=True)
        cells.append(
            f'<figure style="margin:0"><figcaption>{html.escape(label)}</figcaption>'
            f'<img title="{title}" alt="{title}" src="data:image/png;base64,{data}"></figure>'
        )
    return f'<div style="display:flex;flex-wrap:wrap;gap:4px">{"".join(cells)}</div>'
