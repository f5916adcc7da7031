"""When memory runs out: what counts as that, and how a UNet gets by with less."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from fewstep.errors import DeviceMemoryError, FewstepError, is_out_of_memory

Notify = Callable[[str], object]  # takes a sentence for the result's warnings


def ignore(sentence: str) -> None:
    """Tell nobody."""


ADVICE = (
    "make smaller pictures, close other engines, or load with offload='model' or 'sequential' "
    "(`fewstep env` shows what is free)"
)


@contextmanager
def raise_as_memory_error(where: str) -> Iterator[None]:
    """A lack of memory in here is a `DeviceMemoryError` with advice; other errors pass."""
    try:
        yield
    except FewstepError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise DeviceMemoryError(f"memory ran out {where}: {ADVICE}") from error
        raise


def free_memory() -> None:
    """Give cached memory back, so that a smaller attempt finds it."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()
