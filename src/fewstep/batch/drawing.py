"""`Artist`: draws groups of pictures, one engine loaded at a time; a picture that fails fails alone."""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from typing import Any

from fewstep import api
from fewstep.batch.index import Picture
from fewstep.batch.outcome import Outcome
from fewstep.batch.planning import Engine, resolve_picture
from fewstep.batch.writer import Drawn, Group, failure
from fewstep.cancel import CancelToken
from fewstep.errors import FewstepError, GenerationCancelledError, GenerationError
from fewstep.request import Job
from fewstep.result import Result

_LISTED = ("prompt", "prompt_2", "seed")  # options that each picture of a call has its own of


class Artist:
    """Draws planned pictures. The engine of the last group stays loaded for the next."""

    def __init__(self, cancel: CancelToken | None = None):
        self._cancel = cancel
        self._engine: Any = None
        self._loaded: Engine | None = None
        self._broken: dict[int, Exception] = {}  # engines that could not be loaded, by number

    def draw(self, group: Sequence[Picture], engine: Engine, job: Job | Exception) -> list[_Attempt]:
        """Return each picture of a group with its result, or with what went wrong; raises where cancelled.

        A call that fails as a whole is drawn picture by picture, so that only those fail that must.
        """
        try:
            loaded = self._load(engine)
        except Exception as error:
            return [(picture, error, 0.0, len(group)) for picture in group]
        if isinstance(job, Exception):
            if len(group) == 1:
                return [(group[0], job, 0.0, 1)]
            return self._draw_singly(group, engine)
        started = time.perf_counter()
        try:
            result = loaded.run(job, cancel=self._cancel, progress=False)
        except GenerationCancelledError:
            raise
        except GenerationError as error:
            if error.survivors is None and len(group) > 1:
                return self._draw_singly(group, engine)
            return _split_failures(group, error, time.perf_counter() - started)
        except Exception as error:
            if len(group) > 1:
                return self._draw_singly(group, engine)
            return [(group[0], error, 0.0, 1)]
        seconds = (time.perf_counter() - started) / len(group)
        return [(picture, (result, index), seconds, len(group)) for index, picture in enumerate(group)]

    def _draw_singly(self, group: Sequence[Picture], engine: Engine) -> list[_Attempt]:
        return [
            attempt
            for picture in group
            for attempt in self.draw([picture], engine, prepare([picture], engine))
        ]

    def _load(self, engine: Engine) -> Any:
        """Return the loaded engine; the one before it is let go first."""
        if engine.number in self._broken:
            raise self._broken[engine.number]
        if self._loaded is not engine:
            self.close()
            try:
                self._engine = api.load_choice(engine.choice)
            except Exception as error:
                self._broken[engine.number] = error
                raise
            self._loaded = engine
        return self._engine

    @property
    def loaded(self) -> Engine | None:
        """Return the engine that is loaded."""
        return self._loaded

    def close(self) -> None:
        """Let the engine go."""
        if self._engine is not None:
            self._engine.close()
            self._engine = self._loaded = None
            gc.collect()


_Attempt = tuple[Picture, "tuple[Result, int] | Exception", float, int]  # seconds, pictures of the call


def prepare(group: Sequence[Picture], engine: Engine) -> Job | Exception:
    """Return the job of a group, its given pictures read; or the error that it has."""
    first = group[0].options
    shared = {name: value for name, value in first.items() if name not in _LISTED}
    listed = {name: [picture.options[name] for picture in group] for name in _LISTED if name in first}
    try:
        return resolve_picture(engine.choice, shared | listed)
    except Exception as error:
        return error


def sort_attempts(attempts: Sequence[_Attempt], needed: set[int], started: set[str]) -> Group:
    """Return what is to be written of a group: the pictures `needed`, by their positions.

    started: names whose files may be there without a record.
    """
    drawn, failed = list[Drawn](), list[Outcome]()
    for picture, outcome, seconds, batch in attempts:
        if picture.position not in needed:
            continue
        if isinstance(outcome, Exception):
            failed.append(failure(picture, outcome))
        else:
            result, index = outcome
            replace = picture.name in started
            drawn.append(
                Drawn(
                    picture=picture, result=result, index=index, replace=replace, seconds=seconds, batch=batch
                )
            )
    return Group(drawn=drawn, failed=failed)


def _split_failures(group: Sequence[Picture], error: GenerationError, seconds: float) -> list[_Attempt]:
    """Return the survivors of a call in their places, and for the others why they failed."""
    reasons = {failed.picture: FewstepError(failed.reason) for failed in error.failures}
    survivors = error.survivors
    places = {place: index for index, place in enumerate(survivors.places)} if survivors is not None else {}
    attempts = list[_Attempt]()
    for place, picture in enumerate(group):
        outcome = (survivors, places[place]) if place in places else reasons.get(place, error)
        attempts.append((picture, outcome, seconds / len(group), len(group)))
    return attempts
