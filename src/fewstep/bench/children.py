"""Arms in processes of their own: where two do not fit in memory, and where a start is what is measured.

`python -m fewstep.bench.children` reads one JSON line on stdin, draws, and answers with a line as each
picture is there; pixels of the first go to a file.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from fewstep.bench.arms import Case, open_arm
from fewstep.bench.timing import Pictures, Timing, time_call
from fewstep.errors import FewstepError

SPIN = "while True:\n    pass"


@dataclass(frozen=True, kw_only=True)
class ChildRun:
    """What a process of one arm took, in seconds."""

    loading: float  # of the model, imports done
    first: float  # from the start of the process to the first picture
    draws: tuple[float, ...]  # one each, the first left out
    pictures: Pictures  # of the first


def run_child(arm: str, case: Case, *, draws: int, threads: int) -> ChildRun:
    """Return what a new process took to load an arm and to draw with it; raises `FewstepError`."""
    with TemporaryDirectory() as folder:
        picture = str(Path(folder) / "first.npy")
        order = {"arm": arm, "case": asdict(case), "draws": draws, "threads": threads, "picture": picture}
        started = time.perf_counter()
        child = subprocess.Popen(
            [sys.executable, "-m", "fewstep.bench.children"], text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        with child:
            assert child.stdin is not None
            assert child.stdout is not None
            assert child.stderr is not None
            child.stdin.write(json.dumps(order))
            child.stdin.close()
            answers: list[dict[str, float]] = []
            first = 0.0
            for line in child.stdout:
                if line.startswith("{"):
                    answers.append(json.loads(line))
                    first = first or time.perf_counter() - started
            errors = child.stderr.read().splitlines()
        if child.returncode:
            raise FewstepError(f"{arm} failed on {case.title}: {errors[-1] if errors else child.returncode}")
        pictures = np.load(picture)
    return ChildRun(
        loading=answers[0]["loading"], first=first, pictures=pictures,
        draws=tuple(answer["draw"] for answer in answers[1:]),
    )  # fmt: skip


def alternate(
    arms: Sequence[str], case: Case, *, rounds: int, draws: int, threads: int
) -> Mapping[str, list[ChildRun]]:
    """Return the runs of each arm, in processes that take turns: one is there at a time."""
    runs: dict[str, list[ChildRun]] = {arm: [] for arm in arms}
    for turn in range(rounds):
        for arm in arms if turn % 2 == 0 else reversed(arms):
            runs[arm].append(run_child(arm, case, draws=draws, threads=threads))
    return runs


def draw_timings(runs: Mapping[str, Sequence[ChildRun]]) -> list[Timing]:
    """Return the times of pictures after the first."""
    return [
        Timing(arm=arm, seconds=tuple(s for run in done for s in run.draws)) for arm, done in runs.items()
    ]


def start_timings(runs: Mapping[str, Sequence[ChildRun]]) -> list[Timing]:
    """Return the times from a process's start to its first picture: imports, loading, drawing."""
    return [Timing(arm=arm, seconds=tuple(run.first for run in done)) for arm, done in runs.items()]


@contextmanager
def busy_neighbour() -> Iterator[None]:
    """Have another process burn a core in here."""
    neighbour = subprocess.Popen([sys.executable, "-c", SPIN])
    try:
        yield
    finally:
        neighbour.kill()
        neighbour.wait()


def run_command(command: Sequence[str], folder: str) -> None:
    """Run a command in a folder; raises `FewstepError` where it fails."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stderr or done.stdout).splitlines()
        raise FewstepError(f"{' '.join(command)[:80]} failed: {lines[-1] if lines else done.returncode}")


def _answer(**numbers: float) -> None:
    sys.stdout.write(json.dumps(numbers) + "\n")
    sys.stdout.flush()


def main(order: Mapping[str, Any]) -> int:
    """Draw what a line orders; the child's side."""
    import torch

    torch.set_num_threads(order["threads"])
    started = time.perf_counter()
    draw = open_arm(order["arm"], Case(**order["case"]))
    loading = time.perf_counter() - started
    pictures = draw(0)
    _answer(loading=loading)
    np.save(order["picture"], pictures)
    for turn in range(1, order["draws"] + 1):
        _answer(draw=time_call(draw, turn)[0])
    return 0


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.stdin.read())))
