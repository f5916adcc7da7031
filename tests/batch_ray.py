"""Batches with Ray: two workers against one process, kills of workers and of drivers, a cluster of two nodes.

python tests/batch_ray.py [--pictures 60] [--kills 15]
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fewstep import batch
from fewstep.batch import ray as batch_ray
from tests.batch_crashes import hashes

PROGRAM = """
import sys
from tests.batch_ray import draw, jobs
draw(jobs(int(sys.argv[1])), sys.argv[2], 2)
"""


def jobs(count: int) -> list[dict[str, Any]]:
    """Lines of two modes."""
    return [
        {"prompt": f"a red heart {number}", "mode": ("turbo", "lcm")[number % 2], "steps": 1, "seed": number}
        for number in range(count)
    ]


def draw(rows: list[dict[str, Any]], out: Path | str, workers: int) -> None:
    """Draw by workers; 0: by this process."""
    options: batch.BatchOptions = {"batch": 4}
    outcomes = (
        batch_ray.run(rows, out, workers=workers, **options) if workers else batch.run(rows, out, **options)
    )
    for outcome in outcomes:
        assert outcome.state in ("drawn", "kept"), outcome


def workers_of(driver: int) -> list[int]:
    """Return the processes that draw for a driver, by their titles."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            title = (folder / "cmdline").read_bytes()
            session = os.getsid(int(folder.name))
        except OSError:
            continue
        if b"ray::" in title and b"MapWorker" in title and session == driver:
            found.append(int(folder.name))
    return found


def kills(work: Path, count: int, pictures: int) -> Iterator[str]:
    """Kill workers and drivers in turn while they draw; the same command goes on."""
    chance, done = random.Random(0), {"worker": 0, "driver": 0}
    out = work / "killed"
    root = Path(__file__).parent.parent
    while sum(done.values()) < count:
        shutil.rmtree(out, ignore_errors=True)
        victim = ("worker", "driver")[sum(done.values()) % 2]
        command = [sys.executable, "-c", PROGRAM, str(pictures), str(out)]
        driver = subprocess.Popen(command, cwd=root, start_new_session=True)
        while driver.poll() is None and not list(out.glob("*.png")):
            time.sleep(0.05)
        time.sleep(chance.uniform(0, 0.5))
        targets = workers_of(driver.pid) if victim == "worker" else [driver.pid]
        if driver.poll() is None and targets:
            os.kill(chance.choice(targets), signal.SIGKILL)
            done[victim] += 1
        driver.wait()
        if victim == "driver":
            draw(jobs(pictures), out, 0)
        assert hashes(out) == hashes(work / "one"), victim
    yield f"{done} killed: each time {pictures} pictures, each once, equal bytes"


def two_nodes(work: Path, pictures: int) -> str:
    """Draw on a cluster of two nodes on loopback."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        started = time.perf_counter()
        for outcome in batch_ray.run(
            jobs(pictures), work / "nodes", workers=2, address=cluster.address, batch=4
        ):
            assert outcome.state == "drawn", outcome
        seconds = time.perf_counter() - started
    finally:
        cluster.shutdown()
    assert hashes(work / "nodes") == hashes(work / "one")
    return f"two nodes: {pictures} pictures in {seconds:.1f} s, equal bytes"


def main() -> None:
    """Run all, and print what was done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=60)
    parser.add_argument("--kills", type=int, default=15)
    arguments = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="batch-ray-"))
    try:
        for name, workers in (("one", 0), ("ray", 2)):
            started = time.perf_counter()
            draw(jobs(arguments.pictures), work / name, workers)
            seconds = time.perf_counter() - started
            print(
                f"{name}: {arguments.pictures / seconds:.2f} pictures/s, start and loading included",
                flush=True,
            )
        assert hashes(work / "ray") == hashes(work / "one")
        print(two_nodes(work, arguments.pictures), flush=True)
        for line in kills(work, arguments.kills, arguments.pictures):
            print(line, flush=True)
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
