"""Model files → parts in memory. Only safetensors, only the classes of SDXL, nothing remote runs."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fewstep.devices import Placement
from fewstep.errors import CorruptModelError, ModelNotFoundError
from fewstep.models import vae
from fewstep.models.catalog import TINY, Model, read_json, reading
from fewstep.models.weights import LORA, adapter_file, check_embedding, choose, unet_folder
from fewstep.recipe import Recipe, Weights
from fewstep.runtimes import offload
from fewstep.text import TextEncoder


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The networks of one (model, mode), placed and ready."""

    unet: Any  # UNet2DConditionModel
    vae: Any  # AutoencoderKL or AutoencoderTiny
    text: TextEncoder
    prediction: str  # epsilon, v_prediction or sample
    guidance_width: int  # of LCM's guidance embedding; 0 is none
    lock: AbstractContextManager[Any]  # re-entrant; held while any of the networks runs


def load(model: Model, recipe: Recipe, accelerator: str, placement: Placement) -> Parts:
    """Read a model and the mode's own weights; `accelerator` ("" is the recipe's) replaces the latter."""
    with _quietly():
        return _load(model, recipe, accelerator, placement)


def _load(model: Model, recipe: Recipe, accelerator: str, placement: Placement) -> Parts:
    weights = choose(model, recipe, accelerator)
    checkpoint = weights is not None and weights.attach == "checkpoint"
    root = _locate(weights.source if weights is not None and checkpoint else model.source)
    if root == TINY:
        verify(TINY)
    unet_folder = root / "unet"
    if weights is not None and weights.attach == "unet":
        unet_folder = _unet_folder(weights.source, root)
    unet = _network("UNet2DConditionModel", unet_folder, placement, placement.dtype)
    if weights is not None and weights.attach == "adapter":
        from fewstep.models.lora import attach

        attach(unet, _adapter_file(weights))
    width = unet.config.time_cond_proj_dim or 0
    check_embedding(model, recipe, bool(width))
    scheduler = read_json(root / "scheduler" / "scheduler_config.json")
    vae_folder = vae.folder(root, placement.vae_dtype)
    autoencoder = _network(_vae_class(vae_folder), vae_folder, placement, placement.vae_dtype)
    lock = threading.RLock()
    text = _text(root, placement, lock)
    offload.apply((*text.encoders, unet), autoencoder, placement)
    return Parts(
        unet=unet,
        vae=autoencoder,
        text=text,
        prediction=recipe.prediction or scheduler.get("prediction_type", "epsilon"),
        guidance_width=width,
        lock=lock,
    )


@contextmanager
def _quietly() -> Iterator[None]:
    """No progress bars from below while weights are read; a library does not print."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def verify(folder: Path) -> None:
    """Check every file that `SHA256SUMS` lists; `CorruptModelError` names the first that differs."""
    for line in (folder / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ", 1)
        path = folder / name
        if not path.is_file():
            raise CorruptModelError(f"{path} is missing: install fewstep again")
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                raise CorruptModelError(f"{path} is damaged (its sha256 differs): install fewstep again")


def _locate(source: str) -> Path:
    """A folder for a folder or a hub id; what is not in the hub's cache is downloaded."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    return _snapshot(source, [f"{part}/*" for part in _PARTS] + ["model_index.json"])


_PARTS = ("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")


def _snapshot(source: str, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    allowed = [p for p in patterns if not p.endswith("/*")]
    allowed += [
        f"{p}{end}" for p in patterns if p.endswith("/*") for end in (".json", ".txt", ".safetensors")
    ]
    skipped = ["*.fp16.safetensors", "*openvino*"]
    try:
        return Path(snapshot_download(source, allow_patterns=allowed, ignore_patterns=skipped))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelNotFoundError(
            f"{source!r} is not on this machine and could not be downloaded ({type(error).__name__}): "
            "check the name and the network, or give a local folder"
        ) from error


def _unet_folder(source: str, root: Path) -> Path:
    return unet_folder(source, root) or _snapshot(source, ["config.json", "*.safetensors"])


def _adapter_file(weights: Weights) -> Path:
    here = adapter_file(weights)
    if here is not None:
        return here
    folder = _snapshot(weights.source, [weights.file or LORA])
    return _adapter_file(replace(weights, source=str(folder)))


def _vae_class(folder: Path) -> str:
    name = str(read_json(folder / "config.json").get("_class_name"))
    if name not in ("AutoencoderKL", "AutoencoderTiny"):
        raise CorruptModelError(f"{folder}: {name!r} is neither AutoencoderKL nor AutoencoderTiny")
    return name


def _network(name: str, folder: Path, placement: Placement, dtype: torch.dtype) -> Any:
    """One diffusers network, in evaluation mode, placed."""
    import diffusers

    read_json(folder / "config.json")
    with reading(folder):
        module, found = getattr(diffusers, name).from_pretrained(
            folder, torch_dtype=dtype, use_safetensors=True, local_files_only=True,
            output_loading_info=True,
        )  # fmt: skip
        _require_all(found)
    return module.requires_grad_(False).eval().to(placement.home, memory_format=placement.memory_format)


def _require_all(found: Mapping[str, Any]) -> None:
    """Both libraries leave a tensor that the file lacks random, or empty."""
    if found["missing_keys"]:
        raise ValueError(f"{min(found['missing_keys'])} is missing")


def _text(root: Path, placement: Placement, lock: AbstractContextManager[Any]) -> TextEncoder:
    """SDXL's two tokenizers and text encoders."""
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    encoders = []
    cls: Any  # transformers' types do not know of loading info
    for cls, name in ((CLIPTextModel, "text_encoder"), (CLIPTextModelWithProjection, "text_encoder_2")):
        read_json(root / name / "config.json")
        with reading(root / name):
            encoder, found = cls.from_pretrained(
                root / name, dtype=placement.dtype, use_safetensors=True, local_files_only=True,
                output_loading_info=True,
            )  # fmt: skip
            _require_all(found)
        encoders.append(encoder.requires_grad_(False).eval().to(placement.home))
    tokenizers = []
    for name in ("tokenizer", "tokenizer_2"):
        with reading(root / name):
            tokenizers.append(CLIPTokenizer.from_pretrained(root / name, local_files_only=True))
    zero_empty = bool(read_json(root / "model_index.json").get("force_zeros_for_empty_prompt", True))
    return TextEncoder(
        (tokenizers[0], tokenizers[1]), (encoders[0], encoders[1]), zero_empty=zero_empty, lock=lock
    )
