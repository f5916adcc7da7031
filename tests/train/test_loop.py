"""The training loop: resuming is exact, state is whole, the average is what its formula says."""

from __future__ import annotations

import copy
import itertools
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fewstep.errors import FewstepError, RequestError
from fewstep.train import loop, outputs
from fewstep.train.loop import Draw, Hyper
from fewstep.train.optimisers import Optimiser


class Regression:
    """Two layers, one of them with a frozen bias, fitted to a sine of random points."""

    def __init__(self, seed: int = 0):
        torch.manual_seed(seed)
        first, second = nn.Linear(3, 8), nn.Linear(8, 1)
        second.bias.requires_grad_(False)
        self.modules: dict[str, nn.Module] = {"first": first, "second": second}
        self.averages = copy.deepcopy(self.modules)

    def loss(self, draw: Draw) -> Tensor:
        x = torch.randn(16, 3, generator=draw.torch) * draw.python.uniform(0.5, 1.5)
        made: Tensor = self.modules["second"](self.modules["first"](x).tanh())
        return (made.float() - x.sum(dim=1, keepdim=True).sin()).square().mean()


def hyper(steps: int = 6, *, bf16: bool = True, warmup: int = 2, ema: float = 0.999) -> Hyper:
    return Hyper(steps=steps, batch=16, rate=0.05, warmup=warmup, bf16=bf16, ema=ema)


def run(folder: Path, settings: Hyper, *, stop: int | None = None, every: int = 250) -> list[float]:
    """Losses of a new process's share of a run; `stop` kills it after that many steps."""
    steps = loop.train_task(Regression(), settings, folder, every=every)
    return [progress.loss for progress in itertools.islice(steps, stop)]


def weight(modules: dict[str, nn.Module], name: str) -> Tensor:
    return modules[name].get_parameter("weight").detach()


def state(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "state.safetensors")


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for key, tensor in a.items():
        assert torch.equal(tensor, b[key]), key


@pytest.mark.parametrize("bf16", [True, False])
def test_resume_is_bit_for_bit(tmp_path: Path, bf16: bool) -> None:
    settings = hyper(bf16=bf16)
    whole = run(tmp_path / "whole", settings)
    parts = run(tmp_path / "parts", settings, stop=3, every=3) + run(tmp_path / "parts", settings, every=3)
    assert parts == whole
    found = state(tmp_path / "parts")
    assert {key.split(".")[0] for key in found} == {"live", "ema", "adam"}
    assert sum(key.endswith(("exp_avg", "exp_avg_sq", "step")) for key in found) == 9  # 3 learning parameters
    assert_same(found, state(tmp_path / "whole"))


def test_a_kill_between_checkpoints_resumes_from_the_last(tmp_path: Path) -> None:
    settings = hyper()
    whole = run(tmp_path / "whole", settings)
    killed = run(tmp_path / "parts", settings, stop=5, every=2)
    resumed = run(tmp_path / "parts", settings, every=2)
    assert killed == whole[:5]
    assert resumed == whole[4:]  # step 5 was done, but not written
    assert_same(state(tmp_path / "parts"), state(tmp_path / "whole"))


def test_a_kill_while_writing_leaves_the_state_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path, hyper(), stop=2, every=2)
    before = state(tmp_path)

    def torn(_: object, path: Path, **__: object) -> None:
        path.write_bytes(b"half a file")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(outputs, "save_file", torn)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, hyper(), every=2)
    assert_same(state(tmp_path), before)
    assert len(run(tmp_path, hyper())) == 4


def test_a_finished_run_yields_nothing_and_leaves_one_file(tmp_path: Path) -> None:
    assert len(run(tmp_path, hyper())) == 6
    before = (tmp_path / "state.safetensors").read_bytes()
    assert run(tmp_path, hyper()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["losses.csv", "state.safetensors"]
    assert (tmp_path / "state.safetensors").read_bytes() == before


def test_progress_counts_and_shows_the_rate(tmp_path: Path) -> None:
    settings = hyper()
    found = list(loop.train_task(Regression(), settings, tmp_path))
    assert [p.step for p in found] == [1, 2, 3, 4, 5, 6]
    assert [p.rate for p in found] == [0.05 * loop.rate_factor(step, settings) for step in range(6)]


def test_the_loss_falls(tmp_path: Path) -> None:
    losses = run(tmp_path, hyper(60))
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])


def test_restore_loads_the_averages_only(tmp_path: Path) -> None:
    trained = Regression()
    list(loop.train_task(trained, hyper(), tmp_path))
    fresh, start = Regression(seed=1), Regression(seed=1)
    loop.restore(fresh.averages, tmp_path)
    for name in ("first", "second"):
        assert torch.equal(weight(fresh.averages, name), weight(trained.averages, name))
        assert torch.equal(weight(fresh.modules, name), weight(start.modules, name))
        assert not torch.equal(weight(trained.averages, name), weight(trained.modules, name))


def test_restore_works_on_a_task_that_was_trained(tmp_path: Path) -> None:
    task = Regression()
    list(loop.train_task(task, hyper(), tmp_path))
    kept = weight(task.averages, "first").clone()
    nn.init.zeros_(weight(task.averages, "first"))
    loop.restore(task.averages, tmp_path)
    assert torch.equal(weight(task.averages, "first"), kept)


def test_the_average_starts_short(tmp_path: Path) -> None:
    task = Regression()
    live, mean = weight(task.modules, "first"), weight(task.averages, "first").clone()
    for step, _ in enumerate(loop.train_task(task, hyper(ema=0.3), tmp_path)):
        keep = (0.1, 2 / 11, 3 / 12, 0.3, 0.3, 0.3)[step]  # (1 + step) / (10 + step), at most 0.3
        mean = keep * mean + (1 - keep) * live
        torch.testing.assert_close(weight(task.averages, "first"), mean)


def test_what_does_not_learn_stays(tmp_path: Path) -> None:
    task = Regression()
    bias = task.modules["second"].get_parameter("bias").clone()
    list(loop.train_task(task, hyper(), tmp_path))
    assert torch.equal(task.modules["second"].get_parameter("bias"), bias)
    assert not any("second.bias" in key for key in state(tmp_path))


@pytest.mark.parametrize(
    ("step", "factor"),
    [
        (0, 0.1),
        (4, 0.5),
        (9, 1.0),
        (10, 1.0),
        (59, 1.0),
        (60, 1.0),
        (70, 0.853553),
        (80, 0.5),
        (99, 0.001541),
    ],
)
def test_rate_factor(step: int, factor: float) -> None:
    settings = Hyper(steps=100, batch=1, rate=1.0, warmup=10, decay=0.4)
    assert loop.rate_factor(step, settings) == pytest.approx(factor, abs=1e-6)


def test_rate_factor_rises_then_falls() -> None:
    settings = Hyper(steps=100, batch=1, rate=1.0, warmup=10, decay=0.4)
    factors = [loop.rate_factor(step, settings) for step in range(100)]
    assert factors == sorted(factors[:60]) + sorted(factors[60:], reverse=True)


def test_the_draws_of_a_step_are_its_own() -> None:
    def numbers(step: int) -> tuple[float, float]:
        draw = Draw.of(3, step)
        return float(torch.rand((), generator=draw.torch)), draw.python.random()

    assert numbers(7) == numbers(7)
    assert all(len(set(column)) == 16 for column in zip(*map(numbers, range(16)), strict=True))


def test_accumulating_is_the_mean_of_its_batches(tmp_path: Path) -> None:
    """One step of two batches: loss and gradient are the means of those of the batches alone."""
    settings = replace(hyper(steps=1, bf16=False), accumulate=2)
    task = Regression()
    losses = [task.loss(Draw.of(settings.seed, share)) for share in range(2)]
    whole = torch.stack(losses).mean()
    torch.autograd.backward(whole)
    moved = copy.deepcopy(task.modules)
    for twin, module in zip(moved.values(), task.modules.values(), strict=True):
        for a, b in zip(twin.parameters(), module.parameters(), strict=True):
            a.grad = b.grad
    live = {f"{n}.{k}": p for n, m in moved.items() for k, p in m.named_parameters() if p.requires_grad}
    nn.utils.clip_grad_norm_(live.values(), settings.clip)
    Optimiser(live, muon=False, weight_decay=settings.weight_decay).step(settings.rate / settings.warmup)

    found = Regression()
    [progress] = loop.train_task(found, settings, tmp_path)
    assert progress.loss == pytest.approx(float(whole.detach()))
    for name in moved:
        torch.testing.assert_close(weight(found.modules, name), weight(moved, name))


def test_the_log_is_that_of_an_uninterrupted_run(tmp_path: Path) -> None:
    run(tmp_path / "whole", hyper())
    run(tmp_path / "parts", hyper(), stop=5, every=2)
    run(tmp_path / "parts", hyper(), every=2)
    whole, parts = (
        [line.rsplit(",", 1)[0] for line in (tmp_path / name / "losses.csv").read_text().splitlines()]
        for name in ("whole", "parts")
    )
    assert whole == parts
    assert [line.split(",")[0] for line in whole] == [str(step) for step in range(1, 7)]


def test_other_settings_are_refused(tmp_path: Path) -> None:
    run(tmp_path, hyper(), stop=2, every=2)
    with pytest.raises(RequestError, match=r"steps=6, and asked is steps=9"):
        run(tmp_path, hyper(9))


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path, hyper(), stop=2, every=2)
    before = state(tmp_path)
    loss = Regression.loss
    monkeypatch.setattr(Regression, "loss", lambda self, draw: loss(self, draw) * math.nan)
    with pytest.raises(FewstepError, match=r"the loss of step 3 is nan: lower the rate \(0.05\)"):
        run(tmp_path, hyper())
    assert_same(state(tmp_path), before)
