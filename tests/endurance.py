"""An engine under long use: `python -m tests.endurance` on the bundled model, 8 x 25 pictures and 500 runs.

tests/test_threads.py runs a part of each on a small one.
"""

from __future__ import annotations

import gc
import os
import random
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image

import fewstep
from fewstep import Engine

THREADS = 8


def options_of(number: int, image: Image.Image) -> dict[str, Any]:
    """Return one of many different requests."""
    rng = random.Random(number)
    options: dict[str, Any] = {"prompt": f"fox {number}", "steps": rng.choice((1, 2)), "seed": number}
    match rng.randrange(4):
        case 1:
            options |= {"image": image, "strength": 0.5}
        case 2:
            options |= {"image": image, "mask": image.convert("L"), "strength": 0.9}
        case 3:
            options |= {"width": image.width // 3 * 2 // 8 * 8, "height": image.height // 2 // 8 * 8}
    return options


def draw_together_and_alone(engine: Engine, image: Image.Image, each: int) -> tuple[list[bytes], list[bytes]]:
    """Return the pictures of 8 threads, so many each, and the same drawn one after the other, exactly."""
    barrier = threading.Barrier(THREADS)

    def work(thread: int) -> list[bytes]:
        barrier.wait()
        return [draw(number) for number in range(thread * each, (thread + 1) * each)]

    def draw(number: int) -> bytes:
        return engine.generate(**options_of(number, image), reproducible=True)[0].tobytes()

    with ThreadPoolExecutor(THREADS) as pool:
        together = [picture for pictures in pool.map(work, range(THREADS)) for picture in pictures]
    return together, [draw(number) for number in range(THREADS * each)]


def resources_after(engine: Engine, settle: int, runs: int, side: int) -> list[tuple[int, int, int]]:
    """Return pages of memory, descriptors and threads after `settle` runs, and after `runs` in all."""
    seen = []
    for run in range(1, runs + 1):
        engine.generate(f"fox {run % 300}", 1, seed=run, width=side, height=side)
        if run in (settle, runs):
            gc.collect()
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            seen.append((pages, len(os.listdir("/proc/self/fd")), threading.active_count()))
    return seen


def main() -> int:
    """Run both, and print what came out; returns 1 where anything differs or grows."""
    with fewstep.load("tiny", "turbo") as engine:
        image = engine.generate("a fox", 1, seed=0)[0]
        together, alone = draw_together_and_alone(engine, image, 25)
        equal = together == alone
        print(f"{len(alone)} pictures, {len(set(alone))} different; in {THREADS} threads equal: {equal}")
        before, after = resources_after(engine, 100, 500, image.width)
    print(f"500 runs: pages, descriptors, threads {before} after 100, {after} at the end")
    return int(not equal or after[0] > 1.05 * before[0] or after[1:] != before[1:])


if __name__ == "__main__":
    sys.exit(main())
