"""`Background`: calls that run beside the kernel's loop. The newest wins: one that runs is cancelled."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import copy_context
from typing import TypeAlias

from fewstep.cancel import CancelToken

# Ends soon once its token is cancelled, and raises nothing.
Call: TypeAlias = Callable[[CancelToken], object]


class Background:
    """Runs one call at a time, in a thread that is there only while there is something to do."""

    def __init__(self, name: str):
        self._name = name
        self._changed = threading.Condition()
        self._token = CancelToken()  # of the newest call
        self._next: Callable[[], object] | None = None
        self._thread: threading.Thread | None = None

    @property
    def busy(self) -> bool:
        """Whether a call runs or waits for its turn."""
        with self._changed:
            return self._thread is not None

    @property
    def waiting(self) -> bool:
        """Whether a newer call waits for the one that runs to end."""
        with self._changed:
            return self._next is not None

    def submit(self, call: Call) -> CancelToken:
        """Run `call` as soon as the one before it, which is cancelled, has ended; returns its token."""
        with self._changed:
            self._token.cancel()
            self._token = token = CancelToken()
            context = copy_context()
            self._next = lambda: context.run(call, token)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()
        return token

    def stop(self) -> None:
        """Cancel what runs, and what waits."""
        with self._changed:
            self._token.cancel()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until nothing runs; returns whether that came within `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: self._thread is None, timeout)

    def _run(self) -> None:
        while True:
            with self._changed:
                call, self._next = self._next, None
                if call is None:
                    self._thread = None
                    self._changed.notify_all()
                    return
            try:
                call()
            finally:
                del call  # and the pictures that it holds
