"""What a call may have beside a model: ControlNets and IP-Adapters, loaded when they are asked for."""

from __future__ import annotations

from functools import partial
from typing import Any

from PIL.Image import Image

from fewstep.devices import Placement
from fewstep.models import control, guides, reference
from fewstep.models.control import Control
from fewstep.models.reference import Reference
from fewstep.request import Job


class Beside:
    """Of one engine, where the last few of each stay loaded. One with scale 0 is none."""

    def __init__(self, unet: Any, placement: Placement):
        self._nets = guides.kept(partial(control.load, unet, placement), guides.controlnet)
        self._adapters = guides.kept(partial(reference.load, unet, placement), guides.adapter)

    def controls(self, job: Job) -> tuple[Control, ...]:
        """The job's ControlNets, each with its picture."""
        pairs = zip(job.request.control, job.control, strict=True)
        asked = [(*guides.split(source), image, scale) for (source, scale), image in pairs if scale]
        nets = self._nets(name for name, *_ in asked)
        return tuple(
            control.shown(nets[name], image, scale, (name, view)) for name, view, image, scale in asked
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
