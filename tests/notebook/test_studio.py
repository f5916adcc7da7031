"""`Studio`: what is typed and clicked becomes pictures, a result and code."""

from __future__ import annotations

import gc
import io
import threading
import time
from typing import Any
from weakref import ref

import pytest
from PIL import Image

import fewstep
from fewstep import Failure, RequestError, testing
from fewstep.notebook import Studio
from fewstep.notebook.studio import KEPT
from fewstep.testing import FakeEngine
from tests.notebook.conftest import half_mask, same_pictures, say


@pytest.fixture
def studio(fake: FakeEngine) -> Studio:
    """One with four drafts."""
    studio = Studio("a fox", 1, "turbo", count=4, seed=7)
    assert studio.wait(60)
    return studio


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def test_a_prompt_becomes_numbered_drafts(studio: Studio) -> None:
    assert studio.result is not None
    assert studio.result.seeds == (7, 8, 9, 10)
    assert [(cell["number"], cell["seed"]) for cell in studio.cells] == [(0, 7), (1, 8), (2, 9), (3, 10)]
    assert all(opened(cell["picture"]).size == (128, 128) for cell in studio.cells)
    assert (studio.status["state"], studio.problem, studio.here) == ("idle", "", 0)
    assert [entry["label"] for entry in studio.trail] == ["4 drafts"]


def test_its_code_draws_the_same(studio: Studio) -> None:
    assert studio.code() == studio.story
    assert studio.code() == (
        "import fewstep\n\n"
        'drafts = fewstep.generate("a fox", steps=1, mode="turbo", count=4, seed=7)\n'
        "drafts\n"
    )
    assert same_pictures(studio)


def test_an_enlarged_picture_is_the_png_that_is_saved(studio: Studio) -> None:
    say(studio, "show", number=2)
    assert studio.result is not None
    assert studio.shown["number"] == 2
    assert studio.shown["png"] == studio.result.png(2)


def test_settings_come_with_what_is_asked(studio: Studio, fake: FakeEngine) -> None:
    settings = {"prompt": "an owl", "mode": "lcm", "steps": 3, "count": 2, "seed": 1, "live": False}
    say(studio, "draft", settings=settings)
    assert {name: getattr(studio, name) for name in settings} == settings
    request = fake.requests[-1]
    assert (request.prompts, request.mode, request.steps) == (("an owl", "an owl"), "lcm", 3)
    assert (studio.here, len(studio.trail)) == (1, 2)


def test_what_the_browser_must_not_set_stays(studio: Studio) -> None:
    say(studio, "set", settings={"picked": [1], "problem": "?", "cells": [], "_esm": "alert()"})
    assert (studio.picked, studio.problem, len(studio.cells)) == ([1], "", 4)
    assert "alert()" not in str(studio._esm)


def test_refined_varied_and_inpainted(studio: Studio) -> None:
    """A story, each thing done to what was picked; its code draws the same."""
    say(studio, "set", settings={"picked": [1, 3], "strength": 0.4, "new_steps": 2})
    say(studio, "refine")
    assert studio.result is not None
    assert (studio.result.seeds, studio.picked) == ((8, 10), [])
    say(studio, "vary", settings={"picked": [1], "count": 3})
    assert len(studio.result) == 3
    before = studio.result[2]
    say(studio, "inpaint", number=2, mask=half_mask(128), settings={"mask_prompt": "a red hat"})
    assert studio.problem == ""
    assert studio.result.prompts == ("a red hat",)
    assert studio.result[0].crop((0, 0, 64, 128)).tobytes() == before.crop((0, 0, 64, 128)).tobytes()
    assert studio.result[0].tobytes() != before.tobytes()
    assert [entry["label"] for entry in studio.trail] == ["4 drafts", "2 refined", "3 varied", "inpainted"]
    assert same_pictures(studio)
    assert max(map(len, studio.code().splitlines())) <= 100


def test_another_mode_refines(studio: Studio, fake: FakeEngine) -> None:
    settings = {"picked": [0], "new_mode": "lcm", "new_steps": 5, "new_prompt": "a red fox"}
    say(studio, "refine", settings=settings)
    assert studio.problem == ""
    assert (fake.requests[-1].mode, fake.requests[-1].steps) == ("lcm", 5)
    assert 'mode="lcm"' in studio.code()
    assert same_pictures(studio)


def test_going_back_and_on_from_there(studio: Studio) -> None:
    """The trail branches; `code()` tells the branch that is shown, or everything."""
    say(studio, "refine", settings={"picked": [0]})
    say(studio, "back", number=0)
    assert (studio.here, len(studio.cells)) == (0, 4)
    say(studio, "vary", settings={"picked": [2], "count": 1})
    assert "refine" not in studio.code()
    assert "refine" in studio.code(everything=True)
    assert same_pictures(studio)
    assert same_pictures(studio, everything=True)


def test_the_newest_prompt_wins() -> None:
    with testing.fake(delay=0.02) as engine:
        studio = Studio("a", 8, "lcm", count=1, seed=1)
        for prompt in ("a f", "a fo", "a fox"):
            say(studio, "draft", passing=True, wait=False, settings={"prompt": prompt})
        assert studio.wait(60)
        assert studio.result is not None
        assert studio.result.prompts == ("a fox",)
        assert len(engine.requests) < 4 or len(studio.trail) == 1
        assert studio.problem == ""


def test_drafts_while_typing_take_each_others_place(studio: Studio) -> None:
    for prompt in ("a red f", "a red fo", "a red fox"):
        say(studio, "draft", passing=True, settings={"prompt": prompt})
    assert [entry["prompt"] for entry in studio.trail] == ["a fox", "a red fox"]
    say(studio, "refine", settings={"picked": [0]})
    say(studio, "draft", passing=True, settings={"prompt": "a cat"})
    assert [entry["prompt"] for entry in studio.trail] == ["a fox", "a red fox", "a red fox", "a cat"]
    assert same_pictures(studio)


def test_steps_show_previews_in_place(fake: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fewstep.notebook.studio.PREVIEW_PAUSE", 0)
    monkeypatch.setattr("fewstep.notebook.studio.PREVIEW_SHARE", 0)
    studio = Studio(steps=4, mode="lcm", count=2, seed=1)
    shown: list[Any] = []
    studio.observe(lambda change: shown.append((studio.status["done"], len(change["new"]))), "cells")
    say(studio, "draft", settings={"prompt": "a fox"})
    assert shown == [(1, 2), (2, 2), (3, 2), (4, 2)]  # the last are the pictures themselves


def test_stopping_leaves_what_was_there() -> None:
    with testing.fake(delay=0.05):
        studio = Studio("a fox", 1, "lcm", count=2, seed=1)
        assert studio.wait(60)
        before = studio.result
        say(studio, "draft", wait=False, settings={"prompt": "an owl", "steps": 8})
        time.sleep(0.1)
        say(studio, "stop")
        assert studio.result is before
        assert (studio.status["text"], studio.status["state"]) == ("Stopped", "idle")
        assert [cell["seed"] for cell in studio.cells] == [1, 2]


def test_the_kernel_stays_free_and_no_thread_is_left() -> None:
    with testing.fake(delay=0.1):
        started = time.perf_counter()
        studio = Studio("a fox", 3, "lcm", count=1, seed=1)
        assert time.perf_counter() - started < 0.25
        assert studio.result is None
        assert studio.wait(60)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("fewstep-studio")]


def test_errors_are_shown_in_fewsteps_own_words(studio: Studio) -> None:
    before = studio.result
    say(studio, "draft", settings={"steps": 99})
    assert studio.problem.startswith("steps=99 is outside")
    assert studio.result is before
    say(studio, "draft", settings={"steps": 1})
    assert studio.problem == ""
    say(studio, "refine", settings={"picked": [9]})
    assert "pick among 0 to 3" in studio.problem


def test_other_errors_are_shown_too(caplog: pytest.LogCaptureFixture) -> None:
    with testing.fake(error=RuntimeError("no such kernel image")):
        studio = Studio("a fox", 1, "turbo", count=1)
        assert studio.wait(60)
        assert studio.problem == "RuntimeError: no such kernel image"
        assert studio.result is None
    assert "the studio could not draw" in caplog.text


def test_survivors_are_shown_and_written_as_a_call(studio: Studio) -> None:
    assert studio.result is not None
    survivors = studio.result.only([0, 2])
    error = fewstep.GenerationError("picture 1 (seed 8): the UNet failed", (), survivors)
    with testing.fake(error=error):
        say(studio, "draft")
    assert studio.problem.startswith("picture 1 (seed 8)")
    assert [cell["seed"] for cell in studio.cells] == [7, 9]
    assert same_pictures(studio)


def test_survivors_of_refining_too(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    say(studio, "refine", settings={"picked": [0, 2, 3]})
    assert studio.result is not None
    failure = Failure(picture=1, seed=9, stage="VAE", reason="overflow")
    error = fewstep.GenerationError("picture 1 (seed 9): overflow", [failure], studio.result.only([0, 2]))
    say(studio, "back", number=0)

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(fewstep.Result, "refine", fail)
    say(studio, "refine", settings={"picked": [0, 2, 3]})
    assert [cell["seed"] for cell in studio.cells] == [7, 10]
    assert "drafts.pick(0, 3).refine(" in studio.code()


def test_modes_that_fit_are_offered(fake: FakeEngine) -> None:
    modes = {entry["name"]: entry for entry in Studio().modes}
    assert {*modes} == {"base", "lcm", "lcm-lora", "turbo"}
    assert modes["lcm"]["steps"] == [1, 2, 3, 4, 5, 6, 7, 8]
    sdxl = {entry["name"]: entry for entry in Studio(model="sdxl").modes}
    assert sdxl["lightning"]["steps"] == [2, 4, 8]
    assert Studio(model="sdxl", mode="lightning").new_steps == 4


def test_options_go_into_every_draft(fake: FakeEngine) -> None:
    studio = Studio("a sun", 2, "lcm", count=1, seed=3, width=96, height=128, loras=["fx"], vae="tiny")
    assert studio.wait(60)
    assert studio.problem == ""
    assert (fake.requests[-1].width, fake.requests[-1].loras[0][0]) == (96, "fx")
    assert 'width=96, height=128, loras=["fx"], vae="tiny"' in " ".join(studio.code().split())
    assert same_pictures(studio)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 17}, "count=17: give a whole number from 1 to 16"),
        ({"image": Image.new("RGB", (128, 128))}, "image=Image: a studio writes down"),
        ({"mode": "trubo"}, "did you mean mode='turbo'"),
    ],
)
def test_what_cannot_be_done_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message.replace("?", "[?]")):
        Studio(**options)


def test_memory_stays_flat(studio: Studio) -> None:
    """However much is drawn, the last results are all that is kept."""
    results = []
    for seed in range(3 * KEPT):
        say(studio, "draft", settings={"seed": seed})
        results.append(ref(studio.result))
    gc.collect()
    assert [result() is None for result in results] == [True] * 2 * KEPT + [False] * KEPT
    assert (len(studio._results), len(studio.trail)) == (KEPT, KEPT)
    say(studio, "back", number=0)
    assert "this one is gone" in studio.problem


def test_it_has_a_short_name(studio: Studio) -> None:
    say(studio, "set", settings={"picked": [1]})
    assert repr(studio) == "<fewstep.notebook.Studio: 4 drafts, 1 picked>"
    assert repr(Studio()) == "<fewstep.notebook.Studio: nothing drawn, 0 picked>"


def test_closing_lets_go(studio: Studio) -> None:
    studio.close()
    assert (studio.result, studio.code()) == (None, "")


@pytest.mark.parametrize(
    "prompt",
    ['it\'s a "fox"', 'a \\ "" fox', "two\nlines\r\n", "\u202eright to left", "🦊 {fox} %s", "'''", '"""'],
)
def test_any_prompt_is_written_as_it_was_typed(fake: FakeEngine, prompt: str) -> None:
    studio = Studio(prompt, 1, "turbo", count=1, seed=1)
    assert studio.wait(60)
    assert studio.problem == ""
    assert same_pictures(studio)
