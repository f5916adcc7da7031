"""Keeps a second runner out, by a lock of the operating system that ends with the process, however that ends.

On network file systems it is as good as the system's own locks are there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from fewstep.errors import JobLockedError, OutputError

PATIENCE = 0.3  # seconds: `fewstep batch --status` holds a lock for a moment


@contextmanager
def lock_job(folder: Path, shard: tuple[int, int]) -> Iterator[None]:
    """Hold runner i of n of a job; raises `JobLockedError` where it is held, or others of another n run.

    Of two that start at once with different n both may be refused, and never both run.
    """
    index, count = shard
    lock = FileLock(folder / f"lock-{index}-of-{count}")
    try:
        lock.acquire(timeout=PATIENCE)
    except Timeout:
        what = "another process" if count == 1 else f"another process as {index}/{count}"
        message = f"{str(folder.parent)!r} is being drawn by {what}: wait for it, or stop it"
        raise JobLockedError(message) from None
    except OSError as error:
        raise OutputError(f"{str(folder)!r} cannot be written: {error.strerror or error}") from error
    try:
        for path in folder.glob("lock-*-of-*"):
            if not path.name.endswith(f"-of-{count}") and is_locked(path):
                raise JobLockedError(
                    f"{str(folder.parent)!r} is being drawn as {path.name.removeprefix('lock-')}, "
                    f"and this is of {count}: give all runners the same n"
                )
        yield
    finally:
        lock.release()


def is_locked(path: Path) -> bool:
    """Return whether a process holds this lock now."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except (Timeout, OSError):
        return True
    lock.release()
    return False


@contextmanager
def lock_summary(folder: Path) -> Iterator[None]:
    """Hold what runners write together, one after the other."""
    with FileLock(folder / "summary"):
        yield
