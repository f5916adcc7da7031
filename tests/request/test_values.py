"""Numbers, lists and texts as host programs have them: plain Python, or refused in one line."""

from __future__ import annotations

import enum
import json
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import fewstep
from fewstep import RequestError
from fewstep.testing import fake


class Mode(str, enum.Enum):  # noqa: UP042  its `str()` is "Mode.LCM"
    LCM = "lcm"


FRAME = pd.DataFrame({"prompt": ["a fox", "an owl"], "seed": [7, 8], "share": [0.5, 1.5]})
EMPTY = pd.array([1, None], dtype="Int64")
WHOLE: dict[str, Any] = {
    "numpy": np.int64(4), "numpy, small": np.uint8(4), "an array of no sides": np.array(4),
    "a tensor": torch.tensor(4), "pandas": pd.Series([4])[0],
}  # fmt: skip
REAL: dict[str, Any] = {
    "int": 2, "numpy": np.float32(2), "numpy, whole": np.int64(2), "an array of no sides": np.array(2.0),
    "a tensor": torch.tensor(2.0), "half": torch.tensor(2.0, dtype=torch.bfloat16), "decimal": Decimal(2),
    "pandas": pd.Series([2.0])[0],
}  # fmt: skip
LISTS: dict[str, Any] = {
    "tuple": (7, 8), "range": range(7, 9), "numpy": np.array([7, 8]), "tensor": torch.tensor([7, 8]),
    "column": FRAME["seed"], "nullable": FRAME["seed"].astype("Int64"), "dict's": {"a": 7, "b": 8}.values(),
}  # fmt: skip
TEXTS: dict[str, Any] = {
    "numpy": np.array(["a fox", "an owl"]), "objects": np.array(["a fox", "an owl"], dtype=object),
    "column": FRAME["prompt"], "strings": FRAME["prompt"].astype("string"), "tuple": ("a fox", "an owl"),
}  # fmt: skip


def planned(*positional: Any, mode: Any = "lcm", **options: Any) -> Any:
    call: Any = fewstep.plan
    request = call(*positional, mode=mode, **options).request
    assert json.loads(json.dumps(request.model_dump())) == json.loads(request.model_dump_json())
    return request


@pytest.mark.parametrize("given", WHOLE.values(), ids=WHOLE)
def test_whole_numbers(given: Any) -> None:
    request = planned("a", given, seed=given, count=given, width=given * 32, height=given * 32)
    assert (request.steps, request.seeds, request.width) == (4, (4, 5, 6, 7), 128)
    assert {type(number) for number in (request.steps, request.width, *request.seeds)} == {int}


@pytest.mark.parametrize("given", REAL.values(), ids=REAL)
def test_numbers(given: Any) -> None:
    request = planned("a", mode="base", guidance=given, guidance_rescale=given / 4, loras=[("fx", given)])
    assert (request.guidance, request.guidance_rescale, request.loras[0][1]) == (2.0, 0.5, 2.0)
    assert {type(number) for number in (request.guidance, request.loras[0][1])} == {float}


@pytest.mark.parametrize("given", LISTS.values(), ids=LISTS)
def test_lists_of_numbers(given: Any) -> None:
    request = planned(["a", "b"], seed=given)
    assert (request.seeds, {type(seed) for seed in request.seeds}) == ((7, 8), {int})
    assert planned("a", timesteps=list(given)[::-1]).timesteps == (8, 7)


def test_timesteps_of_other_containers() -> None:
    for given in (np.array([999, 599]), torch.tensor([999, 599]), pd.Series([999, 599])):
        request = planned("a", timesteps=given)
        assert (request.timesteps, request.steps) == ((999, 599), 2)


@pytest.mark.parametrize("given", TEXTS.values(), ids=TEXTS)
def test_lists_of_prompts(given: Any) -> None:
    request = planned(given, seed=FRAME["seed"], prompt_2=given, loras=pd.Series(["fx"]))
    assert (request.prompts, {type(text) for text in request.prompts}) == (("a fox", "an owl"), {str})
    assert request.loras == (("fx", 1.0),)


def test_strings_of_any_class() -> None:
    request = planned(np.str_("a fox"), mode=Mode.LCM, negative_prompt="", scheduler=np.str_("lcm"))
    assert [type(text) for text in (request.mode, request.scheduler, *request.prompts)] == [str] * 3
    assert (request.prompts, request.mode) == (("a fox",), "lcm")


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a whole float as steps": ({"steps": 4.0}, "give a whole number from 1 to 1000; type steps=4$"),
    "numpy's": ({"steps": np.float64(3.5)}, r"steps=np\.float64\(3\.5\): give a whole.*1000$"),
    "a boolean": ({"steps": np.bool_(True)}, "steps=np.True_: give a whole number"),
    "a boolean tensor": ({"seed": torch.tensor(True)}, r"seed=tensor\(True\): give whole numbers"),
    "a boolean as number": ({"guidance": np.bool_(True)}, "guidance=np.True_: give a number"),
    "other programs' sign for any": ({"seed": -1}, "to have one drawn, leave seed out$"),
    "the same of numpy": ({"seed": np.int64(-1)}, "seed=-1: .*leave seed out"),
    "a whole float as seed": ({"seed": 7.0}, r"picture i uses seed \+ i; type seed=7$"),
    "a generator": ({"seed": torch.Generator()}, "seed=<torch._C.Generator .*>: give whole numbers"),
    "a missing entry": ({"seed": EMPTY, "prompt": ["a", "b"]}, "seed=<NA>: give whole numbers"),
    "a column for one number": ({"guidance": pd.Series([4])}, "guidance=0 4 dtype: int64: give a number"),
    "not a number": ({"guidance": float("nan")}, "guidance=nan: give a number"),
    "nothing of pandas": ({"guidance": pd.NA}, "guidance=<NA>: give a number"),
    "a text": ({"guidance": "5"}, "guidance='5': give a number"),
    "a complex number": ({"guidance": 5j}, "guidance=5j: give a number"),
    "too large": ({"guidance": 10**400}, "guidance=1000"),
    "an empty prompt's place": ({"prompt": ["a", float("nan")]}, "prompt has nan in place 1: give a string"),
    "a frame": ({"prompt": FRAME[["prompt"]]}, "prompt=prompt 0 a fox 1 an owl: give a string"),
    "an iterator": ({"prompt": (text for text in "ab")}, "prompt=<generator .*>: give a string"),
    "a mapping": ({"prompt": {"a": 1}}, "prompt={'a': 1}: give a string"),
    "no prompts": ({"prompt": np.array([], dtype=str)}, "prompt=array.*: give a string"),
    "two sides": ({"seed": np.array([[7]]), "prompt": ["a"]}, r"seed=array\(\[\[7\]\]\): give whole"),
    "floats as timesteps": ({"timesteps": np.array([999.0])}, r"timesteps=np.float64\(999.0\): give whole"),
    "a list as steps": ({"steps": [[4]]}, r"steps=\[4\]: give a whole number"),
    "a width": ({"width": 128.0}, "give a whole number of pixels from 8 to 8192; type width=128"),
    "a lora's weight": ({"loras": [("fx", None)], "mode": "base"}, "loras has None beside 'fx'"),
    "a mapping of loras": ({"loras": {"fx": 0.8}}, "loras={'fx': 0.8}: give a list of files"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_neither_is_refused_in_one_line(case: str) -> None:
    call, said = REFUSED[case]
    with pytest.raises(RequestError, match=said) as caught:
        planned(**{"prompt": "a", **call})
    assert "\n" not in str(caught.value)


SYNTAX = {
    "a fox <lora:pixel_art:0.8>, <lora:pixel_art:0.4>": ["loras=[('pixel_art.safetensors', 0.8)]"],
    "<lyco:x> a fox": ["loras=[('x.safetensors', 0.8)]"],
    "embedding:easynegative, bad hands": ["embeddings=, and write the word alone, easynegative"],
    "a fox BREAK in the snow": ["BREAK is read as a word here"],
    "a fox AND an owl <hypernet:h:1>": ["AND is read as a word here", "hypernetworks cannot be loaded"],
    "A CAT AND A DOG, BREAK DANCE": [],
    "a fox and an owl, breakfast, <b>bold</b>, ANDROID": [],
}


@pytest.mark.parametrize("prompt", SYNTAX)
def test_other_programs_syntax_is_said_once(prompt: str) -> None:
    for prompts in (prompt, [prompt] * 3):
        warnings = fewstep.plan(prompts, mode="base", steps=20, negative_prompt=prompt).warnings
        assert len(warnings) == len(SYNTAX[prompt])
        assert all(part in " ".join(warnings) for part in SYNTAX[prompt])


def test_facts_equal_their_json() -> None:
    """And tell what went in: typed numbers of any program, pictures by their hash, versions, LoRAs."""
    picture, mask = Image.new("RGB", (128, 128), "red"), Image.new("L", (128, 128), 255)
    with fake():
        call: dict[str, Any] = {
            "image": picture, "mask": mask, "strength": np.float32(0.3), "seed": np.array([1, 2]),
            "loras": [("fx", np.float32(0.7))],
        }  # fmt: skip
        generate: Any = fewstep.generate
        result = generate(FRAME["prompt"], np.int64(4), mode="lcm-lora", **call)
        same, other = (fewstep.generate("a", mode="lcm", image=p) for p in (picture.copy(), mask))
    facts = result.facts(1)
    assert json.loads(json.dumps(facts)) == facts
    assert facts["loras"] == [["fx", float(np.float32(0.7))]]
    assert {"fewstep", "torch"} <= facts["versions"].keys()
    assert result.sources.keys() == {"image", "mask"}
    assert same.sources["image"] == result.sources["image"]
    assert len(other.sources["image"][0]) == 64
