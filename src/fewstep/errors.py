"""Everything fewstep raises.

    FewstepError                     catch this to catch all
    ├── RequestError                 what was asked cannot be done; also a ValueError
    ├── BackendError                 a plug-in is broken, or two offer the same mode
    ├── ModelError                   the model's files
    │   ├── ModelNotFoundError       they are not here; says what to fetch
    │   └── CorruptModelError        they are damaged, or not what they should be
    ├── GenerationError              pictures could not be made; has `failures` and `survivors`
    │   └── DeviceMemoryError        memory ran out, and smaller batches and tiles did not help
    ├── GenerationCancelledError     it was told to stop, and did
    ├── JobLockedError               another process draws this batch
    └── OutputError                  a file could not be written; also an OSError

Each message is one line: what was given, what is allowed, what to type.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


class FewstepError(Exception):
    """The root of the tree. `exit_code` is what the command line ends with."""

    exit_code = 1


class RequestError(FewstepError, ValueError):
    """What was asked cannot be done."""

    exit_code = 2


class BackendError(FewstepError):
    """A plug-in of the group `fewstep.backends` cannot be used."""


class ModelError(FewstepError):
    """Something is wrong with a model's files."""


class ModelNotFoundError(ModelError):
    """The model's files are not on this machine."""


class CorruptModelError(ModelError):
    """The model's files are damaged, or are not what they should be."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """One picture of a call that could not be made."""

    picture: int  # its place in the call, from 0
    seed: int
    stage: str  # UNet or VAE
    reason: str
    memory: bool = False  # was it for want of memory?


class GenerationError(FewstepError):
    """Pictures could not be made. `survivors` holds those of the same call that could."""

    def __init__(self, message: str, failures: Sequence[Failure] = (), survivors: Any = None):
        super().__init__(message)
        self.failures: tuple[Failure, ...] = tuple(failures)
        self.survivors: Any = survivors  # a `fewstep.Result`, or None


class DeviceMemoryError(GenerationError):
    """Memory ran out, and smaller batches and tiles did not help."""


class GenerationCancelledError(FewstepError):
    """The call was told to stop. The engine is as it was before it."""

    exit_code = 130


class JobLockedError(FewstepError):
    """Another process draws this batch into the same folder."""

    exit_code = 75


class OutputError(FewstepError, OSError):
    """A file could not be written."""

    exit_code = 73


def describe_error(error: BaseException) -> str:
    """Another library's error in one line, for use in a message: its kind, and how its own begins."""
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def is_out_of_memory(error: BaseException) -> bool:
    """Is this error a lack of memory? torch has no one class for it on all devices, but says so."""
    if isinstance(error, MemoryError):
        return True
    # CUDA and MPS; the CPU; cuBLAS and cuDNN.
    signs = ("out of memory", "DefaultCPUAllocator", "_STATUS_ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


MEMORY_ADVICE = (
    "make smaller pictures, close other engines, or load with offload='model' or 'sequential' "
    "(`fewstep env` shows what is free)"
)


@contextmanager
def raise_as_memory_error(where: str) -> Iterator[None]:
    """Turn a lack of memory in here into a `DeviceMemoryError` with advice; other errors pass."""
    try:
        yield
    except FewstepError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise DeviceMemoryError(f"memory ran out {where}: {MEMORY_ADVICE}") from error
        raise
