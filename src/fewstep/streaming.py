"""Calls that give each step as it happens, and their result at the end: read by `for`, and by `async for`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from typing import Any, Generic, TypeVar

from fewstep.cancel import CancelToken, run_in_thread
from fewstep.errors import FewstepError

S = TypeVar("S")  # a step
R = TypeVar("R")  # what all steps come to


class Stream(Iterator[S], Generic[S, R]):
    """The steps of one call; `result` is there once they have been read to their end."""

    def __init__(self, steps: Generator[S, None, R]):
        """Read from a generator that yields steps and returns what they come to."""
        self._steps = steps
        self._result: tuple[R, ...] = ()

    def __next__(self) -> S:
        try:
            return next(self._steps)
        except StopIteration as end:
            if not self._result and end.value is not None:
                self._result = (end.value,)
            raise

    @property
    def result(self) -> R:
        """Return what the steps came to; raises `FewstepError` before their end, and where they were left."""
        if not self._result:
            raise FewstepError("this stream has no result: it has one once all its steps have been read")
        return self._result[0]

    def close(self) -> None:
        """Stop the call here, as leaving the loop does."""
        self._steps.close()


async def stream_in_thread(
    start: Callable[[CancelToken], Generator[S, None, R]], token: CancelToken | None
) -> AsyncGenerator[S | R, None]:
    """Yield the steps of a call that runs in a thread, then what they come to.

    The thread does not wait for who reads. It is stopped at its next step, and waited for, where the
    reading task is cancelled, or this generator closed.
    """
    import asyncio

    loop, events = asyncio.get_running_loop(), asyncio.Queue[Any]()

    def call(call_token: CancelToken) -> R:
        steps = Stream(start(call_token))
        for step in steps:
            loop.call_soon_threadsafe(events.put_nowait, step)
        return steps.result

    work = asyncio.ensure_future(run_in_thread(call, token))
    work.add_done_callback(events.put_nowait)  # behind all steps
    try:
        while (event := await events.get()) is not work:
            yield event
        yield await work
    finally:
        if not work.done():
            work.cancel()
            await asyncio.wait([work])
        if not work.cancelled():
            work.exception()  # somebody has asked for it, so that asyncio does not tell of it
