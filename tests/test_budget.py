"""`budget_ms=`: what fits is chosen by costs that are measured, once, and kept."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import fewstep
from fewstep import RequestError, api, cli
from fewstep.budget import Cost, CostStore, costs, quality
from fewstep.catalog.models import describe_model
from fewstep.engine_cache import EngineCache, load_engine
from fewstep.modes import find_recipe
from fewstep.request.engine_choice import EngineChoice
from fewstep.testing import FakeEngine

# Milliseconds, by mode, and by VAE: told by engines in the place of a clock.
STEP = {"base": 20.0, "turbo": 10.0, "lcm": 11.0, "lcm-lora": 12.0}
DECODE = {"": 50.0, "tiny": 5.0}
loads: list[tuple[str, str]] = []


class TimedEngine(FakeEngine):
    """Says that it took as long as its mode and VAE take."""

    def run(self, job: Any, **how: Any) -> fewstep.Result:
        result, mode, vae = super().run(job, **how), self.recipe.mode, self.choice.key.file("vae")
        steps, decode = 7 + job.request.steps * STEP[mode], DECODE[vae]
        timings = {"steps": steps / 1000, "decode": decode / 1000, "total": (steps + decode) / 1000}
        return replace(result, timings=timings)


def load(choice: EngineChoice) -> TimedEngine:
    loads.append((choice.key.mode, choice.key.file("vae")))
    engine = TimedEngine()
    engine.choice = choice
    return engine


@pytest.fixture(autouse=True)
def timed() -> Iterator[None]:
    loads.clear()
    with api.engines_from(load):
        yield


def chosen(budget: float, **options: Any) -> tuple[str, int, str]:
    result = fewstep.generate("a fox", budget_ms=budget, seed=1, **options)
    assert result.timings["total"] <= budget / 1000
    return result.plan.request.mode, result.plan.request.steps, result.vae


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (100_000, ("base", 4, "")),  # 87 % of names, where 50 steps find 85
        (137, ("base", 4, "")),
        (136, ("base", 4, "tiny")),
        (91, ("lcm-lora", 4, "tiny")),
        (60, ("lcm-lora", 4, "tiny")),
        (59, ("turbo", 1, "tiny")),
        (22, ("turbo", 1, "tiny")),
    ],
)
def test_the_best_that_fits_is_drawn(budget: float, expected: tuple[str, int, str]) -> None:
    assert chosen(budget) == expected


def test_each_mode_is_loaded_and_measured_once() -> None:
    chosen(1000)
    assert sorted(loads[:5]) == [("base", ""), ("base", "tiny"), ("lcm", ""), ("lcm-lora", ""), ("turbo", "")]
    assert loads[5:] == [("base", "")]  # to draw with
    chosen(1000)
    chosen(1000, count=3)
    assert len(loads) == 6
    chosen(1000, width=96, height=96)  # another size is another cost
    assert len(loads) == 11


def test_plan_and_result_say_what_was_chosen_and_why() -> None:
    result = fewstep.generate("a fox", budget_ms=59)
    (reason,) = (sentence for sentence in result.warnings if "budget_ms" in sentence)
    assert "budget_ms=59: mode='turbo' in 1 step, vae='tiny', measured at 22 ms a picture here" in reason
    assert "the best of 6 choices that fit, of 18, by how many names" in reason
    assert reason in fewstep.plan("a fox", budget_ms=59).warnings
    assert reason in result.facts()["warnings"]  # type: ignore[operator]


def test_a_plan_measures_nothing() -> None:
    with pytest.raises(RequestError, match=r"mode='base' costs on this machine is not measured yet"):
        fewstep.plan("a fox", budget_ms=100)
    assert loads == []


def test_where_nothing_fits_the_fastest_is_named() -> None:
    fastest = "mode='turbo' in 1 step, vae='tiny', measured at 22 ms"
    with pytest.raises(RequestError, match=f"budget_ms=5: nothing here is so fast; the fastest is {fastest}"):
        chosen(5)


def test_what_is_given_is_kept() -> None:
    assert chosen(100_000, mode="lcm") == ("lcm", 1, "")  # 82.3 and 82.1 % of names
    assert chosen(100_000, steps=4, mode="turbo") == ("turbo", 4, "")
    assert chosen(100_000, vae="tiny") == ("base", 4, "tiny")
    assert chosen(100_000, steps=1) == ("turbo", 1, "")
    assert chosen(100_000, guidance=3) == ("base", 4, "")
    assert chosen(100_000, negative_prompt="rain", guidance=1.5) == ("base", 4, "")
    picture = Image.new("RGB", (128, 128))
    assert chosen(100_000, image=picture, strength=0.5) == ("base", 4, "")
    for options, message in (
        ({"mode": "tubro"}, "did you mean mode='turbo'"),
        ({"mode": "turbo", "steps": 9}, "steps=9 is outside"),
        ({"control": [("canny", picture, 0.5)]}, "knows no costs of control="),
    ):
        with pytest.raises(RequestError, match=message):
            chosen(100_000, **options)


def test_every_door_has_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = asyncio.run(fewstep.agenerate("a fox", budget_ms=59, seed=1))
    assert result.plan.request.mode == "turbo"

    async def last() -> Any:
        return [event async for event in fewstep.astream("a fox", budget_ms=59, seed=1)][-1]

    assert asyncio.run(last()).plan.request.mode == "turbo"
    stream = fewstep.stream("a fox", budget_ms=59, seed=1)
    assert len([*stream]) == 1
    assert cli.main(["generate", "a fox", "--budget-ms", "59", "-o", str(tmp_path / "fox.png")]) == 0
    assert "mode turbo" in capsys.readouterr().err
    with (
        fewstep.load("tiny", "lcm") as engine,
        pytest.raises(RequestError, match="budget_ms= is not an option"),
    ):
        engine.generate("a fox", budget_ms=59)  # type: ignore[call-arg]


def test_costs_are_kept_for_other_processes(tmp_path: Path) -> None:
    path, cost = tmp_path / "a" / "costs.json", Cost(fixed=1, step=2, decode=3)
    CostStore(path).keep("turbo 1", cost)
    CostStore(path).keep("lcm 1", cost)
    assert CostStore(path).get("turbo 1") == cost
    assert {*json.loads(path.read_text())} == {"turbo 1", "lcm 1"}
    assert cost.total(4) == 12
    for content in ("", "[1]", '{"turbo 1": 3}', '{"turbo 1": {"fixed": "x"}}', "[" * 100_000):
        path.write_text(content)
        assert CostStore(path).get("turbo 1") is None
    store = CostStore(path / "below a file" / "costs.json")
    store.keep("turbo 1", cost)
    assert store.get("turbo 1") == cost


def test_costs_are_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen(1000)
    monkeypatch.setattr(costs, "machine", lambda: ("another",))
    with pytest.raises(RequestError, match="not measured yet"):
        fewstep.plan("a fox", budget_ms=1000)
    assert "fewstep" not in costs.machine()


def test_costs_of_real_engines_are_of_the_users_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    costs.kept_costs.cache_clear()
    try:
        assert EngineCache(load_engine, fewstep.generate).costs() is costs.kept_costs()
        assert EngineCache(load, fewstep.generate).costs() is not costs.kept_costs()
    finally:
        costs.kept_costs.cache_clear()


def test_the_rule_for_models_that_were_not_measured() -> None:
    """Half of a mode's usual steps or more; base first; more steps; the model's own VAE."""
    sdxl = describe_model("sdxl")

    def best(*candidates: tuple[str, int, str]) -> tuple[str, int, str]:
        made = [
            quality.Candidate(recipe=find_recipe(mode), steps=steps, vae=vae)
            for mode, steps, vae in candidates
        ]
        winner = max(made, key=lambda candidate: quality.quality(candidate, sdxl))
        return winner.recipe.mode, winner.steps, winner.vae

    assert best(("base", 30, ""), ("turbo", 4, "")) == ("base", 30, "")
    assert best(("base", 10, ""), ("turbo", 1, "tiny")) == ("turbo", 1, "tiny")
    assert best(("lcm", 2, ""), ("lcm", 4, "tiny")) == ("lcm", 4, "tiny")
    assert best(("lcm", 4, ""), ("lcm", 4, "tiny")) == ("lcm", 4, "")
    assert best(("base", 2, ""), ("base", 9, "tiny")) == ("base", 9, "tiny")
    assert quality.step_counts(find_recipe("base"), sdxl)[-1] == 30
    assert "half of a mode's usual steps" in quality.rule_of(sdxl)


def test_only_what_is_on_this_machine_is_chosen_from() -> None:
    assert quality.local_modes(describe_model("sdxl")) == ["base"]
    assert quality.local_modes(describe_model("tiny")) == ["base", "turbo", "lcm", "lcm-lora"]
    assert not quality.tiny_vae_is_here(describe_model("sdxl"))


def test_a_model_of_ones_own(sdxl_folder: Path) -> None:
    assert chosen(100_000, model=sdxl_folder) == ("base", 30, "")
    assert chosen(300, model=sdxl_folder)[1] == 12


def test_real_engines_are_measured(sdxl_folder: Path) -> None:
    with api.engines_from(lambda choice: load_engine(choice)):
        place: Any = {"model": sdxl_folder, "device": "cpu", "precision": "fp32", "seed": 1}
        result = fewstep.generate("a fox", mode="turbo", budget_ms=1e6, **place)
        assert (result.plan.request.steps, len(result)) == (4, 1)
        with pytest.raises(RequestError, match="the fastest is mode='turbo' in 1 step, measured at"):
            fewstep.generate("a fox", mode="turbo", budget_ms=0.001, **place)
