"""Draw 24 prompts by every bundled mode on one sheet, and print the time of one picture in each.

python examples/grid.py docs/grid.png
"""

from __future__ import annotations

import statistics
import sys

from PIL import Image, ImageDraw

import fewstep

PROMPTS = (
    "a red heart, flat style",
    "a smiling cat face, 3d style",
    "grinning face, noto style",
    "a sun, noto style",
    "a rocket, 3d style",
    "a pizza, flat style",
    "a green apple, 3d style",
    "an owl, noto style",
    "a crescent moon, flat style",
    "a soccer ball, 3d style",
    "flag: japan, noto style",
    "a fire, 3d style",
    "a mushroom, flat style, on a blue background",
    "a ghost, 3d style, on a purple background",
    "an alarm clock, noto style",
    "a snowman, flat style",
    "a tulip, 3d style",
    "a pig face, flat style",
    "a banana, noto style",
    "an umbrella, 3d style",
    "a house, flat style, on a yellow background",
    "a frog, noto style",
    "a key, 3d style",
    "a smiling face with sunglasses, 3d style",
)
COLUMNS = (
    ("base", 50), ("base", 4), ("turbo", 1), ("turbo", 4), ("lcm", 1), ("lcm", 4), ("lcm-lora", 4)
)  # fmt: skip
CELL, LABEL = 128, 14  # pixels


def main(path: str) -> None:
    """Two prompts a row, their columns side by side."""
    half = len(PROMPTS) // 2
    sheet = Image.new("RGB", (2 * len(COLUMNS) * CELL, half * (CELL + LABEL) + LABEL), "white")
    draw = ImageDraw.Draw(sheet)
    for column, (mode, steps) in enumerate(COLUMNS):
        with fewstep.load("tiny", mode) as engine:
            engine.generate(PROMPTS[0], steps, seed=0)  # warm up
            results = [engine.generate(prompt, steps, seed=7) for prompt in PROMPTS]
        times = [result.timings["total"] for result in results]
        print(f"{mode} {steps:2} steps: {1000 * statistics.median(times):.0f} ms (median of {len(times)})")
        for index, result in enumerate(results):
            x = (index // half * len(COLUMNS) + column) * CELL
            y = LABEL + index % half * (CELL + LABEL)
            sheet.paste(result[0], (x, y + LABEL))
            draw.text((x, 0), f"{mode} {steps}", fill="black")
            if column == 0:
                draw.text((x, y), PROMPTS[index], fill="black")
    sheet.save(path, optimize=True)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "grid.png")
