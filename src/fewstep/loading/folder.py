"""A folder in diffusers' layout → blueprints of its networks. Nothing in it is trusted."""

from __future__ import annotations

import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fewstep.catalog.architectures import SDXL, UNUSED_PARTS, ArchitectureInfo, architecture_of_folder
from fewstep.errors import CorruptModelError
from fewstep.files import safetensors
from fewstep.files.noise import noise_of_scheduler
from fewstep.files.untrusted import read_config
from fewstep.loading import tokenizers
from fewstep.loading.build import Blueprint, ModelBlueprint
from fewstep.loading.lazy_tensors import list_tensors

_SCHEDULER = re.compile(r"[A-Z]\w{2,60}Scheduler", re.ASCII)  # a name; only its JSON is read
_PIPELINE = re.compile(r"[A-Z]\w{2,80}", re.ASCII)
_KERNEL_FIELDS = ("attn_implementation", "_attn_implementation", "experts_implementation")  # transformers 5's
_CODE_FIELDS = ("auto_map", "custom_pipeline", "custom_pipelines", "trust_remote_code")  # code from elsewhere


def read_folder(root: Path) -> ModelBlueprint:
    """Return a whole model; raises `CorruptModelError`."""
    index = check_folder(root)
    architecture = architecture_of_folder(index)
    parts = {name: read_network(root / name, architecture.parts[name][1]) for name in architecture.networks}
    vocabulary_sizes = [
        parts[name].config.get("vocab_size", tokenizers.CLIP_VOCABULARY) for name in architecture.encoders
    ]
    folders = [root / name for name in architecture.tokenizers]
    return ModelBlueprint(
        architecture=architecture,
        parts=parts,
        tokenizers=lambda: tuple(map(tokenizers.load_tokenizer, folders, vocabulary_sizes)),
        noise=noise_of_scheduler(read_config(root / "scheduler" / "scheduler_config.json"), str(root)),
        # Of SDXL's pipelines alone.
        zero_empty=architecture is SDXL and bool(index.get("force_zeros_for_empty_prompt", True)),
    )


def check_folder(root: Path) -> dict[str, Any]:
    """Return `model_index.json`, where all it names is the architecture's and every file is plain data."""
    index = read_config(root / "model_index.json")
    _require_data(root, index)
    if not isinstance(index.get("_class_name"), str) or not _PIPELINE.fullmatch(index["_class_name"]):
        raise CorruptModelError(f"{root}: model_index.json has _class_name {index.get('_class_name')!r:.80}")
    architecture = architecture_of_folder(index)
    for part, entry in index.items():
        if isinstance(entry, list) and entry != [None, None]:
            _require_allowed(root, part, entry, architecture)
    for part in (*architecture.parts, "scheduler"):
        _require_plain(root / part)
        for name in ("config.json", "tokenizer_config.json"):
            if (root / part / name).exists():
                _require_data(root / part, read_config(root / part / name))
    return index


def read_network(folder: Path, allowed: tuple[str, ...]) -> Blueprint:
    """Return one network's folder: config.json, and safetensors in one file or in shards."""
    _require_plain(folder)
    config = read_config(folder / "config.json")
    _require_data(folder, config)
    # transformers' configurations name no class, or list "architectures".
    kind = config.get("_class_name", allowed[0])
    if not isinstance(kind, str) or kind not in allowed:
        raise CorruptModelError(
            f"{folder} holds a {kind!r:.80}: fewstep builds {' or '.join(allowed)} from it"
        )
    paths = safetensors.weight_files(folder)
    if not paths:
        raise CorruptModelError(f"{folder} holds no weights: fewstep reads .safetensors files alone")
    return Blueprint(kind=kind, config=config, weights=list_tensors(paths), source=str(folder))


def _require_allowed(root: Path, name: str, entry: list[Any], architecture: ArchitectureInfo) -> None:
    """Check that a part's library and class are the architecture's."""
    if name == "scheduler":
        is_allowed = (
            entry[0] == "diffusers" and isinstance(entry[-1], str) and _SCHEDULER.fullmatch(entry[-1])
        )
    else:
        library, classes = {**architecture.parts, **UNUSED_PARTS}.get(name, ("", ()))
        is_allowed = entry[0] == library and entry[-1] in classes
    if len(entry) != 2 or not is_allowed:
        raise CorruptModelError(
            f"{root}: model_index.json asks for {entry!r:.80} as {name!r:.40}, "
            f"which is no part of {architecture.title}: "
            "fewstep loads nothing else"
        )


def _require_data(folder: Path, config: Mapping[str, Any]) -> None:
    """Check that no configuration sends for code (a kernel is fetched where its name is a hub id)."""
    for name in (*_CODE_FIELDS, *(name for name in _KERNEL_FIELDS if "/" in str(config.get(name)))):
        if config.get(name):
            raise CorruptModelError(f"{folder} wants code of its own to run ({name}): fewstep runs none")


def _require_plain(folder: Path) -> None:
    """Check that a folder has files only, and no programs: a pipe would block its reader."""
    for path in sorted(folder.glob("*")):
        kind = path.stat().st_mode if path.exists() else 0
        if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
            raise CorruptModelError(f"{path} is neither a file nor a folder")
        if path.suffix in (".py", ".pyc", ".so", ".pyd"):
            raise CorruptModelError(
                f"{path} is a program: fewstep runs none that comes with a model; remove it"
            )
