"""An engine that checks as the real one and draws blocks of colour at once. For the tests of apps."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from fewstep import api, modes
from fewstep.cancel import CancelToken
from fewstep.catalog import licences, mode_weights
from fewstep.catalog import vaes as autoencoders
from fewstep.catalog.models import Model
from fewstep.engine_base import EngineBase
from fewstep.errors import FewstepError
from fewstep.progress import Progress, show_progress
from fewstep.prompts import Embedding
from fewstep.recipe import Recipe
from fewstep.request import Job, Request
from fewstep.request.choose import licences_of_call
from fewstep.request.schema import EngineKey
from fewstep.result import Result

BLOCKS = 8  # of colour, each way


@dataclass(frozen=True, kw_only=True)
class FakeStep:
    """One finished step of all pictures of a call; nothing of torch is in it."""

    index: int  # from 0
    steps: int
    timestep: float  # the level it started from
    pictures: tuple[Image.Image, ...]

    def preview(self, picture: int = 0) -> Image.Image:
        """The picture so far: out of grey, and in the last step as it will be."""
        image = self.pictures[picture]
        grey = Image.new(image.mode, image.size, "grey")
        return Image.blend(grey, image, (self.index + 1) / self.steps)


class FakeEngine(EngineBase[FakeStep]):
    """Serves a mode of a model as `fewstep.Engine` does, but loads and computes nothing.

    Equal requests give equal pictures, and a picture is the same in any batch. `delay` is the
    time of a step in seconds; `error` is raised in place of the first one. `requests` lists
    what was asked.
    """

    def __init__(  # noqa: PLR0913  as `fewstep.load`
        self,
        mode: str | None = "lcm",
        model: str | Path = "tiny",
        *,
        steps: int | None = None,
        accelerator: str | Path = "",
        vae: str | Path = "",
        embeddings: Sequence[str] = (),
        error: BaseException | None = None,
        delay: float = 0.0,
    ):
        about, recipe = modes.choose_mode(model, mode, steps)
        own = mode_weights.choose_weights(about, recipe, accelerator)
        autoencoders.check_vae(vae, about)
        self._licences = mode_weights.licences_of_mode(about, recipe, own, embeddings, str(vae))
        self._given, self._vae, self._embeddings = str(accelerator), str(vae), tuple(embeddings)
        self.model: Model = about
        self.recipe: Recipe = recipe
        self.requests: list[Request] = []
        self._error, self._delay, self._closed = error, delay, False

    def embed(self, prompt: str) -> Embedding:
        """May stand for a prompt; holds no tensors."""
        nothing: Any = None
        return Embedding(tokens=nothing, pooled=nothing, text=prompt)

    def run(self, job: Job, *, cancel: CancelToken | None = None, progress: Progress = None) -> Result:
        started = time.perf_counter()
        with show_progress(progress, job.request.steps) as tell:
            tells: Any = tell  # typed for a `Step`, which a `FakeStep` resembles
            for step in self._stepping(job, cancel):
                tells(step)
        seconds = time.perf_counter() - started
        return Result(
            images=step.pictures,
            plan=job.plan,
            timings={"steps": seconds, "decode": 0.0, "total": seconds},
            warnings=job.plan.warnings,
            model=self.model.source,
            licence=licences.join_licences((self._licences | licences_of_call(job.request)).values()),
            accelerator=self._given,
            vae=self._vae,
            embeddings=self._embeddings,
            device="fake",
            precision="fp32",
            edited=job.image is not None,
        )

    def close(self) -> None:
        self._closed = True

    def _stepping(self, job: Job, cancel: CancelToken | None) -> Iterator[FakeStep]:
        if self._closed:
            raise FewstepError("this engine is closed: load another with fewstep.load()")
        self.requests.append(job.request)
        return _steps(job, CancelToken() if cancel is None else cancel, self._delay, self._error)


@contextmanager
def fake(*, error: BaseException | None = None, delay: float = 0.0) -> Iterator[FakeEngine]:
    """Inside, `fewstep.generate`, `agenerate` and `load` use fakes; `requests` of the one given lists all."""
    engine = FakeEngine(error=error, delay=delay)

    def load(key: EngineKey, about: Model, recipe: Recipe) -> FakeEngine:
        loaded = FakeEngine(
            key.mode,
            key.model,
            steps=key.steps or None,
            accelerator=key.accelerator,
            vae=key.vae,
            embeddings=key.embeddings,
            error=error,
            delay=delay,
        )
        loaded.requests = engine.requests
        return loaded

    doors: Any = api  # the door is typed for real engines
    real, doors._load_engine = doors._load_engine, load
    doors._resident.clear()
    try:
        yield engine
    finally:
        doors._load_engine = real
        doors._resident.clear()


def _steps(job: Job, token: CancelToken, delay: float, error: BaseException | None) -> Iterator[FakeStep]:
    """The loop, stoppable where the real one is."""
    pictures = tuple(_picture(job, index) for index in range(len(job.request.seeds)))
    for index, timestep in enumerate(job.plan.schedule.timesteps):
        token.check()
        time.sleep(delay)
        if error is not None:
            raise error
        yield FakeStep(index=index, steps=job.request.steps, timestep=timestep, pictures=pictures)
    token.check()


def _picture(job: Job, index: int) -> Image.Image:
    """Colours from a hash of all that was asked for this picture; outside a mask, what was given."""
    asked = json.dumps(job.plan.only([index]).to_dict(), sort_keys=True).encode()
    pictures = (job.image, *job.control, *job.reference)
    given = b"".join(one.tobytes() for one in pictures if one is not None)
    colours = hashlib.shake_256(asked + given).digest(3 * BLOCKS * BLOCKS)
    size = (job.request.width, job.request.height)
    made = Image.frombytes("RGB", (BLOCKS, BLOCKS), colours).resize(size, Image.Resampling.NEAREST)
    if job.image is None or job.mask is None:
        return made
    return Image.composite(made, job.image.convert("RGB"), job.mask.convert("L"))
