"""A UNet that several calls share, each with adapters of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from fewstep.cancel import CancelToken
from fewstep.denoiser import Conditioning, Unet
from fewstep.errors import DeviceMemoryError, is_out_of_memory
from fewstep.runtimes.memory import ADVICE, Notify, free_memory


def take_turns(
    unet: Unet, lock: AbstractContextManager[Any], token: CancelToken, dress: Callable[[], None]
) -> Unet:
    """`unet`, with `lock` held while it runs, and not called any more once `token` is cancelled.

    Before each run `dress` sees to it that the call's own adapters are on.
    """

    def call(x: Tensor, timestep: Tensor, conditioning: Conditioning, embedding: Tensor | None) -> Tensor:
        with lock:
            token.check()  # after the wait, which may be long
            dress()
            return unet(x, timestep, conditioning, embedding)

    return call


def in_batches(unet: Unet, limit: int) -> Unet:
    """The same UNet, called with rows of one length, none filled up, at most `limit` at a time (0: any)."""

    def call(x: Tensor, timestep: Tensor, conditioning: Conditioning, embedding: Tensor | None) -> Tensor:
        batches = group_rows(conditioning.windows, limit)
        if len(batches) == 1:
            return unet(x, timestep, conditioning, embedding)
        answers: dict[int, Tensor] = {}
        for rows in batches:
            own = None if embedding is None else embedding[rows]
            answer = unet(x[rows], timestep[rows], conditioning.of(rows), own)
            answers.update(zip(rows, answer.split(1), strict=True))
        return torch.cat([answers[row] for row in range(len(x))])

    return call


def group_rows(windows: Sequence[int], limit: int) -> list[list[int]]:
    """Rows by their number of windows → batches of equal ones, at most `limit` in each (0: any)."""
    rows: dict[int, list[int]] = {}
    for row, count in enumerate(windows):
        rows.setdefault(count, []).append(row)
    size = limit or len(windows)
    return [same[start : start + size] for same in rows.values() for start in range(0, len(same), size)]


def halve_when_full(unet: Unet, limit: int, say: Notify) -> Unet:
    """`unet` called with at most `limit` rows (0: all), half as many whenever memory runs out."""

    def call(x: Tensor, timestep: Tensor, conditioning: Conditioning, embedding: Tensor | None) -> Tensor:
        nonlocal limit
        while True:
            try:
                return in_batches(unet, limit)(x, timestep, conditioning, embedding)
            except Exception as error:
                rows = min(limit or len(x), len(x))
                if not is_out_of_memory(error):
                    raise
                if rows == 1:
                    raise DeviceMemoryError(
                        f"memory ran out in the UNet, with one picture: {ADVICE}"
                    ) from error
                limit = rows // 2
            free_memory()  # here, where the failed attempt is no longer held by its traceback
            say(f"memory ran out: the UNet was called with {limit} rows at a time instead of {rows}")

    return call
