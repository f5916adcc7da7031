"""Measure a batch: pictures a second against loops written by hand; a million lines planned in flat memory.

    python tests/batch_scale.py speed [--pictures 1000] [--diffusers]
    python tests/batch_scale.py lines [--lines 1000000]

`speed` draws a JSONL of mixed modes, steps, sizes and seeds with the bundled model: by `batch.run` and by a
loop over `fewstep.generate`; and its lines of one mode by a loop over a pipeline of diffusers.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fewstep import batch

MODES = {"turbo": (1, 2), "lcm": (1, 2, 4), "lcm-lora": (2, 4)}
COLOURS, THINGS = ("red", "blue", "green"), ("cat", "sun", "heart")
SIZES = ((128, 128), (96, 128), (128, 96))


def write_jobs(path: Path, count: int) -> list[dict[str, Any]]:
    """Write, and return, lines whose options change from one to the next."""
    chance = random.Random(0)
    rows = []
    for number in range(count):
        mode = chance.choice(list(MODES))
        width, height = chance.choice(SIZES)
        rows.append({
            "prompt": f"a {chance.choice(COLOURS)} {chance.choice(THINGS)}, 3d style", "mode": mode,
            "steps": chance.choice(MODES[mode]), "seed": number, "width": width, "height": height,
        })  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def by_batch(rows: list[dict[str, Any]], jobs: Path, out: Path) -> None:
    """Draw all as `fewstep batch` does."""
    assert sum(outcome.state == "drawn" for outcome in batch.run(jobs, out)) == len(rows)


def by_generate(rows: list[dict[str, Any]], jobs: Path, out: Path) -> None:
    """Draw all as a loop over `fewstep.generate` does."""
    import fewstep

    out.mkdir()
    for number, row in enumerate(rows):
        options = {name: value for name, value in row.items() if name != "prompt"}
        fewstep.generate(row["prompt"], progress=False, **options).save(out / f"{number}.png")
    fewstep.unload()


def by_diffusers(rows: list[dict[str, Any]], jobs: Path, out: Path) -> None:
    """Draw the lines of the mode turbo as a loop over diffusers' pipeline does."""
    import torch
    from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel

    import fewstep

    out.mkdir()
    root = Path(fewstep.__file__).parent / "tiny"
    pipe = StableDiffusionXLPipeline.from_pretrained(root, add_watermarker=False)
    pipe.unet = UNet2DConditionModel.from_pretrained(root / "unet_turbo")
    pipe.set_progress_bar_config(disable=True)
    for number, row in enumerate(rows):
        generator = torch.Generator("cpu").manual_seed(row["seed"])
        pipe(
            row["prompt"], num_inference_steps=row["steps"], guidance_scale=0.0, width=row["width"],
            height=row["height"], generator=generator,
        ).images[0].save(out / f"{number}.png")  # fmt: skip


def measure(draw: Callable[..., None], rows: list[dict[str, Any]], jobs: Path, out: Path) -> float:
    """Return pictures a second, loading included, and say them with the processor's time for each."""
    started, used = time.perf_counter(), time.process_time()
    draw(rows, jobs, out)
    seconds, used = time.perf_counter() - started, time.process_time() - used
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{draw.__name__:13} {len(rows)} pictures, {len(rows) / seconds:.2f}/s, "
        f"{1000 * used / len(rows):.1f} ms of processor each, {memory:.0f} MiB at most",
        flush=True,
    )
    return len(rows) / seconds


def plan_lines(count: int, work: Path) -> None:
    """Plan many lines, and say how the memory grew."""
    jobs = work / "jobs.jsonl"
    with jobs.open("w") as file:
        for number in range(count):
            file.write(
                json.dumps({"prompt": f"a fox {number}", "seed": number, "steps": 1 + number % 4}) + "\n"
            )
    batch.plan([{"prompt": "a"}])
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    planned = batch.plan(jobs)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert planned.pictures == count
    seconds = time.perf_counter() - started
    print(f"{count} lines planned in {seconds:.0f} s, {time.process_time():.0f} s of processor; "
          f"memory grew by {grown / 1024:.0f} MiB")  # fmt: skip


def main() -> None:
    """Run what is asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("speed", "lines"))
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument(
        "--diffusers", action="store_true", help="the lines of turbo against diffusers as well"
    )
    arguments = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="batch-scale-"))
    try:
        if arguments.what == "lines":
            plan_lines(arguments.lines, work)
            return
        rows = write_jobs(work / "jobs.jsonl", arguments.pictures)
        ours = measure(by_batch, rows, work / "jobs.jsonl", work / "batch")
        theirs = measure(by_generate, rows, work / "jobs.jsonl", work / "generate")
        print(f"{ours / theirs:.2f} times the loop over generate")
        if arguments.diffusers:
            turbo = [row for row in rows if row["mode"] == "turbo"]
            (work / "turbo.jsonl").write_text("".join(json.dumps(row) + "\n" for row in turbo))
            ours = measure(by_batch, turbo, work / "turbo.jsonl", work / "turbo")
            theirs = measure(by_diffusers, turbo, work / "turbo.jsonl", work / "diffusers")
            print(f"{ours / theirs:.2f} times the loop over diffusers")
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
