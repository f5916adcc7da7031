"""What a run leaves: `run.json`, which says what was run on what, and tensors, whole or not at all."""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fewstep.errors import OutputError

_PACKAGES = ("torch", "diffusers", "transformers", "accelerate")


def write_record(folder: Path, facts: dict[str, Any]) -> None:
    """Write `run.json`; `facts` is what only this run knows."""
    record = {
        "command": ["fewstep", *sys.argv[1:]],
        "versions": {name: version(name) for name in _PACKAGES},
        "machine": platform.machine(),
        **facts,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "run.json").write_text(json.dumps(record, indent=2) + "\n")
    except OSError as error:
        raise OutputError(f"{str(folder)!r} cannot be written: {error.strerror or error}") from error


def read_record(folder: Path) -> dict[str, Any]:
    """What `write_record` wrote; nothing where nothing was run."""
    path = folder / "run.json"
    return dict(json.loads(path.read_text())) if path.exists() else {}


def write_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """A safetensors file that appears, or takes an older one's place, only when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".partial")
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, scratch, metadata=metadata)
    scratch.replace(path)


def network_digest(network: nn.Module) -> str:
    """The sha256 of all weights, by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
