"""The fake engine of `fewstep.testing` does as the real one does, without torch."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageChops

import fewstep
from fewstep import RequestError, metadata, testing
from fewstep.cancel import CancelToken
from fewstep.errors import FewstepError, GenerationCancelledError, GenerationError
from fewstep.testing import FakeEngine, FakeStep, fake


def test_the_fake_needs_no_torch() -> None:
    code = """
import sys
sys.modules["torch"] = None  # importing it raises
import fewstep
from fewstep import testing
with testing.fake() as engine:
    picture = fewstep.generate("a fox", 2, seed=1)[0]
    with fewstep.load("sdxl", "turbo") as other:
        *_, last = other.stream("a fox", 4)
assert testing.problems(engine.recipe) == []
print(picture.size, last.preview().size, len(engine.requests))
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.stdout.strip() == "(128, 128) (512, 512) 2", ran.stderr


def test_pictures_are_those_of_their_requests() -> None:
    engine = FakeEngine()
    first = engine.generate(["a fox", "an owl"], 4, seed=7)
    assert isinstance(first, fewstep.Result)
    assert (first.seeds, first.prompts, first.timesteps) == (
        (7, 8),
        ("a fox", "an owl"),
        (999, 759, 499, 259),
    )
    assert [image.size for image in first] == [(128, 128)] * 2
    assert first[1].tobytes() == engine.generate("an owl", 4, seed=8)[0].tobytes()
    others = [
        engine.generate("a fox", 4, seed=8),
        engine.generate("a fox", 3, seed=7),
        engine.generate("fox", 4, seed=7),
        engine.generate("a fox", 4, seed=7, guidance=4),
        FakeEngine("base").generate("a fox", 4, seed=7),
    ]
    assert len({image.tobytes() for result in (first, *others) for image in result}) == 7


def test_it_is_quick() -> None:
    engine = FakeEngine()
    engine.generate("a fox", seed=1)
    started = time.perf_counter()
    for seed in range(20):
        engine.generate("a fox", seed=seed)
    assert time.perf_counter() - started < 1  # second


def test_results_are_saved_and_read(tmp_path: Path) -> None:
    result = FakeEngine("turbo", "sdxl").generate("a fox", 3, seed=5)
    result.save(tmp_path / "fox.png")
    facts = metadata.read(tmp_path / "fox.png")
    assert (facts["prompts"], facts["steps"], facts["seeds"]) == (["a fox"], 3, [5])
    assert facts["device"] == "fake"


@pytest.mark.parametrize(
    ("mode", "options", "says"),
    [
        ("lcm", {"steps": 9}, "1 to 8"),
        ("lcm", {"width": 100}, "multiples of 8"),
        ("lcm", {"wdith": 64}, "did you mean width"),
        ("base", {"guidance": 0}, "1 is off"),
        ("lcm", {"image": Image.new("RGB", (64, 128)), "width": 128, "height": 64}, "another shape"),
    ],
)
def test_requests_are_checked(mode: str, options: dict[str, Any], says: str) -> None:
    engine = FakeEngine(mode)
    for call in (engine.generate, engine.plan, engine.stream):
        with pytest.raises(RequestError, match=says):
            call("a fox", **options)
    assert engine.requests == []


def test_modes_and_models_must_fit() -> None:
    with pytest.raises(RequestError, match="no weights for model='tiny'"):
        FakeEngine("lightning")
    with pytest.raises(RequestError, match="did you mean mode='lcm'"):
        FakeEngine("lmc")


def test_outside_a_mask_the_picture_stays() -> None:
    image = Image.linear_gradient("L").resize((128, 128)).convert("RGB")
    mask = Image.new("L", image.size, 0)
    mask.paste(255, (0, 64, 128, 128))
    result = FakeEngine().generate("a fox", image=image, mask=mask, seed=1)
    assert result.edited
    assert ImageChops.difference(result[0], image).getbbox() == (0, 64, 128, 128)
    others = (image, image.rotate(90))
    assert len({FakeEngine().generate("a fox", image=one, seed=1)[0].tobytes() for one in others}) == 2


def test_steps_lead_to_the_picture() -> None:
    engine = FakeEngine("base")
    steps = list(engine.stream(["a fox", "an owl"], 5, seed=2))
    result = engine.generate(["a fox", "an owl"], 5, seed=2)
    assert [(step.index, step.steps) for step in steps] == [(index, 5) for index in range(5)]
    assert tuple(step.timestep for step in steps) == result.timesteps
    assert steps[-1].preview(1).tobytes() == result[1].tobytes()
    assert steps[0].preview(1).tobytes() != result[1].tobytes()


def test_errors_come_where_the_steps_would() -> None:
    engine = FakeEngine(error=GenerationError("no luck"))
    assert engine.plan("a fox").request.steps == 4
    with pytest.raises(GenerationError, match="no luck"):
        engine.generate("a fox")
    with pytest.raises(GenerationError, match="no luck"):
        next(engine.stream("a fox"))


def test_delay_and_progress() -> None:
    seen: list[Any] = []
    started = time.perf_counter()
    result = FakeEngine(delay=0.01).generate("a fox", 4, progress=seen.append)
    assert time.perf_counter() - started >= 0.04
    assert result.timings["total"] >= 0.04
    assert [step.index for step in seen] == [0, 1, 2, 3]


def test_it_is_cancelled_like_the_engine() -> None:
    engine, token = FakeEngine(), CancelToken()
    for step in engine.stream("a fox", 4, cancel=token):
        if step.index == 3:
            token.cancel()  # after the last step, before the pictures
            break
    with pytest.raises(GenerationCancelledError):
        engine.generate("a fox", cancel=token)

    def stop(step: FakeStep) -> None:
        last.cancel()

    last, tell = CancelToken(), stop
    with pytest.raises(GenerationCancelledError):
        engine.generate("a fox", 1, cancel=last, progress=tell)


def test_it_works_beside_an_event_loop() -> None:
    async def both() -> list[bytes]:
        engine = FakeEngine(delay=0.01)
        made = await asyncio.gather(*(engine.agenerate("a fox", seed=seed) for seed in (1, 2)))
        return [result[0].tobytes() for result in made]

    assert asyncio.run(both()) == [FakeEngine().generate("a fox", seed=s)[0].tobytes() for s in (1, 2)]


def test_closed_is_closed() -> None:
    with FakeEngine() as engine:
        engine.generate("a fox")
    with pytest.raises(FewstepError, match=r"closed: load another with fewstep\.load"):
        engine.generate("a fox")


def test_apps_draw_with_fakes_and_are_seen() -> None:
    with fake() as engine:
        first = fewstep.generate("a fox", 2, seed=1)
        with fewstep.load("sdxl", "turbo") as loaded:
            assert loaded.generate("an owl", seed=3)[0].size == (512, 512)
        second = asyncio.run(fewstep.agenerate("a fox", 2, seed=1))
        with pytest.raises(RequestError, match="1 to 8"):
            fewstep.generate("a fox", 9)
    assert first[0] == second[0]
    assert [(one.prompts[0], one.mode) for one in engine.requests] == [
        ("a fox", "lcm"), ("an owl", "turbo"), ("a fox", "lcm"),
    ]  # fmt: skip


def test_the_real_one_is_back_afterwards() -> None:
    def real(*_: object) -> Any:
        raise LookupError

    with fewstep.api.engines_from(real):
        with pytest.raises(GenerationError), fake(error=GenerationError("no luck")):
            fewstep.generate("a fox", seed=1)
        with pytest.raises(LookupError):
            fewstep.generate("a fox", seed=1)


def test_an_app_sees_its_errors() -> None:
    with fake(error=GenerationError("no luck")), pytest.raises(GenerationError, match="no luck"):
        fewstep.generate("a fox")


def test_public_names() -> None:
    assert sorted(testing.__all__) == ["FakeEngine", "FakeStep", "check_backend", "fake", "problems"]
