"""The text `parameters`, by which web UIs, ComfyUI and Civitai know a picture; written and read.

    a cat <lora:fx:0.8>
    Negative prompt: a dog
    Steps: 4, Sampler: LCM, Schedule type: SGM Uniform, CFG scale: 1, Seed: 7, Size: 1024x1024, …

Rules of its readers: ComfyUI needs both "\\nNegative prompt:" and "\\nSteps:"; AUTOMATIC1111 three pairs in
the last line, and takes noise for the GPU's where `RNG` is missing; Civitai links a model where both `Model`
and `Model hash` are there (10 digits of its SHA-256; of a LoRA 12 of its tensors').
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import PurePath
from types import MappingProxyType
from typing import Any

from fewstep.files.checksums import combined_hash

SAMPLERS: MappingProxyType[str, str] = MappingProxyType(
    {
        "euler": "Euler", "euler_ancestral": "Euler a", "lcm": "LCM", "tcd": "TCD", "ddim": "DDIM",
        "dpmpp_2m": "DPM++ 2M", "dpmpp_sde": "DPM++ SDE",
    }
)  # fmt: skip
SCHEDULERS: MappingProxyType[str, str] = MappingProxyType(
    {
        "trailing": "SGM Uniform", "leading": "Uniform", "linspace": "Normal", "karras": "Karras",
        "exponential": "Exponential", "ays": "Align Your Steps", "turbo": "Turbo",
        "lcm": "SGM Uniform",  # the nearest
    }
)  # fmt: skip
MAX_LINE = 2**16  # characters of the last line that are read
MAX_LORAS = 64
_NEGATIVE = "Negative prompt:"
# No unbounded repetition overlaps another: the time to read a line grows with its length only.
_PAIR = re.compile(r'(\w[\w /-]{0,60}+):[ ]{0,8}+("(?:\\.|[^\\"]){0,4000}+"|[^,]{0,4000}+)(?:,|$)')
_HASHES = re.compile(r"(?:,\s?)?\bHashes:\s{0,8}+(\{[^{}]{0,20000}+\})")
_LORA = re.compile(r"<lora:([^<>:]{1,200}+):([+-]?[0-9.]{1,12}+)[^<>]{0,40}+>")
_CONTROLS = {code: " " for code in (*range(32), 127) if code != 10}  # but line ends


def write_parameters(facts: Mapping[str, Any], version: str) -> str:
    """Return the text of a picture's facts; prompts that are not in them are empty."""
    names, hashes = dict[str, str](), dict[str, str]()
    prompt = _harmless("".join(facts.get("prompts", ())))
    for name, weight, tensors in _loras(facts):
        prompt += f" <lora:{name}:{weight:g}>"
        if tensors:
            names[name] = hashes[f"lora:{name}"] = tensors[:12]
    model, model_hash = _model(facts)
    if model_hash:
        hashes = {"model": model_hash, **hashes}
    pairs = {
        "Steps": facts["steps"],
        "Sampler": SAMPLERS.get(facts["sampler"], facts["sampler"]),
        "Schedule type": SCHEDULERS.get(facts["scheduler"], ""),
        "CFG scale": f"{facts['guidance']:g}",
        "Seed": facts["seeds"][0],
        "Size": f"{facts['width']}x{facts['height']}",
        "Model hash": model_hash,
        "Model": model,
        "Denoising strength": f"{facts['strength']:g}" if "image" in facts.get("sources", ()) else "",
        "Lora hashes": ", ".join(f"{name}: {digest}" for name, digest in names.items()),
        "RNG": "CPU",
        "Few-step mode": facts["mode"],
        "Version": f"fewstep {version}",
    }
    line = ", ".join(f"{key}: {_quoted(value)}" for key, value in pairs.items() if value != "")
    if hashes:
        line += f", Hashes: {json.dumps(hashes, separators=(',', ':'))}"
    return f"{prompt.strip()}\n{_NEGATIVE} {_harmless(facts.get('negative_prompt', ''))}\n{line}"


def _loras(facts: Mapping[str, Any]) -> list[tuple[str, float, str]]:
    """Return each LoRA's name, weight and hash: those of the call, and the mode's own."""
    weights = facts.get("weights", ())
    digests = {
        (entry["option"], entry["source"]): entry.get("tensors", "")
        for entry in weights
        if "tensors" in entry
    }
    loras = [
        (lora_name(source), scale, digests.get(("loras", source), ""))
        for source, scale in facts.get("loras", ())
    ]
    of_mode = [
        (lora_name(entry["source"]), entry["weight"], entry["tensors"])
        for entry in weights
        if "weight" in entry
    ]
    return [*of_mode, *loras]


def lora_name(source: str) -> str:
    """Return a LoRA's name as Civitai takes it: [A-Za-z0-9_.-]+."""
    path = PurePath(source)
    name = path.parent.name if path.stem in ("pytorch_lora_weights", "adapter_model") else path.name
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", name.removesuffix(".safetensors"), flags=re.ASCII) or "lora"


def _model(facts: Mapping[str, Any]) -> tuple[str, str]:
    """Return the model's name and ten digits of its hash: of the file, or of the UNet in a folder."""
    weights = facts.get("weights", ())
    entry: Mapping[str, Any] = next((entry for entry in weights if entry["option"] == "model"), {})
    unet: Mapping[str, Any] = next(
        (e for e in weights if e["option"] == "accelerator" and "weight" not in e), {}
    )
    source = entry.get("source", facts["model"])
    name = re.sub(r"[^\w.() +-]+", "_", PurePath(source).name.removesuffix(".safetensors")) or "model"
    files, replaced = (
        {n: digest for n, digest in used.get("files", {}).items() if n.endswith(".safetensors")}
        for used in (entry, unet)
    )
    network = {n: digest for n, digest in files.items() if n.startswith("unet/")}
    return name, combined_hash(replaced or network or files)[:10]


def _harmless(text: str) -> str:
    """Return a prompt that readers cannot take for what follows it; line ends stay, other controls do not."""
    plain = text.replace("\r\n", "\n").replace("\r", "\n").translate(_CONTROLS)
    return plain.replace(_NEGATIVE, "Negative prompt :").strip()


def _quoted(value: object) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if set(text) & set(',:"\n') else text


# --- reading


def read_parameters(text: str) -> dict[str, Any]:
    """Return what such a text says, in this library's words; {} for what is none.

    `parameters` has all pairs of the last line as they are.
    """
    body, _, line = text.strip().rpartition("\n")
    hashes, line = _take_hashes(line[:MAX_LINE])
    pairs = {key.strip(): _unquoted(value) for key, value in _PAIR.findall(line)}
    if len(pairs) < 3 or "Steps" not in pairs:
        return {}
    prompt, negative = _split_prompt(body)
    loras = [[name, weight] for name, weight in map(_lora_weight, _LORA.findall(prompt)[:MAX_LORAS])]
    facts: dict[str, Any] = {
        "tool": pairs.get("Version", "AUTOMATIC1111"),
        "prompts": [_LORA.sub("", prompt).strip() if loras else prompt],
        "negative_prompt": negative,
        "loras": loras,
        "hashes": hashes,
        "model": pairs.get("Model", ""),
        "model_hash": pairs.get("Model hash", ""),
        "sampler": _our_name(SAMPLERS, pairs.get("Sampler", "")),
        "scheduler": _our_name(SCHEDULERS, pairs.get("Schedule type", "")),
        "mode": pairs.get("Few-step mode", ""),
        "noise": pairs.get("RNG", "GPU"),
        "parameters": pairs,
    }
    width, _, height = pairs.get("Size", "").partition("x")
    numbers = {
        "steps": pairs["Steps"], "seed": pairs.get("Seed", ""), "guidance": pairs.get("CFG scale", ""),
        "width": width, "height": height, "strength": pairs.get("Denoising strength", ""),
    }  # fmt: skip
    facts |= {name: number for name, value in numbers.items() if (number := read_number(value)) is not None}
    if "seed" in facts:
        facts["seeds"] = [facts.pop("seed")]
    return facts


def read_number(value: object) -> int | float | None:
    """Return a number that another program wrote; None for what is none, or too long for one."""
    text = str(value).strip()
    if len(text) > 40:
        return None
    try:
        return int(text) if re.fullmatch(r"[+-]?[0-9]+", text) else float(text)
    except ValueError:
        return None


def _our_name(names: Mapping[str, str], theirs: str) -> str:
    """Return our name for another program's; its own where we have none."""
    return next((ours for ours, name in names.items() if name.lower() == theirs.lower()), theirs)


def _lora_weight(match: tuple[str, str]) -> tuple[str, float]:
    weight = read_number(match[1])
    return match[0], 1.0 if weight is None else float(weight)


def _split_prompt(body: str) -> tuple[str, str]:
    lines = body.split("\n")
    start = next((i for i, line in enumerate(lines) if line.strip().startswith(_NEGATIVE)), len(lines))
    negative = "\n".join(lines[start:]).strip().removeprefix(_NEGATIVE)
    return "\n".join(lines[:start]).strip(), negative.strip()


def _take_hashes(line: str) -> tuple[dict[str, str], str]:
    """Return the JSON of hashes, and the line without it."""
    match = _HASHES.search(line)
    if match is None:
        return {}, line
    try:
        hashes = json.loads(match[1])
    except ValueError:
        hashes = {}
    strings = {str(name): value for name, value in hashes.items() if isinstance(value, str)}
    return strings, line[: match.start()] + line[match.end() :]


def _unquoted(value: str) -> str:
    if len(value) > 1 and value[0] == value[-1] == '"':
        try:
            return str(json.loads(value))
        except ValueError:
            return value[1:-1]
    return value.strip()
