"""What another tool wrote into a picture → the keywords of `fewstep.generate`, and what is doubtful."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fewstep.errors import RequestError
from fewstep.metadata.webui import lora_name
from fewstep.reproduction.places import Places, missing_message
from fewstep.samplers import SAMPLERS
from fewstep.schedulers import SCHEDULERS

# What web UIs write that changes a picture and is not drawn here.
_IGNORED = (
    "Clip skip", "Hires upscale", "Hires upscaler", "Hires steps", "Variation seed", "ENSD", "Refiner",
    "VAE", "Face restoration", "Tiling", "Mask blur", "ControlNet 0", "TI hashes", "Eta",
)  # fmt: skip


def call_of_foreign(
    facts: Mapping[str, Any], places: Places, options: Mapping[str, Any]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the keywords as far as it says, and doubts; `RequestError` where something is missing."""
    missing: list[str] = []
    doubts = [*_noise_doubts(facts)]
    call: dict[str, Any] = {
        "prompt": facts["prompts"][0],
        "model": _model(facts, places, options, missing),
        "loras": _loras(facts, places, options, missing),
    }
    call |= _numbers(facts, doubts)
    if facts.get("negative_prompt") and call.get("guidance", 1) > 1:
        call["negative_prompt"] = facts["negative_prompt"]
    if facts.get("mode"):
        call["mode"] = facts["mode"]
    elif facts.get("sampler") == "lcm":
        call["mode"] = "lcm-lora"
        doubts.append("sampler LCM is drawn in mode 'lcm-lora'; type mode=... for another")
    else:
        call["mode"] = "base"
        call |= _rules(facts, doubts)
    if "strength" in facts and "image" not in options:
        missing.append("the picture that it was made from (Denoising strength is there): type image=...")
    elif "strength" in facts:
        call["strength"] = facts["strength"]
    ignored = [name for name in _IGNORED if name in facts.get("parameters", ())]
    if ignored:
        doubts.append(f"left out: {', '.join(ignored)}")
    if missing:
        raise RequestError(missing_message(places.path, missing))
    return call | dict(options), tuple(doubts)


def _noise_doubts(facts: Mapping[str, Any]) -> list[str]:
    if facts.get("noise") == "CPU":
        return []
    return [f"{facts['tool']!r:.60} drew its noise on a GPU, as far as it says: the picture will be another"]


def _model(
    facts: Mapping[str, Any], places: Places, options: Mapping[str, Any], missing: list[str]
) -> str | None:
    """Return the model's file by its name."""
    if "model" in options:
        return None
    name = facts.get("model", "")
    for end in ("", ".safetensors") if name else ():
        path = places.find(f"{name}{end}")
        if path is not None:
            return str(path)
    digest = f" (hash {facts['model_hash']})" if facts.get("model_hash") else ""
    missing.append(f"the model {name!r}{digest}: type model=...")
    return None


def _loras(
    facts: Mapping[str, Any], places: Places, options: Mapping[str, Any], missing: list[str]
) -> list[tuple[str, float]]:
    loras = []
    for name, weight in () if "loras" in options else facts.get("loras", ()):
        path = places.find(f"{lora_name(name)}.safetensors")
        if path is None:
            digest = facts.get("hashes", {}).get(f"lora:{name}", "")
            missing.append(
                f"the LoRA {name!r}{f' (hash {digest})' if digest else ''}: put it beside the picture, or "
                "type loras=..."
            )
        else:
            loras.append((str(path), weight))
    return loras


def _numbers(facts: Mapping[str, Any], doubts: list[str]) -> dict[str, Any]:
    """Return steps, seed, guidance and size where they are whole and said."""
    call = {name: facts[name] for name in ("steps", "width", "height") if isinstance(facts.get(name), int)}
    if isinstance(facts.get("guidance"), int | float):
        call["guidance"] = float(facts["guidance"])
    seeds = facts.get("seeds", [])
    if seeds and isinstance(seeds[0], int) and seeds[0] >= 0:
        call["seed"] = seeds[0]
    else:
        doubts.append("no seed is said: one was drawn")
    return call


def _rules(facts: Mapping[str, Any], doubts: list[str]) -> dict[str, Any]:
    """Return sampler and scheduler where there are such here."""
    call = {}
    for name, names in (("sampler", SAMPLERS), ("scheduler", SCHEDULERS)):
        value = facts.get(name, "")
        if value in names:
            call[name] = value
        elif value:
            doubts.append(f"{name} {value!r:.60} is not here: the mode's own is taken")
    return call
