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
        """Return the job's ControlNets, each with its picture."""
        pairs = zip(job.request.control, job.control, strict=True)
        entries = [
            (*addons.split_controlnet_view(source), image, scale) for (source, scale), image in pairs if scale
        ]
        nets = self._nets(name for name, *_ in entries)
        return tuple(
            controlnet.make_control(nets[name], job.canvas.place(image), scale, (name, view))
            for name, view, image, scale in entries
        )

    def references(self, job: Job) -> tuple[Reference, ...]:
        """Return the job's IP-Adapters; pictures under the same one and the same scale are read together."""
        images_by_source: dict[tuple[str, float], list[Image]] = {}
        for scaled_source, image in zip(job.request.reference, job.reference, strict=True):
            images_by_source.setdefault(scaled_source, []).append(image)
        adapters = self._adapters(source for source, scale in images_by_source if scale)
        return tuple(
            Reference(adapter=adapters[source], pictures=tuple(images), scale=scale)
            for (source, scale), images in images_by_source.items()
            if scale
        )


T = TypeVar("T")


FileState = tuple[tuple[str, int, int], ...]  # path, bytes, when it was written


MAX_LOADED = 2  # of each sort, or as many as one call has; a ControlNet has 2.5 GB, ViT-bigG 3.7 GB in fp16


def keep_loaded(
    load: Callable[[str], T], locate: Callable[[str], AddonPlace]
) -> Callable[[Iterable[str]], dict[str, T]]:
    """Return a function of sources → what `load` makes of each; the last few stay loaded.

    Others leave before new ones come. `locate` says where a source's files are: one that has changed on
    disk is loaded again.
    """
    lock, loaded = Lock(), dict[tuple[str, FileState], T]()  # the one longest unused first

    def get(sources: Iterable[str]) -> dict[str, T]:
        keys = {source: (source, _file_state(locate(source))) for source in dict.fromkeys(sources)}
        with lock:
            stale = [key for key in loaded if key[0] in keys and key != keys[key[0]]]
            idle = [key for key in loaded if key[0] not in keys]
            for key in (*stale, *idle[: max(0, len(idle) + len(keys) - MAX_LOADED)]):
                del loaded[key]
            for key in keys.values():
                loaded[key] = loaded.pop(key) if key in loaded else load(key[0])
            return {source: loaded[key] for source, key in keys.items()}

    return get


def _file_state(place: AddonPlace) -> FileState:
    """Return which weights are on disk, and as of when; those of a hub's repository are taken to stay."""
    root = existing_path(place.root)
    if root is None:
        return ()
    paths = [root / place.file] if place.file else safetensors.weight_files(root)
    stats = [(path.resolve(), path.stat()) for path in paths if path.exists()]
    return tuple((str(path), stat.st_size, stat.st_mtime_ns) for path, stat in stats)
