"""Two processes, as `accelerate launch` starts them: each takes its own batches, and they stay equal."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

CODE = """
import sys, hashlib
from pathlib import Path
from fewstep.train import loop
from fewstep.train.loop import Hyper
from tests.train.test_loop import Regression
out = Path(sys.argv[1])
task = Regression()
hyper = Hyper(steps=3, batch=16, rate=0.05, warmup=1, bf16=False)
steps = list(loop.train_task(task, hyper, out, every=2))
weights = b"".join(p.detach().numpy().tobytes() for m in task.modules.values() for p in m.parameters())
print(hashlib.sha256(weights).hexdigest(), [f"{s.loss:.6f}" for s in steps], flush=True)
"""


def test_they_end_with_equal_weights(tmp_path: Path) -> None:
    port = 20_000 + os.getpid() % 20_000
    shared = {
        "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_WORLD_SIZE": "2",
        "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    running = [
        subprocess.Popen(
            [sys.executable, "-c", CODE, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, cwd=Path(__file__).parents[2],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]  # fmt: skip
    told = [one.communicate(timeout=240) for one in running]
    assert all(one.returncode == 0 for one in running), told
    assert told[0][0] == told[1][0] != ""
    assert len((tmp_path / "losses.csv").read_text().splitlines()) == 3
    alone = subprocess.run(
        [sys.executable, "-c", CODE, str(tmp_path / "alone")], capture_output=True, text=True, check=True,
        cwd=Path(__file__).parents[2],
    ).stdout  # fmt: skip
    assert alone.split()[0] != told[0][0].split()[0]  # each process has batches of its own
