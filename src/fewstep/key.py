"""`EngineKey`: everything that tells one loaded engine from another."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class EngineKey:
    """What to load and where to run it, in the user's words, completed."""

    model: str
    mode: str
    steps: int = 0  # of a mode whose weights come for one number of steps; 0: they serve all
    accelerator: str = ""  # "" is the mode's own
    vae: str = ""  # "" is the model's own
    embeddings: tuple[str, ...] = ()  # files of textual inversions
    revision: str = ""  # of a hub id; "" is the catalog's, or else the newest
    device: str = "auto"
    precision: str = "auto"
    offload: str = "auto"
