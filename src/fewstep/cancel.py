"""Stopping calls that run: from another thread, and from asyncio."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import cache
from typing import TypeVar

from fewstep.errors import GenerationCancelledError

T = TypeVar("T")


class CancelToken:
    """Stops every call that it was given to, at that call's next step. Safe from any thread.

    One made from others, `CancelToken(a, b)`, is cancelled when any of them is.
    """

    def __init__(self, *parents: CancelToken):
        self._event, self._parents = threading.Event(), parents

    def cancel(self) -> None:
        """Stop the calls; calls that get this token later do not start."""
        self._event.set()

    @property
    def cancelled(self) -> bool:
        return self._event.is_set() or any(parent.cancelled for parent in self._parents)

    def check(self) -> None:
        """Raise `GenerationCancelledError` where cancelled."""
        if self.cancelled:
            raise GenerationCancelledError(
                "cancelled by its CancelToken; the engine is as before: give a new token to draw again"
            )


async def run_in_thread(call: Callable[[CancelToken], T], token: CancelToken | None) -> T:
    """Run `call` in a thread. Cancelling the task stops it at its next step, and waits for that.

    The threads are fewstep's own: asyncio's few are the app's, which calls that wait would block.
    """
    import asyncio

    call_token = CancelToken(*([] if token is None else [token]))
    started = _thread_pool().submit(copy_context().run, call, call_token)
    work = asyncio.wrap_future(started)
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        call_token.cancel()
        if not started.cancel():
            work.add_done_callback(lambda done: done.cancelled() or done.exception())  # it has been told
            await asyncio.wait([work])
        raise


@cache
def _thread_pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(32, "fewstep")


if hasattr(os, "register_at_fork"):  # a child has none of its parent's threads, and would wait for them
    os.register_at_fork(after_in_child=_thread_pool.cache_clear)
