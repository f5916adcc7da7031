"""Where a picture's weights and given pictures are now: as it says, beside it, or in folders to look in."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fewstep.catalog.addons import split_controlnet_view
from fewstep.catalog.assets import ASSETS
from fewstep.catalog.hub import existing_path, is_hub_id


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where to look for what a picture's file names."""

    path: Path  # the picture's file
    embedded: Mapping[str, Sequence[bytes]] = field(default_factory=dict)  # pictures in it, by option
    search: tuple[Path, ...] = ()  # folders, after the picture's own

    def weights(self, option: str, source: str, facts: Mapping[str, Any], missing: list[str]) -> str:
        """Return where a file, folder or name is; what is not here is added to `missing`."""
        name, view = split_controlnet_view(source) if option == "control" else (source, "")
        end = f":{view}" if view else ""
        if existing_path(name) is not None or name in ASSETS or name == "tiny":
            return source
        if not _is_file_name(name) and is_hub_id(name):
            return source
        path = self.find(name)
        if path is None:
            missing.append(
                f"{option} {source!r}{_known_hashes(option, source, facts)}: put it beside the picture, or "
                f"type {option}=..."
            )
            return source
        return f"{path}{end}"

    def picture(self, option: str, index: int, facts: Mapping[str, Any], missing: list[str]) -> bytes | Path:
        """Return a given picture: its file's bytes, or where its file is."""
        embedded = self.embedded.get(option, ())
        if index < len(embedded):
            return embedded[index]
        recorded = facts.get("pictures", {}).get(option, ())
        name = recorded[index] if index < len(recorded) else ""
        path = existing_path(name) or self.find(name) if name else None
        if path is None:
            hashes = facts.get("sources", {}).get(option, ())
            digest = f" (sha256 of its pixels {hashes[index]:.12}…)" if index < len(hashes) else ""
            label = f"{option} {name!r}" if name else f"{option}, which was given from memory"
            missing.append(f"{label}{digest}: put it beside the picture, or type {option}=...")
            return b""
        return path

    def find(self, name: str) -> Path | None:
        """Return a file or folder of this name beside the picture, or in the folders to look in."""
        last = os.path.basename(os.path.normpath(name))
        candidates = (folder / part for folder in (self.path.parent, *self.search) for part in (name, last))
        return next((path for path in candidates if path.exists()), None)


def missing_message(path: Path, missing: Sequence[str]) -> str:
    """Return one line for all that is missing."""
    return f"{str(path)!r} cannot be drawn again here, for want of {'; '.join(missing)}"


def _is_file_name(name: str) -> bool:
    return name.endswith(".safetensors") or name.startswith((".", "~", os.sep))


def _known_hashes(option: str, source: str, facts: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the files that an option had, to be looked for."""
    for entry in facts.get("weights", ()):
        if entry.get("option") == option and entry.get("source") == source:
            digests = [
                digest for name, digest in entry.get("files", {}).items() if name.endswith(".safetensors")
            ]
            if digests:
                return f" (sha256 {digests[0]})"
    return ""
