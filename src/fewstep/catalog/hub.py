"""Files of the Hugging Face hub: from its cache, or downloaded into it. Only safetensors and plain text.

huggingface_hub's own settings hold: `HF_HOME`, `HF_HUB_OFFLINE`, `HF_TOKEN`, its progress bars.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from itertools import pairwise
from pathlib import Path

from fewstep.catalog import assets
from fewstep.errors import ModelNotFoundError, describe_error

ALLOWED_ENDINGS = (".safetensors", ".json", ".txt")  # nothing else is ever asked for: no pickle, no code
COMMIT = re.compile(r"[0-9a-f]{40}")  # a revision that never changes
_HUB_ID = re.compile(r"(?!.{97})[\w-][\w.-]*/[\w.-]*[\w-]", re.ASCII)  # the hub's own rule, nearly
# diffusers' names: x.safetensors, x.fp16.safetensors, x-00001-of-00002.safetensors, x.fp16-00001-of-...
_WEIGHTS = re.compile(r"(?P<stem>.*?)(?P<half>\.fp16)?(-\d{5}-of-\d{5})?\.safetensors")


def existing_path(name: str) -> Path | None:
    """The file or folder of this name, "~" expanded; None where there is none."""
    path = os.path.expanduser(name)
    return Path(path) if os.path.exists(path) else None  # unlike Path's, these never raise


def is_hub_id(name: str) -> bool:
    """Return whether it has the form of a hub id, 'owner/name'."""
    return _HUB_ID.fullmatch(name) is not None


def fetch_folder(source: str, patterns: Sequence[str], revision: str = "") -> Path:
    """A folder for a folder's name or a hub id, with all files of these patterns.

    Where a repository has weights in fp16 beside others, the fp16 ones are taken. `revision` "" is
    the catalog's, or else the newest.
    """
    local = existing_path(source)
    if local is not None:
        if not local.is_dir():
            raise ModelNotFoundError(f"{source!r} is a file, where a folder is needed")
        return local
    version = revision or assets.pinned_revision(source)
    folder = (
        cached_folder(source, patterns, version) if COMMIT.fullmatch(version) else None
    )  # it never changes
    return folder or _download(source, patterns, version)


def fetch_file(source: str, name: str, revision: str = "") -> Path:
    """A file of a hub repository or a folder; `source` may be that file itself."""
    local = existing_path(source)
    if local is None:
        cached = cached_file(source, name, revision)
        return cached or _download(source, (name,), revision or assets.pinned_revision(source)) / name
    path = local / name if local.is_dir() else local
    if not path.is_file():
        raise ModelNotFoundError(f"{local} holds no {name}: give the file itself, or another folder")
    return path


def fetch_one_of(source: str, names: Sequence[str]) -> Path:
    """The first of these files that a repository has, or else its only safetensors file."""
    version = assets.pinned_revision(source)
    snapshot = _cached_snapshot(source, version)
    cached_names = (
        []
        if snapshot is None
        else [path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*.safetensors")]
    )
    chosen = _pick_file(cached_names, names)
    # Of several files that fewstep knows, one may be here by chance.
    if snapshot is not None and chosen and (chosen in names or not assets.has_several_assets(source)):
        return snapshot / chosen
    try:
        chosen = _pick_file(_repository_files(source, version), names)
    except Exception as error:  # as in `_download`
        raise ModelNotFoundError(_missing_message(source, (*names, "*.safetensors"), error)) from error
    if not chosen:
        raise ModelNotFoundError(
            f"{source!r} on the hub has no {' or '.join(names or ('.safetensors file',))}, or several: "
            "download the file that is meant, and give its path"
        )
    return fetch_file(source, chosen)


def _pick_file(files: Sequence[str], names: Sequence[str]) -> str:
    """The first of these names, or the only safetensors file; "" where there are none, or several."""
    candidates = [file for file in files if file.endswith(".safetensors")]
    return next((name for name in names if name in candidates), candidates[0] if len(candidates) == 1 else "")


def cached_file(source: str, name: str, revision: str = "") -> Path | None:
    """A file of a hub repository where it is on this machine; the network is not asked."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(
            source, name, revision=revision or assets.pinned_revision(source) or None
        )
    except HFValidationError:
        return None
    return Path(cached) if isinstance(cached, str) else None


def cached_folder(source: str, patterns: Sequence[str], revision: str = "") -> Path | None:
    """The folder of a hub repository in the cache, where it has files of each pattern, and weights."""
    snapshot = _cached_snapshot(source, revision or assets.pinned_revision(source))
    if snapshot is None:
        return None
    names = [path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file()]
    if any(not _matching_files(names, [pattern]) for pattern in patterns):
        return None
    parts = [snapshot / name for name in _matching_files(names, patterns) if name.endswith("config.json")]
    networks = [part.parent for part in parts if part.name == "config.json"]
    return snapshot if all(any(folder.glob("*.safetensors")) for folder in networks) else None


def prefer_fp16(names: Iterable[str]) -> list[str]:
    """Return these names, of weights that are there in fp16 as well only the fp16 ones."""
    matches = {name: _WEIGHTS.fullmatch(name) for name in names}
    halves = {match["stem"] for match in matches.values() if match and match["half"]}
    return [n for n, match in matches.items() if not match or match["half"] or match["stem"] not in halves]


def revision_in_path(path: Path | str) -> str:
    """The commit that a path in the hub's cache belongs to; "" for others."""
    for parent, name in pairwise(Path(path).parts):
        if parent == "snapshots" and COMMIT.fullmatch(name):
            return name
    return ""


def known_revision(source: str, revision: str = "") -> str:
    """Return the commit that a hub id means here: pinned, or the newest in the cache; "" where none is."""
    version = revision or assets.pinned_revision(source)
    if COMMIT.fullmatch(version):
        return version
    snapshot = _cached_snapshot(source, version)
    return "" if snapshot is None else snapshot.name


def _matching_files(names: Iterable[str], patterns: Sequence[str]) -> list[str]:
    plain = (name for name in names if name.endswith(ALLOWED_ENDINGS))
    return [name for name in plain if any(fnmatch(name, pattern) for pattern in patterns)]


def _cached_snapshot(source: str, revision: str) -> Path | None:
    """The folder of one commit in the cache, complete or not."""
    from huggingface_hub import constants

    repository = Path(constants.HF_HUB_CACHE).expanduser() / f"models--{source.replace('/', '--')}"
    if not COMMIT.fullmatch(revision):
        reference = repository / "refs" / (revision or "main")
        if not reference.is_file():
            return None
        revision = reference.read_text().strip()
    snapshot = repository / "snapshots" / revision
    return snapshot if snapshot.is_dir() else None


def _download(source: str, patterns: Sequence[str], revision: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        names = _repository_files(source, revision)
        files = prefer_fp16(_matching_files(names, patterns))
        if files:
            return Path(snapshot_download(source, revision=revision or None, allow_patterns=files))
    except Exception as error:  # of the hub, of the HTTP library in use, of the disk
        folder = cached_folder(source, patterns, revision)
        if folder is not None:
            return folder
        raise ModelNotFoundError(_missing_message(source, patterns, error)) from error
    raise ModelNotFoundError(f"{source!r} on the hub has no {', '.join(patterns)} as safetensors")


def _repository_files(source: str, revision: str) -> list[str]:
    """All files of a repository, as the hub lists them."""
    from huggingface_hub import HfApi

    info = HfApi().model_info(source, revision=revision or None)
    return [file.rfilename for file in info.siblings or ()]


def _missing_message(source: str, patterns: Sequence[str], error: Exception) -> str:
    """What is missing, how large it is, and what to type."""
    asset = assets.asset_for(source, patterns[0])
    missing = f"{patterns[0]} of {source!r}" if len(patterns) == 1 else repr(source)
    size = f" ({format_size(asset.bytes)})" if asset is not None and asset.bytes else ""
    pull = f"type fewstep models pull {asset.name}" if asset is not None else "check the name and the network"
    return (
        f"{missing}{size} is not on this machine and could not be downloaded ({describe_error(error)}): "
        f"{pull}, or give a local folder or file"
    )


def format_size(size: int) -> str:
    """Bytes as `6.9 GB`, `394 MB`, `48 KB`; 0 is not known."""
    if size >= 10**9:
        return f"{size / 1e9:.1f} GB"
    if size >= 10**6:
        return f"{size / 1e6:.0f} MB"
    return f"{max(1, round(size / 1e3))} KB" if size else "size not known"
