"""Tensors on disk, whole or not at all, and networks told apart by their weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn


def write(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """A safetensors file that appears, or takes an older one's place, only when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".partial")
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, scratch, metadata=metadata)
    scratch.replace(path)


def digest(network: nn.Module) -> str:
    """The sha256 of all weights, by name."""
    found = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        found.update(name.encode())
        found.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()
