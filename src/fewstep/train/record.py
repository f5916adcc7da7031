"""`run.json`: what was run, on what, with which versions, and what came of it."""

from __future__ import annotations

import json
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fewstep.errors import OutputError

_PACKAGES = ("torch", "diffusers", "transformers", "accelerate")


def record(folder: Path, facts: dict[str, Any]) -> None:
    """Write it; `facts` is what only this run knows."""
    about = {
        "command": ["fewstep", *sys.argv[1:]],
        "versions": {name: version(name) for name in _PACKAGES},
        "machine": platform.machine(),
        **facts,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "run.json").write_text(json.dumps(about, indent=2) + "\n")
    except OSError as error:
        raise OutputError(f"{str(folder)!r} cannot be written: {error.strerror or error}") from error


def read_record(folder: Path) -> dict[str, Any]:
    """What `record` wrote; nothing where nothing was run."""
    path = folder / "run.json"
    return dict(json.loads(path.read_text())) if path.exists() else {}
