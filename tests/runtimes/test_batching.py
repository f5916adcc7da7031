"""Calls that run at once share network calls, and nothing else."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

import fewstep
from fewstep.denoiser import Conditioning
from fewstep.errors import GenerationCancelledError
from fewstep.runtimes.batching import SharedNetwork, Turns

CALLS = 8


class Doubler:
    """A network that notes the rows of each call, and waits in the first for all other calls to come."""

    def __init__(self, turns: Turns, others: int):
        self.rows: list[int] = []
        self._turns, self._others = turns, others

    def __call__(
        self, x: Tensor, timestep: Tensor, conditioning: Conditioning, embedding: Tensor | None
    ) -> Tensor:
        assert embedding is None
        if not self.rows:
            with self._turns._changed:
                assert self._turns._changed.wait_for(lambda: len(self._turns._waiting) >= self._others, 10)
        self.rows.append(len(x))
        if not x.isfinite().all():
            raise ValueError("a row that no network takes")
        return 2 * x + timestep.view(-1, 1, 1, 1) + conditioning.tokens[:, :1, :1, None]


def told(value: float, windows: int = 1) -> Conditioning:
    return Conditioning(torch.full((1, 77 * windows, 1), value))


def ask_at_once(turns: Turns, network: Doubler, asks: list[dict[str, Any]]) -> list[Tensor | BaseException]:
    """Return what each call got, from threads that ask while the first is under way."""
    first_runs = threading.Event()

    def ask(index: int, how: dict[str, Any]) -> Tensor | BaseException:
        value = how.get("value", float(index))
        if index:
            first_runs.wait(10)
        shared = SharedNetwork(
            network, turns=turns, limit=how.get("limit", 0), kind=how.get("kind", ()),
            before=first_runs.set if not index else how.get("before", lambda: None),
        )  # fmt: skip
        try:
            x = torch.full((how.get("rows", 1), 4, 2, how.get("width", 2)), value)
            rows = len(x)
            conditioning = told(1.0, how.get("windows", 1)).select([0] * rows)
            return shared(x, torch.full((rows,), 10.0 * index), conditioning, None)
        except Exception as error:
            return error

    with ThreadPoolExecutor(len(asks)) as pool:
        return list(pool.map(ask, range(len(asks)), asks))


def run(asks: list[dict[str, Any]]) -> tuple[list[Tensor | BaseException], list[int]]:
    turns = Turns(threading.RLock())
    network = Doubler(turns, len(asks) - 1)
    return ask_at_once(turns, network, asks), network.rows


def test_calls_that_wait_go_together_each_with_its_own_level() -> None:
    answers, rows = run([{}] * CALLS)
    assert rows == [1, CALLS - 1]
    for index, answer in enumerate(answers):
        assert isinstance(answer, Tensor)
        assert torch.equal(answer, torch.full((1, 4, 2, 2), 2.0 * index + 10.0 * index + 1))


@pytest.mark.parametrize(
    ("asks", "rows"),
    [
        ([{}, {"limit": 2}, {"limit": 2}, {"limit": 2}], [1, 1, 2]),
        ([{}, {"rows": 2}, {"rows": 3}], [1, 5]),
        ([{}, {"kind": None}, {"kind": None}], [1, 1, 1]),
        ([{}, {"kind": "one LoRA"}, {"kind": "another"}, {"kind": "one LoRA"}], [1, 1, 2]),
        ([{}, {"width": 4}, {}, {"width": 4}], [1, 1, 2]),
        ([{}, {"windows": 2}, {}, {"windows": 2}], [1, 1, 2]),
    ],
)
def test_only_equal_ones_and_no_more_than_the_limit(asks: list[dict[str, Any]], rows: list[int]) -> None:
    answers, called = run(asks)
    assert called[0] == rows[0]
    assert sorted(called) == sorted(rows)
    assert all(isinstance(answer, Tensor) for answer in answers)


def test_one_that_fails_fails_alone() -> None:
    answers, rows = run([{}, {}, {"value": float("nan")}, {}])
    assert rows == [1, 3, 1, 1, 1]
    assert [isinstance(answer, Tensor) for answer in answers] == [True, True, False, True]
    assert isinstance(answers[2], ValueError)


def test_one_that_is_cancelled_while_it_waits_does_not_run() -> None:
    token = fewstep.CancelToken()
    token.cancel()
    answers, rows = run([{}, {"before": token.check}, {}])
    assert rows == [1, 1]
    assert isinstance(answers[1], GenerationCancelledError)


def test_want_of_memory_together_is_none_of_each() -> None:
    """Together they are too many; each on its own fits."""
    turns = Turns(threading.RLock())

    class Small(Doubler):
        def __call__(self, x: Tensor, *rest: Any) -> Tensor:
            answer = super().__call__(x, *rest)
            if len(x) > 1:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return answer

    network = Small(turns, 2)
    answers = ask_at_once(turns, network, [{}] * 3)
    assert network.rows == [1, 2, 1, 1]
    assert all(isinstance(answer, Tensor) for answer in answers)


def test_an_interrupt_leaves_the_turn_to_others() -> None:
    turns = Turns(threading.RLock())

    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        SharedNetwork(Doubler(turns, 0), turns=turns, before=interrupted, kind=())(
            torch.ones(1, 4, 2, 2), torch.zeros(1), told(0.0), None
        )
    assert turns._leader is None
    assert not turns._waiting
    answer = SharedNetwork(Doubler(turns, 0), turns=turns)(
        torch.ones(1, 4, 2, 2), torch.zeros(1), told(0.0), None
    )
    assert torch.equal(answer, torch.full((1, 4, 2, 2), 2.0))


def test_engines_share_steps_between_threads(engine: Callable[..., fewstep.Engine]) -> None:
    """Fewer network calls than steps asked for; every picture within 1 of 255 of the one drawn alone."""
    loaded, rows = engine("lcm"), []
    hook = loaded.parts.unet.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda seed: loaded.generate("an owl", 4, seed=seed)[0], range(8)))
    hook.remove()
    alone = [loaded.generate("an owl", 4, seed=seed)[0] for seed in range(8)]
    assert sum(rows) == 32
    assert len(rows) < 32
    for picture, other in zip(together, alone, strict=True):
        pairs = zip(picture.tobytes(), other.tobytes(), strict=True)
        assert max(abs(one - two) for one, two in pairs) <= 1
