"""A picture is the same in every process; `python -m tests.fresh_processes 180` asks many more."""

from __future__ import annotations

import pytest
import torch

import fewstep
from tests import fresh_processes

SEEDS = [0, 1, 2**31, 2**32 - 1, 2**32, 2**53 + 1, 2**63, 2**64 - 1]
NOT_SEEDS = [-1, 2**64, 1.0, "7", True, [1, 2], [], [None]]


def test_fresh_processes_draw_what_this_one_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which has drawn whatever other tests asked for."""
    monkeypatch.chdir(fresh_processes.__file__.rpartition("/tests/")[0])
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))  # sums of more are rounded otherwise
    counts = fresh_processes.compare(2)
    counts.update(fresh_processes.draw(2).items())
    assert set(counts.values()) == {3}


@pytest.mark.parametrize("seed", SEEDS)
def test_seeds_that_are(seed: int) -> None:
    """8 of the 16 edges: recorded as given, and the same picture twice."""
    first, again = (fewstep.generate("a fox", 1, seed=seed) for _ in range(2))
    assert first.seeds == (seed,)
    assert first[0].tobytes() == again[0].tobytes()


@pytest.mark.parametrize("seed", NOT_SEEDS, ids=repr)
def test_seeds_that_are_not(seed: object) -> None:
    """The other 8."""
    with pytest.raises(fewstep.RequestError, match="seed"):
        fewstep.plan("a fox", seed=seed)  # type: ignore[arg-type]


def test_counting_up_stays_in_range() -> None:
    with pytest.raises(fewstep.RequestError, match=r"seed=18446744073709551616"):
        fewstep.plan(["a fox", "an owl"], seed=2**64 - 1)
