"""An engine that checks as the real one and draws blocks of colour at once. For the tests of apps."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import ref

from PIL import Image

from fewstep.api import engines_from
from fewstep.cancel import CancelToken
from fewstep.catalog import licences, mode_weights
from fewstep.engine_base import EngineBase, Redraw
from fewstep.errors import FewstepError
from fewstep.progress import Progress, show_progress
from fewstep.prompts import Embedding
from fewstep.request import Job, Request
from fewstep.request.engine_choice import EngineChoice, choose_engine, licences_of_call, split_options
from fewstep.request.options import EngineOptions
from fewstep.result import Result
from fewstep.streaming import Stream

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

    def __init__(
        self,
        mode: str | None = "lcm",
        model: str | Path = "tiny",
        *,
        steps: int | None = None,
        error: BaseException | None = None,
        delay: float = 0.0,
        **options: Any,
    ):
        """`options`: the others that `fewstep.load` has, such as accelerator= and vae=."""
        chosen: EngineOptions = {**split_options(options)[0], "model": model}
        self.choice: EngineChoice = choose_engine(mode, steps, chosen)
        self.requests: list[Request] = []
        self._error, self._delay = error, delay

    def embed(self, prompt: str) -> Embedding:
        """Return an embedding that may stand for a prompt and holds no tensors."""
        no_tensor: Any = None
        return Embedding(tokens=no_tensor, pooled=no_tensor, text=prompt)

    def run(self, job: Job, *, cancel: CancelToken | None = None, progress: Progress = None) -> Result:
        steps = Stream(self.stream_job(job, cancel))
        with show_progress(progress, job.request.steps) as tell:
            for step in steps:
                tell(step)
        return steps.result

    def stream_job(self, job: Job, cancel: CancelToken | None = None) -> Generator[FakeStep, None, Result]:
        if self.closed:
            raise FewstepError("this engine is closed: load another with fewstep.load()")
        self.requests.append(job.request)
        return self._steps(job, CancelToken() if cancel is None else cancel)

    def _steps(self, job: Job, token: CancelToken) -> Generator[FakeStep, None, Result]:
        """The loop, stoppable where the real one is."""
        started = time.perf_counter()
        pictures = tuple(_hashed_picture(job, index) for index in range(len(job.request.seeds)))
        for index, timestep in enumerate(job.plan.schedule.timesteps):
            token.check()
            time.sleep(self._delay)
            if self._error is not None:
                raise self._error
            yield FakeStep(index=index, steps=job.request.steps, timestep=timestep, pictures=pictures)
        token.check()
        return self._result(job, pictures, time.perf_counter() - started)

    def _result(self, job: Job, pictures: tuple[Image.Image, ...], seconds: float) -> Result:
        key, model, recipe = self.choice
        vae, accelerator = key.file("vae"), key.file("accelerator")
        weights = mode_weights.choose_weights(model, recipe, accelerator)
        weight_licences = mode_weights.licences_of_mode(model, recipe, weights, key.embeddings, vae)
        return Result(
            images=pictures,
            jobs=(job,),
            engine_key=key,
            redraw=Redraw(engine=ref(self), door=self.door),
            timings={"steps": seconds, "decode": 0.0, "total": seconds},
            warnings=job.plan.warnings,
            model=model.source,
            licence=licences.join_licences((weight_licences | licences_of_call(job.request)).values()),
            device="fake",
            precision="fp32",
            runtime="fake",
        )

    def close(self) -> None:
        self.closed = True


@contextmanager
def fake(*, error: BaseException | None = None, delay: float = 0.0) -> Iterator[FakeEngine]:
    """Inside, `fewstep.generate`, `agenerate` and `load` use fakes; `requests` of the one given lists all."""
    engine = FakeEngine(error=error, delay=delay)

    def load(choice: EngineChoice) -> FakeEngine:
        loaded = FakeEngine(error=error, delay=delay)
        loaded.choice, loaded.requests = choice, engine.requests
        return loaded

    with engines_from(load):
        yield engine


def _hashed_picture(job: Job, index: int) -> Image.Image:
    """Colours from a hash of all that was asked for this picture; outside a mask, what was given."""
    request = json.dumps(job.plan.only([index]).to_dict(), sort_keys=True).encode()
    pictures = (*job.images[index : index + 1], *job.control, *job.reference)
    picture_bytes = b"".join(picture.tobytes() for picture in pictures)
    colours = hashlib.shake_256(request + picture_bytes).digest(3 * BLOCKS * BLOCKS)
    size = (job.request.width, job.request.height)
    image = Image.frombytes("RGB", (BLOCKS, BLOCKS), colours).resize(size, Image.Resampling.NEAREST)
    if not job.masks:
        return image
    return Image.composite(image, job.images[index], job.masks[index])
