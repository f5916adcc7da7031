"""`EngineBase`: what an engine offers, all of it in terms of `run` and `stream_job`. No torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, Unpack
from weakref import ref

from fewstep import values
from fewstep.cancel import CancelToken, run_in_thread
from fewstep.errors import GenerationError, RequestError
from fewstep.request import Job, PictureOptions, Plan, Prompts
from fewstep.request.engine_choice import EngineChoice, only_job, resolve_call, split_options
from fewstep.result import Result, join_results
from fewstep.streaming import Stream, stream_in_thread

if TYPE_CHECKING:
    from fewstep.catalog.models import Model
    from fewstep.progress import Progress
    from fewstep.recipe import Recipe

S = TypeVar("S")


class EngineBase(ABC, Generic[S]):
    """A model in a mode, ready to draw. Use as a context manager, or call `close`. S: what a step is."""

    choice: EngineChoice
    commercial: bool = False  # as `fewstep.load` was told: is what calls bring with them looked at too?
    closed: bool = False
    weight_bytes: int = 0  # that its weights take
    free_bytes: int = 0  # that its device had before it was loaded
    door: Callable[..., Result] | None = None  # `fewstep.generate`, where it was loaded by name

    @property
    def model(self) -> Model:
        """Whose pictures."""
        return self.choice.model

    @property
    def recipe(self) -> Recipe:
        """The mode."""
        return self.choice.recipe

    def plan(self, prompt: Prompts, steps: int | None = None, **options: Unpack[PictureOptions]) -> Plan:
        """Return what `generate` would run; the options are those of `fewstep.generate`."""
        return only_job(self._jobs(prompt, steps, options)).plan

    def generate(
        self,
        prompt: Prompts,
        steps: int | Sequence[int] | None = None,
        *,
        cancel: CancelToken | None = None,
        progress: Progress = None,
        **options: Unpack[PictureOptions],
    ) -> Result:
        """Make the pictures; the options are those of `fewstep.generate`."""
        return self.run_jobs(self._jobs(prompt, steps, options), cancel=cancel, progress=progress)

    async def agenerate(
        self,
        prompt: Prompts,
        steps: int | Sequence[int] | None = None,
        *,
        cancel: CancelToken | None = None,
        progress: Progress = None,
        **options: Unpack[PictureOptions],
    ) -> Result:
        """`generate` beside an event loop; cancelling the task stops it at its next step."""
        jobs = self._jobs(prompt, steps, options)
        return await run_in_thread(lambda token: self.run_jobs(jobs, cancel=token, progress=progress), cancel)

    def stream(
        self,
        prompt: Prompts,
        steps: int | None = None,
        *,
        cancel: CancelToken | None = None,
        **options: Unpack[PictureOptions],
    ) -> Stream[S, Result]:
        """Yield each step as it happens; at the end its `result` is there. The request is checked at once.

            stream = engine.stream("a fox", steps=4)
            for step in stream:
                show(step.preview())
            stream.result.save("fox.png")

        Leaving the loop cancels. What the result's warnings say goes to the logger "fewstep" too.
        """
        job = only_job(self._jobs(prompt, steps, options))
        return Stream(self.stream_job(job, cancel))

    def astream(
        self,
        prompt: Prompts,
        steps: int | None = None,
        *,
        cancel: CancelToken | None = None,
        **options: Unpack[PictureOptions],
    ) -> AsyncGenerator[S | Result, None]:
        """Yield each step beside an event loop, then the `Result`. The request is checked at once.

        Cancelling the task stops it at its next step. So does leaving the loop, for certain inside
        `async with contextlib.aclosing(engine.astream(...)) as events`.
        """
        job = only_job(self._jobs(prompt, steps, options))
        return stream_in_thread(lambda token: self.stream_job(job, token), cancel)

    def run_jobs(
        self, jobs: Sequence[Job], *, cancel: CancelToken | None = None, progress: Progress = None
    ) -> Result:
        """Make the pictures of a call, which lists of options make into several jobs, one after the other.

        Where pictures of one did not come out, the error's survivors are all that did until then.
        """
        if len(jobs) == 1:
            return self.run(jobs[0], cancel=cancel, progress=progress)
        results: list[Result] = []
        for job in jobs:
            try:
                results.append(self.run(job, cancel=cancel, progress=progress))
            except GenerationError as error:
                failures = [replace(f, picture=job.places[f.picture]) for f in error.failures]
                survivors = [*results, error.survivors] if error.survivors else results
                raise type(error)(
                    str(error), failures, join_results(survivors) if survivors else None
                ) from error
        return join_results(results)

    @abstractmethod
    def run(self, job: Job, *, cancel: CancelToken | None = None, progress: Progress = None) -> Result:
        """Make the pictures of a job that `fewstep.request.engine_choice` checked for this model and mode."""

    @abstractmethod
    def close(self) -> None:
        """Refuse all later calls, and let go of the weights; calls still running keep them to their end."""

    @abstractmethod
    def stream_job(self, job: Job, cancel: CancelToken | None = None) -> Generator[S, None, Result]:
        """Yield the steps of a job, and return its result."""

    def _jobs(
        self, prompt: Prompts, steps: int | Sequence[int] | None, options: PictureOptions
    ) -> tuple[Job, ...]:
        return resolve_call(self.choice, prompt, steps, options, self.commercial)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def serves(self, steps: int | Sequence[int] | None, mode: str | None, options: Mapping[str, Any]) -> bool:
        """Return whether a call with these options of `fewstep.generate` can be one of this engine."""
        recipe, loaded = self.recipe, self.choice.key.options
        engine_options = split_options(options)[0]
        commercial = engine_options.pop("commercial", False) and not self.commercial
        same = all(_as_key(value) == _as_key(loaded[name]) for name, value in engine_options.items())  # type: ignore[literal-required]
        listed = values.members(steps) or [steps]
        other_weights = any(number in recipe.steps.also for number in listed)
        return not (self.closed or commercial or other_weights) and same and mode in (None, recipe.mode)


def _as_key(value: Any) -> Any:
    """Return an engine option so that it can be compared: paths as text, lists as tuples of it."""
    listed = values.members(value)
    return str(value) if listed is None else tuple(map(str, listed))


@dataclass(frozen=True, kw_only=True)
class Redraw:
    """What a result draws with: its engine while that is loaded and can, else `door`, which loads beside."""

    engine: ref[EngineBase[Any]]  # a result keeps no weights in memory
    door: Callable[..., Result] | None

    def __call__(
        self,
        prompt: Prompts,
        steps: int | Sequence[int] | None = None,
        mode: str | None = None,
        **options: Any,
    ) -> Result:
        """Return the pictures; the options are those of `fewstep.generate`."""
        engine = self.engine()
        if engine is not None and engine.serves(steps, mode, options):
            return engine.generate(prompt, steps, **split_options(options)[1])
        if self.door is None:
            raise RequestError(
                "this result's engine was not loaded by name, and cannot draw this, or is closed: "
                "type fewstep.generate(..., image=result, mode=..., model=...)"
            )
        return self.door(prompt, steps, mode, **options)
