"""Saved pictures drawn again: the same bits, or what is not as it was, or what is missing and where it was.

`python -m tests.replays` does it with sixty pictures and twenty tampered ones; here is a part of those.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import fewstep
from fewstep import Engine, RequestError, cli, metadata
from fewstep.api import engines_from
from fewstep.engine import load_engine
from fewstep.metadata.webui import write_parameters
from fewstep.request.engine_choice import EngineChoice
from tests import replays
from tests.metadata.test_texts import FACTS

Load = Callable[..., Engine]
SIDE = {"width": 96, "height": 96}


@pytest.fixture(scope="module")
def loaded() -> dict[str, Engine]:
    """Engines that are loaded once for this file: each replay names its engine anew."""
    return {}


@pytest.fixture
def door(loaded: dict[str, Engine]) -> Iterator[None]:
    def load(choice: EngineChoice) -> Engine:
        key = json.dumps([choice.key.mode, choice.key.options], sort_keys=True, default=str)
        if key not in loaded:
            loaded[key] = load_engine(choice)
        return loaded[key]

    with engines_from(load):
        yield


@pytest.fixture
def call(sdxl_folder: Path) -> dict[str, Any]:
    return {
        "model": sdxl_folder,
        "prompt": "a red fox",
        "mode": "turbo",
        "steps": 1,
        "seed": 7,
        **replays.PLACE,
    }


def picture(call: dict[str, Any], path: Path, **more: Any) -> Path:
    return fewstep.generate(**{**call, **more}).save(path)[0]


def test_the_same_bits_of_every_task_and_format(
    call: dict[str, Any], drawing: Image.Image, lora_file: Path, door: None, tmp_path: Path
) -> None:
    drawing.save(tmp_path / "drawing.png")
    tall = drawing.resize((70, 110))
    calls: dict[str, dict[str, Any]] = {
        "text.png": {},
        "batch.jpg": {"count": 1, "prompt": "an owl", "seed": 2**40 + 1},
        "base.webp": {"mode": "base", "steps": 2, "negative_prompt": "sun", "guidance": 4},
        "levels.png": {"mode": "base", "steps": None, "timesteps": [900, 300], "sampler": "ddim", "eta": 0.5},
        "image.jpg": {"image": drawing, "strength": 0.5},
        "file.webp": {"image": tmp_path / "drawing.png"},
        "inpaint.png": {"image": tall, "mask": tall.convert("L")},
        "lora.jpg": {"loras": [(lora_file, 0.5)]},
        "words.webp": {"prompt": "a (red:1.3) fox", "prompt_2": "a \"fox\"\nSteps: 3, Seed: 1, CFG scale: 2"},
    }  # fmt: skip
    for name, more in calls.items():
        path = picture(call, tmp_path / name, **more)
        replayed = fewstep.replay(path)
        assert str(replayed.compared).startswith("the same bits"), (name, str(replayed.compared))
        assert (replayed.compared.differences, replayed.compared.doubts) == ((), ()), name
        assert replayed.compared.same
        assert f"Replay of '{path}': the same bits" in repr(replayed)


def test_one_picture_of_several(call: dict[str, Any], door: None, tmp_path: Path) -> None:
    paths = fewstep.generate(**{**call, "prompt": ["a", "b", "c"]}).save(tmp_path / "x.png")
    assert all(fewstep.replay(path).compared.same_bits for path in paths)


def test_what_was_tampered_with_is_named(
    call: dict[str, Any], drawing: Image.Image, lora_file: Path, door: None, tmp_path: Path
) -> None:
    path = picture(call, tmp_path / "x.png", image=drawing)
    content = path.read_bytes()
    changes: dict[str, Callable[[], Any]] = {
        "'prompts' was changed in the file": lambda: replays.set_fact("prompts", ["a cat"])(path, path),
        "'seeds' was changed": lambda: replays.set_fact("seeds", [8])(path, path),
        "image is another picture": lambda: replays.edit_given(path, "image", lambda i: i.rotate(90)),
        "the file's pixels are not": lambda: replays.edit_pixels(path),
        "torch was 2.0.1, and is": lambda: replays.restate_facts(path, versions={"torch": "2.0.1"}),
        "threads was 77, and is": lambda: replays.restate_facts(path, threads=77),
        "noise levels are computed otherwise": lambda: replays.restate_facts(path, schedule={}),
        "model": lambda: replays.restate_facts(
            path, weights=[{"option": "model", "source": "x", "files": {"unet/x.safetensors": "a" * 64}}]
        ),
    }  # fmt: skip
    for words, change in changes.items():
        path.write_bytes(content)
        change()
        compared = fewstep.replay(path).compared
        assert words in str(compared), words
        assert compared.same == (compared.within == 0)


def test_files_that_are_others_or_gone(
    call: dict[str, Any], drawing: Image.Image, lora_file: Path, door: None, tmp_path: Path
) -> None:
    lora, given, folder = tmp_path / "style.safetensors", tmp_path / "drawing.png", tmp_path / "elsewhere"
    lora.write_bytes(lora_file.read_bytes())
    drawing.save(given)
    folder.mkdir()
    path = picture(call, tmp_path / "x.png", loras=[lora], image=given)
    path = path.rename(folder / "x.png")
    assert fewstep.replay(path).compared.differences == ()
    replays.edit_weights(lora)
    compared = fewstep.replay(path).compared
    assert not compared.same_bits
    assert [difference.kind for difference in compared.differences] == ["weights"]
    assert f"loras '{lora}' is another file: sha256 " in str(compared)
    lora.unlink()
    given.rename(folder / "drawing.png")  # beside the picture: found
    with pytest.raises(
        RequestError, match=r"for want of loras '.*style.safetensors' \(sha256 [0-9a-f]{64}\)"
    ):
        fewstep.replay(path)
    assert fewstep.replay(path, loras=[lora_file]).compared.same_bits
    assert not fewstep.replay(path, loras=[]).compared.same_bits
    (folder / "drawing.png").rename(given.with_name("moved.png"))
    with pytest.raises(RequestError, match=r"image '.*drawing.png' \(sha256 of its pixels [0-9a-f]{12}…\)"):
        fewstep.replay(path, loras=[lora_file])
    (tmp_path / "more").mkdir()
    given.with_name("moved.png").rename(tmp_path / "more" / "drawing.png")
    assert fewstep.replay(path, loras=[lora_file], search=[tmp_path / "more"]).compared.same_bits


def test_what_was_left_out_has_to_be_given(
    call: dict[str, Any], drawing: Image.Image, door: None, tmp_path: Path
) -> None:
    result = fewstep.generate(**call, image=drawing)
    result.save(tmp_path / "x.png", prompts=False, embed=False)
    with pytest.raises(RequestError, match=r"image, which was given from memory.*type prompt=\.\.\."):
        fewstep.replay(tmp_path / "x.png")
    assert fewstep.replay(tmp_path / "x.png", prompt="a red fox", image=drawing).compared.same_bits
    assert not fewstep.replay(tmp_path / "x.png", prompt="an owl", image=drawing).compared.same_bits
    result.save(tmp_path / "y.png", metadata=False)
    with pytest.raises(RequestError, match="does not say how it was made"):
        fewstep.replay(tmp_path / "y.png")


def test_an_embedding_and_a_pipelines_engine(engine: Load, tmp_path: Path) -> None:
    """Neither is in the file; given again they are held against it."""
    loaded = engine("turbo")
    embedding = loaded.embed("a red fox")
    path = loaded.generate(embedding, 1, seed=3).save(tmp_path / "x.png")[0]
    with pytest.raises(RequestError, match=r"prompt was an Embedding, 'a red fox <embedding [0-9a-f]{8}>'"):
        fewstep.replay(path, engine=loaded)
    assert fewstep.replay(path, engine=loaded, prompt=embedding).compared.same_bits


@pytest.mark.parametrize(
    "facts",
    ['{"steps": 4}', '{"model": 5}', '{"model": "tiny", "weights": {"a": []}}',
     '{"model": "tiny", "prompts": 7}',
     '{"model": "tiny", "loras": [["fx"]]}', '{"model": "tiny", "sources": {"image": 3}}',
     '{"model": "tiny", "prompts": ["a"], "seeds": [1], "mode": "lcm", "steps": "four"}',
     '{"model": "tiny", "prompts": ["a"], "seeds": [1], "mode": "lcm", "sources": {"image": []}}'],
)  # fmt: skip
def test_facts_of_a_strangers_making_are_refused(facts: str, tmp_path: Path) -> None:
    info = PngInfo()
    info.add_itxt(metadata.KEY, facts)
    Image.new("RGB", (64, 64)).save(tmp_path / "x.png", pnginfo=info)
    with pytest.raises(RequestError):
        fewstep.replay(tmp_path / "x.png")


# --- other tools


def foreign(path: Path, parameters: str) -> Path:
    info = PngInfo()
    info.add_text("parameters", parameters)
    Image.new("RGB", (96, 96)).save(path, pnginfo=info)
    return path


def test_a_web_uis_picture_is_drawn_as_far_as_it_says(
    sdxl_folder: Path, lora_file: Path, door: None, tmp_path: Path
) -> None:
    line = "Steps: 3, Sampler: Euler, Schedule type: Karras, CFG scale: 4, Seed: 7, Size: 96x96"
    line += ", Model hash: 0123456789, Model: dream, Clip skip: 2"
    path = foreign(tmp_path / "x.png", f"a fox <lora:style:0.5>\nNegative prompt: sun\n{line}")
    with pytest.raises(RequestError, match=r"the model 'dream' \(hash 0123456789\).*the LoRA 'style'"):
        fewstep.replay(path)
    (tmp_path / "style.safetensors").write_bytes(lora_file.read_bytes())
    replayed = fewstep.replay(path, model=sdxl_folder, **replays.PLACE)
    request = replayed.plan.request
    assert (request.steps, request.sampler, request.scheduler) == (3, "euler", "karras")
    assert request.guidance == 4
    assert (request.negative_prompt, request.seeds, request.loras[0][1]) == ("sun", (7,), 0.5)
    assert not replayed.compared.same
    doubts = " ".join(replayed.compared.doubts)
    assert "on a GPU" in doubts
    assert "left out: Clip skip" in doubts


def test_our_own_text_alone_draws_the_same_picture(
    call: dict[str, Any], sdxl_folder: Path, door: None, tmp_path: Path
) -> None:
    """As after a service that kept the web UIs' text only."""
    result = fewstep.generate(**call)
    info = PngInfo()
    info.add_text("parameters", write_parameters(result.facts(), "1"))
    result[0].save(tmp_path / "x.png", pnginfo=info)
    compared = fewstep.replay(tmp_path / "x.png", model=sdxl_folder, **replays.PLACE).compared
    assert (compared.same_bits, compared.doubts) == (True, ())


def test_doubts_of_an_lcm_and_of_an_unknown_sampler(
    lora_file: Path, sdxl_folder: Path, door: None, tmp_path: Path
) -> None:
    given: dict[str, Any] = {"model": sdxl_folder, "accelerator": lora_file, **replays.PLACE}
    lcm = foreign(
        tmp_path / "a.png",
        "a fox\nNegative prompt: \nSteps: 2, Sampler: LCM, CFG scale: 1, Seed: 7, RNG: CPU, Size: 96x96",
    )
    replayed = fewstep.replay(lcm, **given)
    assert (replayed.plan.request.mode, len(replayed.compared.doubts)) == ("lcm-lora", 1)
    other = foreign(
        tmp_path / "b.png",
        "a fox\nSteps: 2, Sampler: UniPC, CFG scale: 1, Denoising strength: 0.5, Size: 96x96",
    )
    with pytest.raises(RequestError, match="the picture that it was made from"):
        fewstep.replay(other, model=sdxl_folder)
    replayed = fewstep.replay(other, model=sdxl_folder, image=Image.new("RGB", (96, 96)), **replays.PLACE)
    assert [
        words for words in replayed.compared.doubts if "'UniPC' is not here" in words or "no seed" in words
    ]


def test_a_text_of_our_facts_is_never_mistaken_for_ours(tmp_path: Path) -> None:
    path = foreign(tmp_path / "x.png", write_parameters(FACTS, "1"))
    assert metadata.read(path)["tool"] == "fewstep 1"


# --- the command


def test_the_command_says_of_each_whether_it_is_the_same(
    call: dict[str, Any],
    door: None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    picture(call, Path("a.png"))
    picture(call, Path("b.webp"))
    assert cli.main(["replay", "a.png", "b.webp", "-o", "again"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == "a.png: the same bits"
    assert second.startswith("b.webp: the same bits as were drawn (the file, which lost some, is within ")
    assert Path("again/a.png").read_bytes() == Path("a.png").read_bytes()
    replays.set_fact("seeds", [8])(Path("a.png"), tmp_path)
    Image.new("RGB", (8, 8)).save("c.png")
    assert cli.main(["replay", "a.png", "c.png", "d.png", "--json"]) == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line.get("same") for line in lines] == [False, None, None]
    assert lines[0]["differences"][0] == {
        "kind": "seeds",
        "message": "'seeds' was changed in the file after it was saved",
    }
    assert "does not say how it was made" in lines[1]["error"]
    assert "there is no such file" in lines[2]["error"]
