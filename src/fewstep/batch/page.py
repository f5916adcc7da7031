"""index.html: the pictures of a batch to look through; and contact sheets.

Prompts and names are data: all is escaped, and the page forbids itself scripts and anything from elsewhere.
"""

from __future__ import annotations

import html
import itertools
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image, ImageDraw, ImageFont

from fewstep.errors import OutputError, RequestError
from fewstep.images.decode import decode_image
from fewstep.images.sheet import fit_label

PICTURES = 200  # of a page
SHEET = (10, 8)  # columns and rows of a sheet
THUMB, LABEL = 192, 34  # pixels: a picture's side on a sheet, and the height of its two lines of text

_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src 'self' file:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title>
<style>
body {{ font: 14px/1.4 system-ui, sans-serif; margin: 16px; color: #222; background: #fafafa }}
main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(200px, 1fr)); gap: 12px }}
figure {{ margin: 0; background: #fff; border: 1px solid #ddd; border-radius: 6px; overflow: hidden }}
img {{ width: 100%; height: auto; display: block; background: #eee }}
figcaption {{ padding: 6px 8px; overflow-wrap: anywhere }}
p {{ margin: 0; display: -webkit-box; -webkit-line-clamp: 4; -webkit-box-orient: vertical; overflow: hidden }}
small {{ color: #666 }}
nav {{ margin: 12px 0; display: flex; flex-wrap: wrap; gap: 8px }}
@media (prefers-color-scheme: dark) {{
 body {{ color: #ddd; background: #181818 }}
 figure {{ background: #222; border-color: #444 }} a {{ color: #8bf }}
}}
</style></head><body>
<h1>{title}</h1>
"""


def page_name(number: int) -> str:
    """Return the file of a page, counted from 1."""
    return "index.html" if number == 1 else f"index-{number}.html"


def render_pages(
    title: str, records: Iterable[dict[str, Any]], count: int
) -> Iterator[tuple[str, list[str]]]:
    """Yield the name and the text of each page; `count` is how many pictures there are in all."""
    pages = max(1, math.ceil(count / PICTURES))
    pictures = iter(records)
    for number in range(1, pages + 1):
        name = html.escape(
            f"{title}: {count} pictures" + (f", page {number} of {pages}" if pages > 1 else "")
        )
        links = _render_links(number, pages)
        figures = [_render_figure(record) for record in itertools.islice(pictures, PICTURES)]
        text = [_HEAD.format(title=name), links, "<main>\n", *figures, "</main>\n", links, "</body></html>\n"]
        yield page_name(number), text


def _render_links(number: int, pages: int) -> str:
    if pages == 1:
        return ""
    near = sorted({1, pages, *range(max(1, number - 3), min(pages, number + 3) + 1)})
    links = (f"<b>{n}</b>" if n == number else f'<a href="{page_name(n)}">{n}</a>' for n in near)
    return f"<nav>{' '.join(links)}</nav>\n"


def _render_figure(record: dict[str, Any]) -> str:
    """Return a picture with its prompt, and how it was made."""
    options = record["options"]
    caption = f"line {record['line']} · {options['mode']}, {options['steps']} steps, seed {options['seed']}"
    source = html.escape(quote(record["file"]), quote=True)
    prompt = html.escape(options["prompt"], quote=True)
    width, height = options["width"], options["height"]
    return (
        f'<figure><a href="{source}"><img src="{source}" alt="{prompt}" title="{prompt}" loading="lazy" '
        f'width="{width}" height="{height}"></a>\n'
        f"<figcaption><p>{prompt}</p><small>{html.escape(caption)}<br>{html.escape(record['file'])}</small>"
        "</figcaption></figure>\n"
    )


def check_sheet(sheet: str | Path, out: Path) -> None:
    """Check that a sheet is a PNG or JPEG, and outside the folder of a data set; raises `RequestError`."""
    path = Path(sheet)
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise RequestError(f"sheet={str(sheet)!r}: end it in .png or .jpg")
    if Path(os.path.abspath(out)) in Path(os.path.abspath(path)).parents:
        raise RequestError(f"sheet={str(sheet)!r} would be among the pictures: put it beside {str(out)!r}")


def write_sheets(sheet: str | Path, out: Path, records: Iterable[dict[str, Any]]) -> list[Path]:
    """Write pictures small, with their lines and seeds, onto sheets; returns their paths.

    After the first they have -2, -3, ... before their ending. Raises `OutputError`.
    """
    path, pictures, written = Path(sheet), iter(records), list[Path]()
    while page := list(itertools.islice(pictures, SHEET[0] * SHEET[1])):
        target = path if not written else path.with_stem(f"{path.stem}-{len(written) + 1}")
        try:
            draw_sheet(out, page).save(target)
        except OSError as error:
            raise OutputError(f"{str(target)!r} cannot be written: {error.strerror or error}") from error
        written.append(target)
    return written


def draw_sheet(out: Path, records: list[dict[str, Any]]) -> Image.Image:
    """Return one sheet."""
    columns = min(SHEET[0], len(records))
    rows = math.ceil(len(records) / columns)
    sheet = Image.new("RGB", (columns * THUMB, rows * (THUMB + LABEL)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for place, record in enumerate(records):
        left, top = place % columns * THUMB, place // columns * (THUMB + LABEL)
        thumb = decode_image(out / record["file"], record["file"]).image.convert("RGB")
        scale = min((THUMB - 8) / thumb.width, (THUMB - 8) / thumb.height)
        thumb = thumb.resize((max(1, round(thumb.width * scale)), max(1, round(thumb.height * scale))))
        sheet.paste(thumb, (left + (THUMB - thumb.width) // 2, top + (THUMB - thumb.height) // 2))
        options = record["options"]
        for line, text in enumerate((f"{record['line']}: {options['prompt']}", f"seed {options['seed']}")):
            label = fit_label(" ".join(text.split())[:80], font, THUMB - 8)
            draw.text((left + 4, top + THUMB - 2 + 15 * line), label, "black", font)
    return sheet
