"""The one table of options: signatures, the command line, docs and error messages agree with it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from PIL.Image import Image
from PIL.Image import new as new_image

import fewstep
from fewstep import RequestError, api, progress, result
from fewstep.cli.commands import make_parser
from fewstep.prompts import Embedding
from fewstep.request import options
from fewstep.request.options import ALIASES, OPTIONS, EngineOptions, File, PictureOptions, scoped
from fewstep.testing import FakeEngine, fake

DOCS = Path(__file__).parents[2] / "docs" / "reference.md"
POSITIONAL, RUN = ("prompt", "steps", "mode"), ("cancel", "progress")


def parameters(function: Any) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(function).parameters)


def test_generate_has_every_option_and_its_default() -> None:
    signature = parameters(fewstep.generate)
    assert {*signature} == {*POSITIONAL, *OPTIONS, *RUN}
    assert {name: signature[name].default for name in OPTIONS} == {n: o.default for n, o in OPTIONS.items()}
    known = {
        **vars(options),
        **vars(api),
        **vars(progress),
        **vars(result),
        "Image": Image,
        "Embedding": Embedding,
        "Engine": Any,
    }
    types = get_type_hints(fewstep.generate, known)
    assert {name: types[name] for name in OPTIONS} == {name: option.type for name, option in OPTIONS.items()}


def test_load_has_every_option_of_an_engine() -> None:
    signature, engine = parameters(fewstep.load), scoped("engine")
    assert {*signature} == {"mode", "steps", *engine}
    assert {name: signature[name].default for name in engine} == {n: o.default for n, o in engine.items()}


def test_generate_says_what_each_is() -> None:
    said = inspect.getdoc(fewstep.generate) or ""
    assert not [name for name in OPTIONS if not re.search(rf"\b{name}\b[^.\n]*:", said)]


def test_the_command_line_has_a_flag_for_each() -> None:
    _, commands = make_parser()
    for command in ("generate", "plan"):
        flags = {action.dest for action in commands[command]._actions}
        assert flags >= {"prompt", "steps", "mode", *OPTIONS}


def test_the_reference_lists_each() -> None:
    text = DOCS.read_text()
    assert not [name for name in OPTIONS if f"`{name}`" not in text]


def test_scopes_are_where_an_option_stands() -> None:
    assert {*scoped("engine")} == {*EngineOptions.__annotations__}
    assert {*scoped("picture")} == {*PictureOptions.__annotations__}


@pytest.mark.parametrize("name", [name for name, option in OPTIONS.items() if option.high is not None])
def test_bounds_are_refused_with_what_to_type(name: str) -> None:
    option = OPTIONS[name]
    assert option.high is not None
    assert option.low is not None
    whole = int in getattr(option.type, "__args__", (option.type,))
    beyond: Sequence[Any] = (option.low - 1, option.high + 1, *((option.low,) if option.above else ()))
    ask: Any = FakeEngine("base").plan if option.scope == "picture" else fewstep.plan
    image = {"image": new_image("RGB", (128, 128))} if name == "strength" else {}
    for value in beyond:
        given = int(value) if whole else float(value)
        with pytest.raises(RequestError, match=re.escape(f"{name}={given!r}: {option.advice}")):
            ask("a fox", **{name: given}, **image)


@pytest.mark.parametrize(
    "alias", [alias for alias, name in ALIASES.items() if name in PictureOptions.__annotations__]
)
def test_names_of_diffusers_lead_to_ours(alias: str) -> None:
    with pytest.raises(RequestError, match=f"did you mean {ALIASES[alias]}[?]"):
        FakeEngine().plan("a fox", **{alias: 1})  # type: ignore[arg-type]


def test_prediction_is_taken_where_files_do_not_say(sdxl_folder: File) -> None:
    """An option from end to end: the table, the signature, the network's use of it, the record."""
    with fewstep.load(sdxl_folder, "base", device="cpu", precision="fp32") as plain:
        assert plain.parts.process.prediction == "epsilon"
        expected = plain.generate("a fox", 2, seed=1)
    with fewstep.load(sdxl_folder, "base", prediction="v_prediction", device="cpu", precision="fp32") as told:
        assert told.parts.process.prediction == "v_prediction"
        pictures = told.generate("a fox", 2, seed=1)
    assert pictures[0].tobytes() != expected[0].tobytes()
    assert (expected.facts()["prediction"], pictures.facts()["prediction"]) == ("", "v_prediction")
    with pytest.raises(RequestError, match="prediction='v': choose one of epsilon, v_prediction, sample"):
        fewstep.plan("a fox", prediction="v")


def test_runtimes_are_chosen_by_name() -> None:
    with fake():
        assert fewstep.generate("a fox", runtime="eager").runtime == "fake"
    with pytest.raises(RequestError, match="runtime='onnx': choose one of auto, eager"):
        fewstep.plan("a fox", runtime="onnx")
