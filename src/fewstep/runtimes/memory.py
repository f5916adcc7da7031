"""When memory runs out: what counts as that, and how a UNet gets by with less."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from fewstep.conditioning import Conditioning
from fewstep.denoiser import Unet
from fewstep.errors import DeviceMemoryError, FewstepError, ran_out
from fewstep.runtimes.eager import in_batches

Say = Callable[[str], None]  # takes a sentence for the result's warnings

ADVICE = (
    "make smaller pictures, close other engines, or load with offload='model' or 'sequential' "
    "(`fewstep env` shows what is free)"
)


@contextmanager
def told_as_memory(where: str) -> Iterator[None]:
    """A lack of memory in here is a `DeviceMemoryError` with advice; other errors pass."""
    try:
        yield
    except FewstepError:
        raise
    except Exception as error:
        if ran_out(error):
            raise DeviceMemoryError(f"memory ran out {where}: {ADVICE}") from error
        raise


def release() -> None:
    """Give cached memory back, so that a smaller attempt finds it."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()


def halving(unet: Unet, limit: int, say: Say) -> Unet:
    """`unet` called with at most `limit` rows (0: all), half as many whenever memory runs out."""

    def call(x: Tensor, timestep: Tensor, conditioning: Conditioning, embedding: Tensor | None) -> Tensor:
        nonlocal limit
        while True:
            try:
                return in_batches(unet, limit)(x, timestep, conditioning, embedding)
            except Exception as error:
                rows = min(limit or len(x), len(x))
                if not ran_out(error):
                    raise
                if rows == 1:
                    raise DeviceMemoryError(
                        f"memory ran out in the UNet, with one picture: {ADVICE}"
                    ) from error
                limit = rows // 2
            release()  # here, where the failed attempt is no longer held by its traceback
            say(f"memory ran out: the UNet was called with {limit} rows at a time instead of {rows}")

    return call
