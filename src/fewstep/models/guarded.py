"""Reading what others wrote: whatever goes wrong there is the files' fault. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fewstep.errors import CorruptModelError, FewstepError
from fewstep.models.catalog import reading


@contextmanager
def guarded(path: Path) -> Iterator[None]:
    """As `reading`, around code of ours too: our own errors stay, and a key that is missing is named."""
    try:
        with reading(path):
            yield
    except CorruptModelError as error:
        cause = error.__cause__
        if isinstance(cause, FewstepError):
            raise cause from None
        if isinstance(cause, KeyError):
            raise CorruptModelError(f"{path} lacks {cause.args[0]!s:.200}") from cause
        raise
