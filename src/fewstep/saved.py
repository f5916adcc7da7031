"""A saved picture that can be refined like the result it was: all that is needed is in its own file."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, overload

from PIL import Image

from fewstep import metadata
from fewstep.errors import RequestError
from fewstep.images import open_image
from fewstep.request.facts import check_facts, keywords_of_facts
from fewstep.request.schema import EngineKey
from fewstep.result import Result
from fewstep.workflow import Workflow


@dataclass(frozen=True, kw_only=True)
class SavedPicture(Workflow[Result]):
    """One picture and what its file says of it; `refine`, `vary`, `inpaint`, `outpaint` as of a `Result`."""

    images: tuple[Image.Image, ...]  # RGB, one
    recorded: Mapping[str, Any]  # as `Result.facts` gave them
    engine_key: EngineKey  # what drew it, as far as refining has to know
    redraw: Callable[..., Result] = field(repr=False)  # draws what it is asked for, as `fewstep.generate`

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(self.recorded.get("seeds", ()))

    def facts(self, index: int = 0, *, weights: bool = True) -> dict[str, Any]:  # noqa: ARG002
        """Return how it was made."""
        return dict(self.recorded)

    def call(self, index: int | None = None) -> dict[str, Any]:  # noqa: ARG002
        """Return the keywords of `fewstep.generate` that it was made with, but for pictures given to it."""
        return keywords_of_facts(self.recorded)

    def only(self, pictures: Sequence[int]) -> Self:  # noqa: ARG002
        """Return itself: there is one picture."""
        return self

    def __len__(self) -> int:
        return 1

    @overload
    def __getitem__(self, index: int) -> Image.Image: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Image.Image, ...]: ...
    def __getitem__(self, index: int | slice) -> Image.Image | tuple[Image.Image, ...]:
        return self.images[index]


def open_saved(path: str | os.PathLike[str], redraw: Callable[..., Result]) -> SavedPicture:
    """Return a picture that `Result.save` wrote, to go on with; `redraw` is `fewstep.generate`.

    Raises `RequestError` for pictures that do not say how they were made.
    """
    facts = metadata.read(path)
    if not {"mode", "model", "prompts", "seeds"} <= facts.keys():
        name = os.fspath(path)
        raise RequestError(
            f"{name!r} does not say how fewstep made it: type generate(..., image={name!r}), or "
            "fewstep generate --image"
        )
    check_facts(facts, path)
    image = open_image(Path(path), "picture").image
    key = EngineKey.of(str(facts["mode"]), model=str(facts["model"]))
    return SavedPicture(images=(image,), recorded=facts, engine_key=key, redraw=redraw)
