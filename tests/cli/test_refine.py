"""`fewstep refine` and `fewstep inpaint`: all that is needed is in the picture's own file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fewstep
from fewstep import Engine, RequestError, cli, metadata
from fewstep.saved import open_saved
from fewstep.testing import fake

Load = Callable[..., Engine]


@pytest.fixture
def drafts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    with fake():
        result = fewstep.generate("a fox", 2, "turbo", model="sdxl", seed=5, count=3, vae="tiny")
        return [str(path) for path in result.save("draft.png")]


def test_refine_takes_all_from_the_pictures(drafts: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with fake() as asked:
        words = [
            "refine",
            *drafts,
            "--pick",
            "2",
            "0",
            "--steps",
            "4",
            "--strength",
            "0.5",
            "-o",
            "better.png",
        ]
        assert cli.main(words) == 0
    assert [(r.prompts, r.seeds, r.mode, r.steps, r.strength) for r in asked.requests] == [
        (("a fox",), (7,), "turbo", 4, 0.5),
        (("a fox",), (5,), "turbo", 4, 0.5),
    ]
    assert capsys.readouterr().out.splitlines() == ["better-0.png  (seed 7)", "better-1.png  (seed 5)"]
    facts = metadata.read("better-0.png")
    assert (facts["vae"], facts["parents"][0]["seeds"]) == ("tiny", [7])


def test_another_mode_and_size(drafts: list[str]) -> None:
    with fake() as asked:
        words = [
            "refine",
            drafts[0],
            "--mode",
            "base",
            "--scale",
            "1.5",
            "--prompt",
            "an owl",
            "--json",
            "-q",
        ]
        assert cli.main(words) == 0
    (request,) = asked.requests
    assert (request.mode, request.width, request.prompts, request.tiles) == ("base", 768, ("an owl",), True)
    assert Path("refined.png").exists()


def test_inpaint(drafts: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    mask = np.zeros((512, 512), np.uint8)
    mask[100:200, 100:200] = 255
    Image.fromarray(mask).save("mask.png")
    with fake():
        assert cli.main(["inpaint", drafts[1], "mask.png", "a hat", "--only-masked", "--json"]) == 0
    (facts,) = json.loads(capsys.readouterr().out)["pictures"]
    assert (facts["prompts"], facts["seeds"], facts["only_masked"]) == (["a hat"], [6], True)
    before, after = (np.asarray(Image.open(name)) for name in (drafts[1], "inpainted.png"))
    assert (before[mask == 0] == after[mask == 0]).all()
    assert (before != after).any()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["refine", "draft-0.png", "--pick", "1"], "numbered 0 to 0"),
        (["refine", "other.png"], "does not say how fewstep made it"),
        (["refine", "none.png"], "there is no such file"),
        (["inpaint", "draft-0.png"], "MASK"),
        (["refine", "draft-0.png", "-o", "draft-1.png"], "exists"),
    ],
)
@pytest.mark.usefixtures("drafts")
def test_mistakes_are_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (64, 64)).save("other.png")
    with fake():
        assert cli.main(words) != 0
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_saved_picture_is_refined_as_its_result(engine: Load, tmp_path: Path) -> None:
    """The same pictures, whether it was saved in between or not."""
    loaded = engine("turbo")
    options: dict[str, Any] = {"sampler": "euler", "seed": 3, "width": 64}
    draft = loaded.generate("a fox", 1, **options)
    saved = open_saved(draft.save(tmp_path / "draft.png")[0], draft.redraw)
    refined, again = draft.refine(steps=2, strength=0.5), saved.refine(steps=2, strength=0.5)
    assert again[0].tobytes() == refined[0].tobytes()
    assert again.facts()["parents"] == refined.facts()["parents"]
    with pytest.raises(RequestError, match="numbered 0 to 0"):
        saved.pick(1)
