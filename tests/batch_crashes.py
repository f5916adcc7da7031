"""Kill a batch at every point, start it again, and count: N files, N records, equal bytes.

    python tests/batch_crashes.py [--random 200] [--resume 20] [--races 50] [--real]

Each run is a process of its own, forked before torch is there, and ended by SIGKILL. Without --real a fake
engine draws, so that hundreds of kills take a minute; with it, the bundled model.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from fewstep import batch, testing
from fewstep.batch import points
from fewstep.batch.manifest import read_pictures
from fewstep.errors import FewstepError, JobLockedError

LOCKED = 75
PICTURES = 13  # of the jobs; set by --lines
Bytes = dict[str, str]  # file → hash


def jobs(lines: int = 14) -> list[dict[str, object]]:
    """Two engines, three calls of more than one picture, one of a single picture, and a bad line."""
    rows: list[dict[str, object]] = [
        {
            "prompt": f"a red heart {number}",
            "steps": 1 + number % 2,
            "mode": ("lcm", "turbo")[number % 3 == 0],
        }
        for number in range(lines - 2)
    ]
    return [
        *rows,
        {"prompt": "a sun", "steps": 99},
        {"prompt": "an owl", "width": 96, "file_name": "owls/1.png"},
    ]


def hashes(out: Path) -> Bytes:
    """Return every file that a user sees, but for timings."""
    return {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file() and ".batch" not in path.parts and path.name not in ("timings.csv", "index.html")
    }


TARS = 0  # pictures of a shard; set by --tars


def draw(rows: list[dict[str, object]], out: Path, *, real: bool) -> None:
    """Run a batch to its end."""
    with nullcontext() if real else testing.fake(delay=0.001):
        for _ in batch.run(rows, out, batch=4, tars=TARS):
            pass


def in_child(work: Callable[[], object]) -> int:
    """Run `work` in a child process; returns its process id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        work()
        code = 0
    except JobLockedError:
        code = LOCKED
    except FewstepError as error:
        sys.stderr.write(f"{error}\n")
    finally:
        os._exit(code)


def wait(child: int) -> int:
    """Return a child's exit code; a signal's is negative."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_at(point: str, time_of: int) -> None:
    """From here on, end this process at the n-th time that a point is reached."""
    counts = dict.fromkeys(points.POINTS, 0)

    def kill(name: str) -> None:
        counts[name] += 1
        if name == point and counts[name] == time_of:
            os.kill(os.getpid(), signal.SIGKILL)

    points.listener = kill


def count_points(rows: list[dict[str, object]], out: Path, *, real: bool) -> dict[str, int]:
    """Return how often each point is reached in a run."""
    reader, writer = os.pipe()
    counts = dict.fromkeys(points.POINTS, 0)

    def work() -> None:
        def count(name: str) -> None:
            counts[name] += 1

        points.listener = count
        draw(rows, out, real=real)
        os.write(writer, json.dumps(counts).encode())

    assert wait(in_child(work)) == 0
    counted: dict[str, int] = json.loads(os.read(reader, 1 << 16))
    return counted


def member_names(path: Path) -> list[str]:
    """Return the names in a shard."""
    with tarfile.open(path) as shard:
        return shard.getnames()


def check(out: Path, reference: Bytes) -> None:
    """Check that a folder holds the pictures, each once, recorded once, and nothing else."""
    assert hashes(out) == reference, set(hashes(out).items()) ^ set(reference.items())
    pictures = PICTURES if TARS else sum(name.endswith(".png") for name in reference)
    assert len({record["key"] for record in read_pictures(out / ".batch")}) == pictures
    if TARS:
        names = [name for path in sorted(out.glob("*.tar")) for name in member_names(path)]
        assert len(names) == len(set(names)) == 3 * pictures
        assert not list((out / ".batch" / "parts").iterdir())
    else:
        listed = [json.loads(line)["file_name"] for line in (out / "metadata.jsonl").read_text().splitlines()]
        assert sorted(listed) == sorted(name for name in reference if name.endswith(".png"))
        assert len(set(listed)) == len(listed) == pictures
    assert not list((out / ".batch" / "partial-1-of-1").iterdir())


def every_point(
    rows: list[dict[str, object]], work: Path, reference: Bytes, *, real: bool, all_times: bool
) -> Iterator[str]:
    """Kill at each point, at its first, middle and last time; yields what was done."""
    counts = count_points(rows, work / "counted", real=real)
    for point, times in counts.items():
        chosen = sorted({1, (times + 1) // 2, times} if times else ())
        for time_of in chosen if all_times else chosen[len(chosen) // 2 :][:1]:
            out = work / "killed"
            shutil.rmtree(out, ignore_errors=True)

            def killed(point: str = point, time_of: int = time_of, out: Path = out) -> None:
                kill_at(point, time_of)
                draw(rows, out, real=real)

            assert wait(in_child(killed)) == -signal.SIGKILL, (point, time_of)
            assert wait(in_child(partial(draw, rows, out, real=real))) == 0
            check(out, reference)
            yield f"{point} {time_of} of {times}"


def kill_randomly(
    rows: list[dict[str, object]], out: Path, longest: float, chance: random.Random, *, real: bool
) -> bool:
    """Start a run and kill it some time later; returns whether it was still running."""
    child = in_child(lambda: draw(rows, out, real=real))
    time.sleep(chance.uniform(0, longest))
    os.kill(child, signal.SIGKILL)
    return wait(child) == -signal.SIGKILL


def random_kills(
    rows: list[dict[str, object]], work: Path, reference: Bytes, counts: tuple[int, int], *, real: bool
) -> Iterator[str]:
    """Kill at random times: once each, and then several times in a row while it is resumed."""
    chance = random.Random(0)
    started = time.monotonic()
    assert wait(in_child(lambda: draw(rows, work / "timed", real=real))) == 0
    longest = time.monotonic() - started
    kills, resumes = counts
    hit = 0
    for _ in range(kills):
        out = work / "random"
        shutil.rmtree(out, ignore_errors=True)
        hit += kill_randomly(rows, out, longest, chance, real=real)
        assert wait(in_child(partial(draw, rows, out, real=real))) == 0
        check(out, reference)
    yield f"{kills} random kills, {hit} of them while it ran"
    out, hit = work / "resumed", 0
    shutil.rmtree(out, ignore_errors=True)
    for _ in range(resumes):
        hit += kill_randomly(rows, out, longest, chance, real=real)
    assert wait(in_child(lambda: draw(rows, out, real=real))) == 0
    check(out, reference)
    yield f"{resumes} kills one after the other while it resumed, {hit} of them while it ran"


def races(rows: list[dict[str, object]], work: Path, reference: Bytes, count: int) -> Iterator[str]:
    """Start two runners at once on one folder."""
    winners = {"one": 0, "after the other": 0}
    for _ in range(count):
        out = work / "raced"
        shutil.rmtree(out, ignore_errors=True)
        children = [in_child(partial(draw, rows, out, real=False)) for _ in range(2)]
        codes = sorted(wait(child) for child in children)
        assert codes in ([0, LOCKED], [0, 0]), codes
        winners["one" if LOCKED in codes else "after the other"] += 1
        check(out, reference)
    yield f"{count} races of two runners: {winners}"


def main() -> None:
    """Run all, and print what was done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--random", type=int, default=200)
    parser.add_argument("--resume", type=int, default=20)
    parser.add_argument("--races", type=int, default=50)
    parser.add_argument("--lines", type=int, default=14)
    parser.add_argument("--middle", action="store_true", help="kill at each point once, not three times")
    parser.add_argument("--real", action="store_true", help="draw with the bundled model")
    parser.add_argument("--tars", type=int, default=0, help="write shards of so many pictures")
    arguments = parser.parse_args()
    global PICTURES, TARS
    rows, PICTURES, TARS = jobs(arguments.lines), arguments.lines - 1, arguments.tars
    work = Path(tempfile.mkdtemp(prefix="batch-crashes-"))
    try:
        if arguments.real:
            assert wait(in_child(partial(draw, rows, work / "reference", real=True))) == 0
        else:
            draw(rows, work / "reference", real=False)  # here, so that children have all imported
        reference = hashes(work / "reference")
        check(work / "reference", reference)
        points_done = list(
            every_point(rows, work, reference, real=arguments.real, all_times=not arguments.middle)
        )
        names = {done.rsplit(" ", 3)[0] for done in points_done}
        print(f"{len(points_done)} kills at {len(names)} points: {', '.join(points_done)}", flush=True)
        counts = (arguments.random, arguments.resume)
        for done in random_kills(rows, work, reference, counts, real=arguments.real):
            print(done, flush=True)
        for done in races(rows, work, reference, arguments.races) if not arguments.real else ():
            print(done, flush=True)
        print(f"each time {PICTURES} files, {PICTURES} records, equal bytes")
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
