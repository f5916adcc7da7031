"""One network for many calls: they take turns; rows of one length together, fewer where memory is out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from fewstep.denoiser import Conditioning, Network
from fewstep.devices.memory import free_memory
from fewstep.errors import MEMORY_ADVICE, DeviceMemoryError, is_out_of_memory
from fewstep.progress import Notify, ignore


class SharedNetwork:
    """A network as one call uses it, beside others that use it too.

    It is called with rows of one length, none filled up, at most `limit` at a time (0: any), and with
    half as many whenever memory runs out, of which `notify` is told. `lock` is held while it runs;
    `before` comes first in each turn: it puts the call's LoRAs on, and raises where the call is cancelled.
    """

    def __init__(
        self,
        network: Network,
        *,
        limit: int = 0,
        lock: AbstractContextManager[Any] | None = None,
        before: Callable[[], object] = lambda: None,
        notify: Notify = ignore,
    ):
        self._network, self._limit, self._before, self._notify = network, limit, before, notify
        self._lock = nullcontext() if lock is None else lock

    def __call__(
        self, x: Tensor, timestep: Tensor, conditioning: Conditioning, embedding: Tensor | None
    ) -> Tensor:
        """Return the network's prediction for every row, in order."""
        while True:
            batches = group_rows(conditioning.windows, self._limit) if len(x) > 1 else [[0]]
            answers: list[Tensor] = []
            try:
                for rows in batches:
                    part = (x, timestep, conditioning, embedding)
                    if len(batches) > 1:
                        guidance = None if embedding is None else embedding[rows]
                        part = (x[rows], timestep[rows], conditioning.select(rows), guidance)
                    with self._lock:
                        self._before()  # after the wait, which may be long
                        answers.append(self._network(*part))
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                self._halve_row_limit(error, len(x))
            else:
                return answers[0] if len(answers) == 1 else _in_order(answers, batches)
            free_memory()  # here, where the failed attempt is no longer held by its traceback

    def _halve_row_limit(self, error: Exception, rows: int) -> None:
        """Allow half as many rows as ran out of memory; raises `DeviceMemoryError` where it was one."""
        tried = min(self._limit or rows, rows)
        if tried == 1:
            raise DeviceMemoryError(
                f"memory ran out in the UNet, with one picture: {MEMORY_ADVICE}"
            ) from error
        self._limit = tried // 2
        self._notify(
            f"memory ran out: the UNet was called with {self._limit} rows at a time instead of {tried}"
        )


def group_rows(windows: Sequence[int], limit: int) -> list[list[int]]:
    """Return rows, given by their number of windows, in batches of equal ones of at most `limit` (0: any)."""
    by_length: dict[int, list[int]] = {}
    for row, count in enumerate(windows):
        by_length.setdefault(count, []).append(row)
    size = limit or len(windows)
    return [rows[i : i + size] for rows in by_length.values() for i in range(0, len(rows), size)]


def _in_order(answers: Sequence[Tensor], batches: Sequence[Sequence[int]]) -> Tensor:
    """Return the batches' answers as one tensor, row by row."""
    rows = {row: part for batch, answer in zip(batches, answers, strict=True)
            for row, part in zip(batch, answer.split(1), strict=True)}  # fmt: skip
    return torch.cat([rows[row] for row in range(len(rows))])
