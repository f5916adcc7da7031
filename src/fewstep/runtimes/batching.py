"""Turns on a model's networks; calls that wait at once go through a network together.

This is continuous batching, as language-model servers do it (Yu et al., Orca, OSDI 2022), for pictures: a
call needs the network for one step at a time, and whoever has the turn takes along what waits beside it, of
other prompts, seeds and noise levels. Nobody waits for another call's end, and there is no thread of its own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from fewstep.denoiser import Conditioning, Network
from fewstep.devices.memory import free_memory
from fewstep.errors import MEMORY_ADVICE, DeviceMemoryError, is_out_of_memory
from fewstep.progress import Notify, ignore

# After several calls ran together the next turn waits for them to come with their next step, at most for this
# part of the time that the network took, and so many seconds.
PATIENCE, MOST_PATIENT = 0.15, 0.01


@dataclass(eq=False)
class _Task:
    """What waits for its turn, and how it ended."""

    caller: SharedNetwork
    inputs: Any
    rows: int
    kind: object
    answer: Any = field(default=None, init=False)
    error: BaseException | None = field(default=None, init=False)
    finished: bool = field(default=False, init=False)

    def finish(self, answer: Any = None, error: BaseException | None = None) -> None:
        self.answer, self.error, self.finished = answer, error, True


class Turns:
    """Who may run a model's networks now. `lock` is held meanwhile: text encoders, decoders take it too."""

    def __init__(self, lock: AbstractContextManager[Any]):
        self._lock = lock
        self._changed = threading.Condition()
        self._waiting: list[_Task] = []  # the oldest first
        self._leader: SharedNetwork | None = None  # whose thread has the turn
        self._together, self._seconds = 1, 0.0  # tasks in the last run, and how long it took

    def run(self, caller: SharedNetwork, inputs: Any, rows: int) -> Any:
        """Return the caller's answer to its inputs, once they have had their turn."""
        try:
            with self._changed:
                alone = self._leader is None and not self._waiting and self._together == 1
                if alone:
                    self._leader = caller
            if not alone:
                return self._run_with_others(_Task(caller, inputs, rows, caller.kind(inputs)))
            with self._lock:
                caller.before()
                return caller.network(*inputs)
        finally:
            with self._changed:
                if self._leader is caller:  # an interrupt may have come anywhere
                    self._leader = None
                self._changed.notify_all()

    def _run_with_others(self, task: _Task) -> Any:
        try:
            with self._changed:
                self._waiting.append(task)
                self._changed.notify_all()
            while self._wait_for_turn(task):
                self._lead()
        finally:
            with self._changed:
                if task in self._waiting:
                    self._waiting.remove(task)
        if task.error is not None:
            raise task.error
        return task.answer

    def _wait_for_turn(self, task: _Task) -> bool:
        """Wait until the task is finished, False, or its thread has the turn, True."""
        with self._changed:
            while self._leader is not None and not task.finished:
                self._changed.wait()
            if not task.finished:
                self._leader = task.caller
            return not task.finished

    def _lead(self) -> None:
        """Run the oldest task that waits, and with it those of its kind."""
        batch: list[_Task] = []
        try:
            with self._lock:
                batch = self._take_batch()
                started = time.perf_counter()
                _run_batch(batch)
                self._together, self._seconds = len(batch), time.perf_counter() - started
        finally:
            with self._changed:
                self._waiting[:0] = [task for task in batch if not task.finished]
                self._leader = None
                self._changed.notify_all()

    def _take_batch(self) -> list[_Task]:
        """Return the tasks to run now, which no longer wait."""
        with self._changed:
            deadline = time.monotonic() + min(PATIENCE * self._seconds, MOST_PATIENT)
            while len(self._waiting) < self._together:
                if not self._changed.wait(max(0.0, deadline - time.monotonic())):
                    break
            first = self._waiting[0]
            batch, rows = [first], first.rows
            for task in self._waiting[1:]:
                fits = not first.caller.limit or rows + task.rows <= first.caller.limit
                if first.kind is not None and task.kind == first.kind and fits:
                    batch.append(task)
                    rows += task.rows
            self._waiting = [task for task in self._waiting if task not in batch]
            return batch


def _run_batch(batch: Sequence[_Task]) -> None:
    """Run tasks of one kind; each ends with its answer or an error of its own."""
    ready: list[_Task] = []
    for task in batch:
        try:
            task.caller.before()
        except Exception as error:
            task.finish(error=error)
        else:
            ready.append(task)
    if len(ready) > 1:
        try:
            answers = ready[0].caller.run_together([task.inputs for task in ready])
        except Exception:  # of one of them, or for want of memory: each on its own will tell
            pass
        else:
            for task, answer in zip(ready, answers, strict=True):
                task.finish(answer)
            return
    for task in ready:
        try:
            task.finish(task.caller.network(*task.inputs))
        except Exception as error:
            task.finish(error=error)


_Inputs = tuple[Tensor, Tensor, Conditioning, Tensor | None]  # of a network: a row each


class SharedNetwork:
    """A network as one call uses it, beside others that use it too.

    It is called with rows of one length, none filled up, at most `limit` at a time (0: any), and with
    half as many whenever memory runs out, of which `notify` is told. `turns` says when; rows of other calls
    come along where `kind` is equal: what is on the network besides its own weights; None is for rows that
    no other may join. `before` comes first in each turn: it puts the call's LoRAs on, and raises where the
    call is cancelled.
    """

    def __init__(
        self,
        network: Network,
        *,
        limit: int = 0,
        turns: Turns | None = None,
        before: Callable[[], object] = lambda: None,
        notify: Notify = ignore,
        kind: object = None,
    ):
        self.network, self.limit, self.before, self._notify = network, limit, before, notify
        self._turns, self._kind = Turns(nullcontext()) if turns is None else turns, kind

    def __call__(
        self, x: Tensor, timestep: Tensor, conditioning: Conditioning, embedding: Tensor | None
    ) -> Tensor:
        """Return the network's prediction for every row, in order."""
        while True:
            batches = group_rows(conditioning.windows, self.limit) if len(x) > 1 else [[0]]
            answers: list[Tensor] = []
            try:
                for rows in batches:
                    part: _Inputs = (x, timestep, conditioning, embedding)
                    if len(batches) > 1:
                        guidance = None if embedding is None else embedding[rows]
                        part = (x[rows], timestep[rows], conditioning.select(rows), guidance)
                    answers.append(self._turns.run(self, part, len(part[0])))
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                self._halve_row_limit(error, len(x))
            else:
                return answers[0] if len(answers) == 1 else _in_order(answers, batches)
            free_memory()  # here, where the failed attempt is no longer held by its traceback

    def kind(self, inputs: _Inputs) -> object:
        """Return what rows that can run with these have in common; None where none may."""
        x, _, conditioning, _ = inputs
        if self._kind is None:
            return None
        return self.network, self._kind, x.shape[1:], x.dtype, conditioning.windows[0]

    def run_together(self, calls: Sequence[_Inputs]) -> Sequence[Tensor]:
        """Return the prediction of each call's rows."""
        xs, timesteps, conditionings, embeddings = zip(*calls, strict=True)
        embedding = None if embeddings[0] is None else torch.cat(embeddings)
        rows = torch.cat(xs), torch.cat(timesteps), reduce(Conditioning.join, conditionings), embedding
        predictions: Tensor = self.network(*rows)
        return list(predictions.split([len(x) for x in xs]))

    def _halve_row_limit(self, error: Exception, rows: int) -> None:
        """Allow half as many rows as ran out of memory; raises `DeviceMemoryError` where it was one."""
        tried = min(self.limit or rows, rows)
        if tried == 1:
            raise DeviceMemoryError(
                f"memory ran out in the UNet, with one picture: {MEMORY_ADVICE}"
            ) from error
        self.limit = tried // 2
        self._notify(
            f"memory ran out: the UNet was called with {self.limit} rows at a time instead of {tried}"
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
