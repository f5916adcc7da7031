"""`Pipeline`: what can be seen of one without running it, from an object or from a folder. No torch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewstep.errors import CorruptModelError, ModelNotFoundError, RequestError
from fewstep.files import safetensors, untrusted

NETWORKS = ("unet", "vae", "text_encoder", "text_encoder_2")
TOKENIZERS = ("tokenizer", "tokenizer_2")
CONFIGS = {"scheduler": "scheduler_config.json"} | dict.fromkeys(NETWORKS, "config.json")
DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}  # safetensors' names → torch's


@dataclass(frozen=True, kw_only=True)
class ActiveAdapter:
    """A LoRA of the UNet."""

    name: str
    weight: float | None  # None where it cannot be seen any more
    active: bool
    fused: bool = False


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """Its configurations, and what there is to say of its weights."""

    kind: str  # class name
    source: str  # a folder, or where it was loaded from
    stored: bool  # a folder: dtypes are those of the files, devices and LoRAs are not known
    config: Mapping[str, Any]  # its own
    parts: Mapping[str, Mapping[str, Any]]  # configuration of each part that is there, by name
    dtypes: Mapping[str, str]  # by network: "float16"
    device: str = ""  # where the UNet's weights are; "" where not known, or where they move about
    gpu: str = ""  # one that is there to be used
    adapters: tuple[ActiveAdapter, ...] = ()
    padding: str = ""  # what the second tokenizer fills short prompts up with
    watermark: bool = False

    @property
    def scheduler(self) -> str:
        """Return its class."""
        return str(self.parts["scheduler"].get("_class_name"))


def read_pipeline(pipe_or_path: Any) -> Pipeline:
    """Look at a pipeline; `RequestError` where there is none, `ModelError` where a folder is broken."""
    if isinstance(pipe_or_path, str | Path):
        return _from_folder(Path(os.path.expanduser(pipe_or_path)))  # which never raises, unlike Path's
    if not isinstance(getattr(pipe_or_path, "config", None), Mapping) or not hasattr(pipe_or_path, "unet"):
        raise RequestError(
            f"{type(pipe_or_path).__name__} is no diffusers pipeline with a UNet: give a "
            "StableDiffusionXLPipeline, or the folder of one"
        )
    return _from_object(pipe_or_path)


def _from_object(pipe: Any) -> Pipeline:
    components: dict[str, Any] = {name: getattr(pipe, name, None) for name in (*CONFIGS, *TOKENIZERS)}
    parts = {name: _config_of(component) for name, component in components.items() if component is not None}
    networks = {name: components[name] for name in NETWORKS if components[name] is not None}
    padding = getattr(components["tokenizer_2"], "pad_token", "")
    return Pipeline(
        kind=type(pipe).__name__,
        source=str(pipe.config.get("_name_or_path") or type(pipe).__name__),
        stored=False,
        config=pipe.config,
        parts=parts,
        dtypes={name: str(network.dtype).removeprefix("torch.") for name, network in networks.items()},
        device="" if hasattr(pipe.unet, "_hf_hook") else str(getattr(pipe.unet, "device", "")),
        gpu=_name_of_gpu() if networks else "",
        adapters=tuple(_loras_on_unet(pipe)),
        padding=str(padding or ""),
        watermark=getattr(pipe, "watermark", None) is not None,
    )


def _config_of(component: Any) -> Mapping[str, Any]:
    """Return a part's configuration and class: a mapping of diffusers, or an object of transformers."""
    component = getattr(component, "_orig_mod", component)  # what torch.compile wraps
    config = getattr(component, "config", {})
    fields: Mapping[str, Any] = config if isinstance(config, Mapping) else config.to_dict()
    return {**fields, "_class_name": type(component).__name__}


def _name_of_gpu() -> str:
    """Return "cuda" where there is one; torch, which the networks are of, is not imported for that."""
    import sys

    torch = sys.modules.get("torch")
    return "cuda" if torch is not None and torch.cuda.is_available() else ""


def _loras_on_unet(pipe: Any) -> Iterator[ActiveAdapter]:
    """Yield the UNet's LoRAs, as peft's layers have them; those fused and unloaded by name only."""
    modules = pipe.unet.modules() if hasattr(pipe.unet, "modules") else ()
    layers = [module for module in modules if hasattr(module, "lora_A") and hasattr(module, "scaling")]
    names = {name: layer for layer in reversed(layers) for name in layer.scaling}  # one that has it
    for name, layer in names.items():
        rank = layer.r[name] ** (0.5 if getattr(layer, "use_rslora", {}).get(name) else 1.0)
        fused = name in layer.merged_adapters
        yield ActiveAdapter(
            name=name,
            weight=round(layer.scaling[name] * rank / layer.lora_alpha[name], 4),
            active=fused or (name in layer.active_adapters and not layer.disable_adapters),
            fused=fused,
        )
    for name in sorted(set(getattr(pipe, "fused_loras", ())) - set(names)):
        yield ActiveAdapter(name=name, weight=None, active=True, fused=True)


def _from_folder(root: Path) -> Pipeline:
    """Return that of a folder, from JSON files and the headers of safetensors alone."""
    if not (root / "model_index.json").is_file():
        raise ModelNotFoundError(
            f"{root} is not a diffusers folder here: give one with a model_index.json, or a pipeline"
        )
    index = untrusted.read_json(root / "model_index.json")
    listed = {name for name in (*CONFIGS, *TOKENIZERS) if _class_in_index(root, index, name)}
    parts: dict[str, Mapping[str, Any]] = {
        name: {"_class_name": _class_in_index(root, index, name)} | untrusted.read_json(root / name / file)
        for name, file in CONFIGS.items()
        if name in listed and (root / name / file).is_file()
    }
    parts |= {name: {} for name in TOKENIZERS if name in listed and (root / name).is_dir()}
    dtypes = {name: _dtype_of_weights(root / name) for name in NETWORKS if name in parts}
    return Pipeline(
        kind=str(index.get("_class_name")),
        source=str(root.resolve()),
        stored=True,
        config=index,
        parts=parts,
        dtypes=dtypes,
        padding=_padding_token(root / "tokenizer_2"),
    )


def _class_in_index(root: Path, index: Mapping[str, Any], name: str) -> str:
    """Return a part's class from the index, as transformers' files do not say it; "" is no such part."""
    entry = index.get(name)
    if not isinstance(entry, list) or entry == [None, None]:
        return ""
    if len(entry) != 2 or not all(isinstance(text, str) and text for text in entry):
        raise CorruptModelError(
            f"{root}: model_index.json has {name}={entry!r:.80}: it should be a library and a class"
        )
    return str(entry[1])


def _dtype_of_weights(folder: Path) -> str:
    """Return that of the first weight with a fraction, by its header; "" where there is no file."""
    for path in safetensors.weight_files(folder):
        for entry in safetensors.read_header(path).tensors.values():
            if entry.dtype in DTYPES:
                return DTYPES[entry.dtype]
    return ""


def _padding_token(folder: Path) -> str:
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / file).is_file():
            token = untrusted.read_json(folder / file).get("pad_token", "")
            content = token.get("content") if isinstance(token, dict) else token or ""
            if not isinstance(content, str):
                raise CorruptModelError(f"{folder / file} has pad_token={token!r:.80}: it should be text")
            if content:
                return content
    return ""
