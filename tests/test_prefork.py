"""Servers that fork their workers, as docs/how-to.md shows them: each loads after the fork, and draws."""

from __future__ import annotations

import io
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from PIL import Image

import fewstep

PAGE = Path(__file__).parent.parent / "docs" / "how-to.md"
FENCE = re.compile(r"^```python (gunicorn|celery)\n# (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PATIENCE = 240  # seconds, on a machine that is busy

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture(autouse=True)
def same_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers compute in as many threads as this process: sums of more are rounded otherwise."""
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))


@pytest.fixture(scope="module")
def sun() -> Image.Image:
    with fewstep.load("tiny", "turbo") as engine:
        return engine.generate("a sun", seed=1)[0]


def write_blocks(server: str, folder: Path) -> None:
    """The page's files for a server."""
    files = {
        name: body for what, name, body in FENCE.findall(PAGE.read_text(encoding="utf-8")) if what == server
    }
    assert files
    for name, body in files.items():
        (folder / name).write_text(body, encoding="utf-8")


@contextmanager
def running(*command: str, folder: Path, environment: Mapping[str, str] | None = None) -> Iterator[Path]:
    """A server, told to end in the end; what it says goes to the file given."""
    log = folder / "log.txt"
    with log.open("wb") as file:
        server = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=folder,
            stdout=file,
            stderr=file,
            env={**os.environ, **(environment or {})},
        )
        try:
            yield log
        finally:
            server.send_signal(signal.SIGTERM)
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def request_picture(path: Path, log: Path) -> bytes:
    """The answer's body, as soon as the server listens."""
    end = time.monotonic() + PATIENCE
    while not path.exists():
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.05)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(PATIENCE)
        connection.connect(str(path))
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b" 200 " in head.splitlines()[0], log.read_text()
    return body


def test_gunicorn(tmp_path: Path, sun: Image.Image) -> None:
    pytest.importorskip("gunicorn", reason="gunicorn is not installed")
    write_blocks("gunicorn", tmp_path)
    bound = tmp_path / "app.sock"
    command = ("gunicorn", "app:application", "--bind", f"unix:{bound}", "--workers", "1")
    with running(*command, folder=tmp_path) as log:
        body = request_picture(bound, log)
    with Image.open(io.BytesIO(body)) as picture:
        assert picture.tobytes() == sun.tobytes()


SEND = "import tasks; print(tasks.draw.delay('a sun', 1, 'sun.png').get(timeout=240))"


def test_celery(tmp_path: Path, sun: Image.Image) -> None:
    pytest.importorskip("celery", reason="celery is not installed")
    write_blocks("celery", tmp_path)
    for name in ("queue", "results"):
        (tmp_path / name).mkdir()
    quiet = ("--without-gossip", "--without-mingle", "--without-heartbeat")
    command = ("celery", "-A", "tasks", "worker", "--pool", "prefork", "--concurrency", "1", *quiet)
    with running(*command, folder=tmp_path) as log:
        sent = subprocess.run(
            [sys.executable, "-c", SEND], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE
        )
    assert sent.stdout.strip() == "sun.png", sent.stderr + log.read_text()
    with Image.open(tmp_path / "sun.png") as picture:
        assert picture.tobytes() == sun.tobytes()
