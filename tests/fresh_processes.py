"""Is a picture the same in every process? `python -m tests.fresh_processes 180`

Each process draws the same pictures in another order, in other batches, after other calls and
mode switches; every picture must have one sha256 over all of them. tests/test_determinism.py
runs a few.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

PROMPTS = ["red heart, flat style", "an owl, noto style", "grinning face, 3d style"]
MODES = {"lcm": (1, 4), "base": (2,)}


def wanted() -> list[tuple[str, int, int]]:
    """(mode, steps, index of prompt) of each picture; its seed is the index."""
    return [(mode, n, i) for mode, counts in MODES.items() for n in counts for i in range(len(PROMPTS))]


def orders(rng: random.Random) -> Iterator[list[tuple[str, int, int]]]:
    """All pictures, shuffled, cut into batches of one mode and step count."""
    left = wanted()
    rng.shuffle(left)
    while left:
        mode, steps, _ = left[0]
        fitting = [one for one in left if one[:2] == (mode, steps)][: rng.randint(1, 3)]
        left = [one for one in left if one not in fitting]
        yield fitting


def draw(run: int) -> dict[str, str]:
    """Picture → sha256, in run `run`'s order."""
    import fewstep

    rng, seen = random.Random(run), {}
    if run % 3 == 0:  # something else first
        fewstep.generate("snow " * 90, 1, seed=99)
    if run % 4 == 0:
        fewstep.generate("a fox", 2, image=fewstep.generate("a fox", 1, seed=98)[0], seed=98)
    for batch in orders(rng):
        mode, steps, _ = batch[0]
        indices = [index for _, _, index in batch]
        prompts = [PROMPTS[i] for i in indices]
        images = fewstep.generate(prompts, steps, mode, seed=indices, reproducible=True)
        for index, image in zip(indices, images, strict=True):
            seen[f"{mode} {steps} {index}"] = hashlib.sha256(image.tobytes()).hexdigest()
    return seen


def fresh(run: int) -> dict[str, str]:
    """`draw(run)` in a process of its own, with another hash seed."""
    code = f"import json; from tests.fresh_processes import draw; print(json.dumps(draw({run})))"
    env = {**os.environ, "PYTHONHASHSEED": str(run)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


def compare(runs: int, workers: int = 1) -> Counter[Any]:
    """(picture, sha256) → in how many processes."""
    with ThreadPoolExecutor(workers) as pool:
        return Counter(item for seen in pool.map(fresh, range(runs)) for item in seen.items())


if __name__ == "__main__":
    runs = int(sys.argv[1])
    counts = compare(runs, workers=2)
    pictures = len(wanted())
    equal = len(counts) == pictures and set(counts.values()) == {runs}
    print(
        f"{runs} processes, {pictures} pictures each, {len(counts)} different: {'equal' if equal else counts}"
    )
    sys.exit(not equal)
