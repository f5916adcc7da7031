"""The notebook's studio in a real Chromium, against a real Jupyter server.

    python tests/studio_browser.py --out shots               # the story by mouse, and once more by keyboard alone
    python tests/studio_browser.py --out shots --minutes 5   # and clicks for five minutes: is memory flat?

Needs jupyterlab and playwright from PyPI, and a Chromium: `playwright install chromium`, or one of the system's
by --chromium PATH. Prints what it checks, and fails with the first check that does not hold.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client.blocking import BlockingKernelClient
from playwright.sync_api import Locator, Page, sync_playwright

CELL = """import fewstep

studio = fewstep.notebook.Studio(steps=1, mode="turbo", seed=7)
studio"""
SAME = """
import json
names = {}
exec(studio.code(), names)
again = names[studio.code().split()[-1]]
print(json.dumps([len(again), [a.tobytes() == b.tobytes() for a, b in zip(again, studio.result, strict=True)]]))
"""
MEMORY = "print(int(open('/proc/self/statm').read().split()[1]) * 4096)"


class Kernel:
    """A second client of the notebook's kernel, to look behind what the page shows."""

    def __init__(self, runtime: Path):
        (connection,) = runtime.glob("kernel-*.json")
        self.client = BlockingKernelClient(connection_file=str(connection))
        self.client.load_connection_file()
        self.client.start_channels()

    def run(self, code: str) -> Any:
        """Return what code printed, read as JSON."""
        printed: list[str] = []

        def hook(message: dict[str, Any]) -> None:
            if message["msg_type"] == "stream":
                printed.append(message["content"]["text"])

        reply = self.client.execute_interactive(code, timeout=120, output_hook=hook, store_history=False)
        assert reply["content"]["status"] == "ok", reply["content"]
        return json.loads("".join(printed)) if printed else None


@contextmanager
def jupyter(folder: Path) -> Iterator[str]:
    """Serve a folder with one notebook, with settings of its own; yields the address."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)])  # type: ignore[no-untyped-call]
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    news = folder / "settings" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    news.parent.mkdir(parents=True)
    news.write_text('{"fetchNews": "false"}')
    nbformat.write(notebook, folder / "studio.ipynb")  # type: ignore[no-untyped-call]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    places = {
        f"JUPYTER_{name}_DIR": str(folder / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")
    } | {"JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"), "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces")}
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", f"--ServerApp.port={port}", "--ServerApp.ip=127.0.0.1",
        f"--ServerApp.root_dir={folder}", "--IdentityProvider.token=", "--LabApp.expose_app_in_browser=True",
        "--allow-root",
    ]  # fmt: skip
    log = (folder / "server.log").open("w")
    server = subprocess.Popen(command, env={**os.environ, **places}, stdout=log, stderr=log)
    try:
        for _ in range(300):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/doc/tree/studio.ipynb?reset"
    finally:
        server.terminate()
        server.wait(30)


def open_studio(page: Page, address: str) -> Locator:
    """Open the notebook, run its cell, and return the widget."""
    page.goto(address)
    page.locator(".jp-Notebook .jp-CodeCell").first.wait_for(timeout=90_000)
    page.get_by_text("| Idle").wait_for(timeout=90_000)
    page.locator(".jp-CodeCell .cm-content").first.click()
    page.keyboard.press("Shift+Enter")
    studio = page.locator(".fewstep")
    studio.wait_for(timeout=90_000)
    return studio
