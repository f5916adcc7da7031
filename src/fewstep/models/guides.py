"""ControlNets and IP-Adapters that fewstep knows by name, and how others are named. No torch is imported."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePath
from threading import Lock
from types import MappingProxyType
from typing import TypeVar

from fewstep.errors import CorruptModelError, ModelNotFoundError
from fewstep.models import assets, shards
from fewstep.models.catalog import is_hub_id, local

T = TypeVar("T")
State = tuple[tuple[str, int, int], ...]  # path, bytes, when it was written
KEPT = 2  # of each sort, or as many as one call has; a ControlNet has 2.5 GB, ViT-bigG 3.7 GB in fp16


@dataclass(frozen=True, kw_only=True)
class Guide:
    """Where a ControlNet or an IP-Adapter is."""

    root: str  # a hub id, or a folder here
    file: str = ""  # in it; "" is the folder's one network
    revision: str = ""  # 40 hex digits; "" is not known


CONTROLNETS: MappingProxyType[str, Guide] = MappingProxyType(
    {known.name: Guide(root=known.repo, revision=known.revision) for known in assets.CONTROLNETS}
)
ADAPTERS: MappingProxyType[str, Guide] = MappingProxyType(
    {
        known.name: Guide(root=known.repo, file=known.files[0], revision=known.revision)
        for known in assets.IP_ADAPTERS
    }
)
GUIDES = {*CONTROLNETS, *ADAPTERS}
# What a union of ControlNets is shown, and its number among them (github.com/xinsir6/ControlNetPlus; the
# last two are in its "promax" weights only).
VIEWS: MappingProxyType[str, int] = MappingProxyType(
    {
        "pose": 0, "depth": 1, "hed": 2, "pidi": 2, "scribble": 2, "ted": 2, "canny": 3, "lineart": 3,
        "mlsd": 3, "normal": 4, "segment": 5, "tile": 6, "repaint": 7,
    }
)  # fmt: skip


def split(source: str) -> tuple[str, str]:
    """`union:depth` → "union" and the view that it asks for; "" is none."""
    name, colon, view = source.rpartition(":")
    return (name, view) if colon and view in VIEWS else (source, "")


def check(control: Iterable[str], reference: Iterable[str]) -> None:
    """Is each a name, or a place where one may be?"""
    for source in control:
        controlnet(split(source)[0])
    for source in reference:
        adapter(source)


def licences(control: Iterable[str], reference: Iterable[str]) -> dict[str, str]:
    """Each → its licence; of others than the named ones it is not known."""
    named = [split(source)[0] for source in control] + list(reference)
    return {repr(name): assets.ASSETS[name].licence if name in GUIDES else "unknown" for name in named}


def controlnet(source: str) -> Guide:
    """Where a ControlNet is; `source` without a view."""
    if source in CONTROLNETS:
        return CONTROLNETS[source]
    here = local(source)
    if here is None and not is_hub_id(source):
        raise ModelNotFoundError(
            f"control has {source!r}, which is neither one of {', '.join(CONTROLNETS)}, nor a folder or file "
            "here, nor a hub id such as 'owner/name'"
        )
    return _file(here) if here is not None and here.is_file() else Guide(root=source)


def adapter(source: str) -> Guide:
    """Where an IP-Adapter is."""
    if source in ADAPTERS:
        return ADAPTERS[source]
    here = local(source)
    if here is not None:
        return _file(_only(here) if here.is_dir() else here)
    owner, _, rest = source.partition("/")
    name, _, file = rest.partition("/")
    if file.endswith(".safetensors") and is_hub_id(f"{owner}/{name}"):
        return Guide(root=f"{owner}/{name}", file=file)
    raise ModelNotFoundError(
        f"reference has {source!r}, which is neither one of {', '.join(ADAPTERS)}, nor a file or folder "
        "here, nor a file on the hub such as 'owner/name/file.safetensors'"
    )


def kept(load: Callable[[str], T], where: Callable[[str], Guide]) -> Callable[[Iterable[str]], dict[str, T]]:
    """All that a call wants, by name; the last few stay loaded, and others leave before new ones come.

    `where`: `controlnet` or `adapter`. What has changed on disk is another.
    """
    lock, found = Lock(), dict[tuple[str, State], T]()  # the one longest unused first

    def get(sources: Iterable[str]) -> dict[str, T]:
        wanted = {source: (source, _state(where(source))) for source in dict.fromkeys(sources)}
        with lock:
            stale = [key for key in found if key[0] in wanted and key != wanted[key[0]]]
            others = [key for key in found if key[0] not in wanted]
            for key in (*stale, *others[: max(0, len(others) + len(wanted) - KEPT)]):
                del found[key]
            for key in wanted.values():
                found[key] = found.pop(key) if key in found else load(key[0])
            return {source: found[key] for source, key in wanted.items()}

    return get


def _state(guide: Guide) -> State:
    """Which weights on disk, and as of when; those of a hub's repository are taken to stay."""
    here = local(guide.root)
    if here is None:
        return ()
    paths = [here / guide.file] if guide.file else shards.files(here)
    known = [(path.resolve(), path.stat()) for path in paths if path.exists()]
    return tuple((str(path), about.st_size, about.st_mtime_ns) for path, about in known)


def _file(path: Path) -> Guide:
    """A file here; what lies beside its folder can be reached, as in a copy of h94/IP-Adapter."""
    path = path.absolute()
    return Guide(root=str(path.parent.parent), file=str(PurePath(path.parent.name, path.name).as_posix()))


def _only(folder: Path) -> Path:
    found = sorted(folder.glob("*.safetensors"))
    if len(found) != 1:
        raise CorruptModelError(
            f"{folder} holds {len(found)} .safetensors files: give the IP-Adapter's own file as reference"
        )
    return found[0]
