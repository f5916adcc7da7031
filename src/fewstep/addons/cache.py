"""What a call may have beside a model: ControlNets and IP-Adapters, loaded when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from threading import Lock
from typing import Any, TypeVar

from PIL.Image import Image

from fewstep.addons import controlnet, ip_adapter
from fewstep.addons.controlnet import Control
from fewstep.addons.ip_adapter import Reference
from fewstep.catalog import addons
from fewstep.catalog.addons import AddonPlace
from fewstep.catalog.hub import existing_path
from fewstep.devices import Placement
from fewstep.files import safetensors
from fewstep.request import Job


class AddonCache:
    """Of one engine, where the last few of each stay loaded. One with scale 0 is none."""

    def __init__(self, unet: Any, placement: Placement):
        self._nets = keep_loaded(
            partial(controlnet.load_controlnet, unet, placement), addons.locate_controlnet
        )
        self._adapters = keep_loaded(
            partial(ip_adapter.load_ip_adapter, unet, placement), addons.locate_ip_adapter
        )

    def controls(self, job: Job) -> tuple[Control, ...]:
        """The job's ControlNets, each with its picture."""
        pairs = zip(job.request.control, job.control, strict=True)
        asked = [
            (*addons.split_controlnet_view(source), image, scale) for (source, scale), image in pairs if scale
        ]
        nets = self._nets(name for name, *_ in asked)
        return tuple(
            controlnet.make_control(nets[name], job.canvas.place(image), scale, (name, view))
            for name, view, image, scale in asked
        )

    def references(self, job: Job) -> tuple[Reference, ...]:
        """The job's IP-Adapters; pictures under the same one and the same scale are looked at together."""
        shown: dict[tuple[str, float], list[Image]] = {}
        for asked, image in zip(job.request.reference, job.reference, strict=True):
            shown.setdefault(asked, []).append(image)
        adapters = self._adapters(source for source, scale in shown if scale)
        return tuple(
            Reference(adapter=adapters[source], pictures=tuple(images), scale=scale)
            for (source, scale), images in shown.items()
            if scale
        )


T = TypeVar("T")


FileState = tuple[tuple[str, int, int], ...]  # path, bytes, when it was written


MAX_LOADED = 2  # of each sort, or as many as one call has; a ControlNet has 2.5 GB, ViT-bigG 3.7 GB in fp16


def keep_loaded(
    load: Callable[[str], T], where: Callable[[str], AddonPlace]
) -> Callable[[Iterable[str]], dict[str, T]]:
    """All that a call wants, by name; the last few stay loaded, and others leave before new ones come.

    `where`: `controlnet` or `adapter`. What has changed on disk is another.
    """
    lock, found = Lock(), dict[tuple[str, FileState], T]()  # the one longest unused first

    def get(sources: Iterable[str]) -> dict[str, T]:
        wanted = {source: (source, _file_state(where(source))) for source in dict.fromkeys(sources)}
        with lock:
            stale = [key for key in found if key[0] in wanted and key != wanted[key[0]]]
            others = [key for key in found if key[0] not in wanted]
            for key in (*stale, *others[: max(0, len(others) + len(wanted) - MAX_LOADED)]):
                del found[key]
            for key in wanted.values():
                found[key] = found.pop(key) if key in found else load(key[0])
            return {source: found[key] for source, key in wanted.items()}

    return get


def _file_state(guide: AddonPlace) -> FileState:
    """Which weights on disk, and as of when; those of a hub's repository are taken to stay."""
    here = existing_path(guide.root)
    if here is None:
        return ()
    paths = [here / guide.file] if guide.file else safetensors.weight_files(here)
    known = [(path.resolve(), path.stat()) for path in paths if path.exists()]
    return tuple((str(path), about.st_size, about.st_mtime_ns) for path, about in known)
