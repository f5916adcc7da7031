"""Which files an engine, and a call to it, took weights and configurations from: noted when they are read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fewstep.catalog import addons, hub
from fewstep.catalog.addons import AddonPlace
from fewstep.catalog.hub import existing_path
from fewstep.catalog.models import Model
from fewstep.files import safetensors
from fewstep.files.checksums import UsedWeights, used_files
from fewstep.loading.build import Blueprint, ModelBlueprint
from fewstep.recipe import Weights
from fewstep.request import Request
from fewstep.request.schema import EngineKey

_PLAIN = ("*.json", "*.txt")  # beside weights: configurations, vocabularies


def weights_of_engine(
    model: Model, weights: Weights | None, key: EngineKey, blueprint: ModelBlueprint, root: Path
) -> tuple[UsedWeights, ...]:
    """Return what a model in a mode is made of; `root` is its folder or file, `weights` the mode's own."""
    attach = "" if weights is None else weights.attach
    source = weights.source if weights is not None and attach == "checkpoint" else model.name
    replaced = {"unet"} if attach == "unet" else set[str]()
    replaced |= {"vae"} if key.file("vae") or not _inside(blueprint.parts["vae"], root) else set()
    parts = {name: part for name, part in blueprint.parts.items() if name not in replaced}
    paths = [path for part in parts.values() for path in _paths(part)]
    if root.is_dir():
        paths += [root / "model_index.json", root / "scheduler" / "scheduler_config.json"]
        folders = [root / name for name in blueprint.architecture.tokenizers]
        paths += [path for folder in folders for pattern in _PLAIN for path in folder.glob(pattern)]
    used = [_used("model", source, sorted({*paths}), root if root.is_dir() else None)]
    if weights is not None and attach == "unet":
        used.append(_used("accelerator", weights.source, _paths(blueprint.parts["unet"])))
    if "vae" in replaced:
        used.append(_used("vae", key.file("vae") or "vae-fp16", _paths(blueprint.parts["vae"])))
    used += [
        _used("embeddings", embedding, [_addon_path(embedding, "embeddings")]) for embedding in key.embeddings
    ]
    return tuple(used)


def weights_of_adapter(source: str, path: Path, weight: float) -> UsedWeights:
    """Return the mode's own LoRA."""
    return UsedWeights(option="accelerator", source=source, files=used_files([path]), weight=weight)


def weights_of_call(request: Request) -> tuple[UsedWeights, ...]:
    """Return what a call brought beside its engine's weights: what is there is known to load."""
    used = [_used("loras", source, [_addon_path(source)]) for source, weight in request.loras if weight]
    for source, scale in request.control:
        if scale:
            place = addons.locate_controlnet(addons.split_controlnet_view(source)[0])
            used.append(_used("control", source, list(_place_paths(place))))
    for source, scale in request.reference:
        if scale:
            used.append(_used("reference", source, list(_place_paths(addons.locate_ip_adapter(source)))))
    return tuple(used)


def _used(option: str, source: str, paths: list[Path], root: Path | None = None) -> UsedWeights:
    return UsedWeights(option=option, source=source, files=used_files(paths, root))


def _paths(part: Blueprint) -> list[Path]:
    """Return the files of a network: its weights and, in a folder, its configuration."""
    config = Path(part.source) / "config.json"
    return sorted(
        {*(tensor.path for tensor in part.weights.values()), *([config] if config.is_file() else ())}
    )


def _inside(part: Blueprint, root: Path) -> bool:
    return all(path == root or root in path.parents for path in _paths(part))


def _addon_path(source: str, name: str = "loras") -> Path:
    return addons.addon_file(source, name) or addons.fetch_addon(source, name)


def _place_paths(place: AddonPlace) -> Iterator[Path]:
    """Yield the files of a ControlNet or an IP-Adapter: weights and, of a folder, its configuration."""
    root = existing_path(place.root)
    if root is None:
        config = hub.cached_file(place.root, place.file or "config.json", place.revision)
        root = None if config is None else config if place.file else config.parent
    elif place.file:
        root /= place.file
    if root is None:
        return
    if root.is_file():
        yield root
        return
    yield from (*safetensors.weight_files(root), *root.glob("config.json"))
