"""What ComfyUI, InvokeAI, NovelAI and Fooocus write, read by sd-parsers (extra: fewstep[metadata])."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from PIL import Image

from fewstep.metadata.containers import MAX_TEXT, Payload
from fewstep.metadata.webui import read_number

MAX_ENTRIES = 20_000  # brackets in a workflow: one nested deeper, or longer, is not parsed
# sd-parsers' names of parameters → ours.
_NUMBERS = {"steps": "steps", "seed": "seed", "cfg_scale": "guidance", "denoise": "strength"}


def read_foreign(image: Image.Image, payload: Payload) -> dict[str, Any]:
    """Return what another tool wrote, in this library's words; {} where it wrote nothing that is known."""
    if find_spec("sd_parsers") is None or not _modest(payload.texts):
        return {}
    from sd_parsers import ParserManager

    try:
        info = ParserManager().parse(image)
        return {} if info is None or not info.samplers else _facts(info)
    except Exception:  # a stranger's file, and a parser that knows not all of them
        return {}


def _modest(texts: Mapping[str, str]) -> bool:
    """Return whether a picture's texts are no more than a parser should be given."""
    everything = "".join(texts.values())
    return len(everything) <= MAX_TEXT and everything.count("[") + everything.count("{") <= MAX_ENTRIES


def _facts(info: Any) -> dict[str, Any]:
    """Return the last sampler's settings, which made the picture that was saved."""
    sampler = info.samplers[-1]
    parameters = {str(name): value for name, value in sampler.parameters.items()}
    facts: dict[str, Any] = {
        "tool": info.generator.value,
        "prompts": [_text(info.full_prompt)],
        "negative_prompt": _text(info.full_negative_prompt),
        "loras": [],
        "model": "" if sampler.model is None else _text(sampler.model.name or ""),
        "model_hash": "" if sampler.model is None else _text(sampler.model.hash or ""),
        "sampler": _text(sampler.name),
        "scheduler": _text(parameters.get("scheduler", "")),
        "parameters": {name: _text(value) for name, value in parameters.items()},
    }
    for theirs, ours in _NUMBERS.items():
        number = read_number(parameters.get(theirs, ""))
        if number is not None:
            facts[ours] = number
    if "seed" in facts:
        facts["seeds"] = [facts.pop("seed")]
    return facts


def _text(value: object) -> str:
    return str(value)[:MAX_TEXT]
