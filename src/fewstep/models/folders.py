"""A folder in diffusers' layout → blueprints of its networks. Nothing in it is trusted."""

from __future__ import annotations

import re
import stat
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fewstep.errors import CorruptModelError
from fewstep.models import said, shards, vocabulary
from fewstep.models.catalog import read_json, reading
from fewstep.models.networks import Blueprint, Whole
from fewstep.models.stored import listed

# What SDXL's pipelines are made of: part → library and classes. Others are not even imported.
PARTS: MappingProxyType[str, tuple[str, tuple[str, ...]]] = MappingProxyType(
    {
        "unet": ("diffusers", ("UNet2DConditionModel",)),
        "vae": ("diffusers", ("AutoencoderKL", "AutoencoderTiny")),
        "text_encoder": ("transformers", ("CLIPTextModel",)),
        "text_encoder_2": ("transformers", ("CLIPTextModelWithProjection",)),
        "tokenizer": ("transformers", ("CLIPTokenizer", "CLIPTokenizerFast")),
        "tokenizer_2": ("transformers", ("CLIPTokenizer", "CLIPTokenizerFast")),
    }
)
# Named by many folders, used by none of our tasks: allowed, and left alone.
IDLE: MappingProxyType[str, tuple[str, tuple[str, ...]]] = MappingProxyType(
    {
        "image_encoder": ("transformers", ("CLIPVisionModelWithProjection",)),
        "feature_extractor": ("transformers", ("CLIPImageProcessor", "CLIPFeatureExtractor")),
    }
)
NETWORKS = ("unet", "vae", "text_encoder", "text_encoder_2")
_SCHEDULER = re.compile(r"[A-Z]\w{2,60}Scheduler", re.ASCII)  # a name; only its JSON is read
_PIPELINE = re.compile(r"[A-Z]\w{2,80}", re.ASCII)
_KERNELS = ("attn_implementation", "_attn_implementation", "experts_implementation")  # transformers 5's
TOKENIZER = 16 * 2**20  # bytes: the most of each of its files; CLIP's tokenizer.json has 3.6 million
_FOREIGN = ("auto_map", "custom_pipeline", "custom_pipelines", "trust_remote_code")  # code from elsewhere


def read(root: Path) -> Whole:
    """A whole model."""
    index = check(root)
    parts = {name: network(root / name, PARTS[name][1]) for name in NETWORKS}
    first, second = (parts[name].config.get("vocab_size", vocabulary.SIZE) for name in NETWORKS[2:])
    return Whole(
        parts=parts,
        tokenizers=lambda: (_tokenizer(root / "tokenizer", first), _tokenizer(root / "tokenizer_2", second)),
        prediction=said.prediction(read_json(root / "scheduler" / "scheduler_config.json"), str(root)),
        zero_empty=bool(index.get("force_zeros_for_empty_prompt", True)),
    )


def check(root: Path) -> dict[str, Any]:
    """`model_index.json`, where all it names is SDXL's and every file is plain data."""
    index = read_json(root / "model_index.json")
    _require_data(root, index)
    if not isinstance(index.get("_class_name"), str) or not _PIPELINE.fullmatch(index["_class_name"]):
        raise CorruptModelError(f"{root}: model_index.json has _class_name {index.get('_class_name')!r:.80}")
    for part, named in index.items():
        if isinstance(named, list) and named != [None, None]:
            _require_allowed(root, part, named)
    for part in (*PARTS, "scheduler"):
        _require_plain(root / part)
        for name in ("config.json", "tokenizer_config.json"):
            if (root / part / name).exists():
                _require_data(root / part, read_json(root / part / name))
    return index


def network(folder: Path, allowed: tuple[str, ...]) -> Blueprint:
    """One network's folder: config.json, and safetensors in one file or in shards."""
    _require_plain(folder)
    config = read_json(folder / "config.json")
    _require_data(folder, config)
    # transformers' configurations name no class, or list "architectures".
    kind = config.get("_class_name", allowed[0])
    if not isinstance(kind, str) or kind not in allowed:
        raise CorruptModelError(
            f"{folder} holds a {kind!r:.80}: fewstep builds {' or '.join(allowed)} from it"
        )
    paths = shards.files(folder)
    if not paths:
        raise CorruptModelError(f"{folder} holds no weights: fewstep reads .safetensors files alone")
    return Blueprint(kind=kind, config=config, weights=listed(paths), source=str(folder))


def _tokenizer(folder: Path, words: int) -> Any:
    """For an encoder of so many words: a number beyond would be read past the end of its table."""
    from transformers import CLIPTokenizer

    with reading(folder):
        for path in folder.glob("*"):
            if path.stat().st_size > TOKENIZER:
                raise CorruptModelError(f"{path} is larger than {TOKENIZER} bytes, a tokenizer's most")
        made = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        last = max(made.get_vocab().values(), default=0)
    signs = {f"{name}_token": getattr(made, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    missing = [name for name, number in signs.items() if number is None]
    if missing:
        raise CorruptModelError(f"{folder} has no {missing[0]}, which every prompt needs")
    largest = max(last, *signs.values())
    if largest >= words:
        raise CorruptModelError(
            f"{folder} has a token of number {largest}, and its text encoder knows {words}, from 0"
        )
    return made


def _require_allowed(root: Path, name: str, named: list[Any]) -> None:
    """Is this part of this library and class one of SDXL's?"""
    if name == "scheduler":
        fits = named[0] == "diffusers" and isinstance(named[-1], str) and _SCHEDULER.fullmatch(named[-1])
    else:
        library, classes = {**PARTS, **IDLE}.get(name, ("", ()))
        fits = named[0] == library and named[-1] in classes
    if len(named) != 2 or not fits:
        raise CorruptModelError(
            f"{root}: model_index.json asks for {named!r:.80} as {name!r:.40}, which is no part of SDXL: "
            "fewstep loads nothing else"
        )


def _require_data(folder: Path, config: Mapping[str, Any]) -> None:
    """No configuration may send for code. A kernel is fetched where its name is a hub id."""
    for name in (*_FOREIGN, *(name for name in _KERNELS if "/" in str(config.get(name)))):
        if config.get(name):
            raise CorruptModelError(f"{folder} wants code of its own to run ({name}): fewstep runs none")


def _require_plain(folder: Path) -> None:
    """Files only, and no programs: a pipe would block its reader."""
    for path in sorted(folder.glob("*")):
        kind = path.stat().st_mode if path.exists() else 0
        if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
            raise CorruptModelError(f"{path} is neither a file nor a folder")
        if path.suffix in (".py", ".pyc", ".so", ".pyd"):
            raise CorruptModelError(
                f"{path} is a program: fewstep runs none that comes with a model; remove it"
            )
