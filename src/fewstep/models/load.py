"""Model files → parts in memory. Only safetensors, only the classes of SDXL, nothing remote runs."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fewstep.devices import Placement
from fewstep.errors import CorruptModelError
from fewstep.key import EngineKey
from fewstep.models import adapting, assets, embeddings, folders, hub, licences, said, single, vae
from fewstep.models.catalog import TINY, Model, local
from fewstep.models.networks import Blueprint, Whole, build
from fewstep.models.weights import adapter_file, check_embedding, choose, unet_file, unet_folder
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
    accelerator: tuple[str, float] | None = None  # the mode's own LoRA and its weight
    given: str = ""  # as accelerator=, in the user's words
    given_vae: str = ""  # as vae=, likewise
    embeddings: tuple[str, ...] = ()  # files of learned words
    licence: str = "unknown"  # of all that was loaded
    revision: str = ""  # the commit that the model came from; "" is none, or not known


def load(model: Model, recipe: Recipe, key: EngineKey, placement: Placement) -> Parts:
    """Read a model and the mode's own weights, or those that `key.accelerator` puts in their place."""
    with _quietly():
        weights = choose(model, recipe, key.accelerator)
        attach = "" if weights is None else weights.attach
        whose = (model.source, model.revision)
        if weights is not None and attach == "checkpoint":
            whose = (weights.source, "")  # all of the model is its
        root = _root(*whose)
        whole = folders.read(root) if root.is_dir() else single.read(root)
        if weights is not None and attach == "unet":
            whole = whole.with_part("unet", _unet(weights, root, whole.parts["unet"]))
        whole = whole.with_part("vae", _vae(whole, root, placement.vae_dtype, model, key.vae))
        said.check_channels(whole.parts["unet"].config, whole.parts["vae"].config, str(root))
        embedded = bool(whole.parts["unet"].config.get("time_cond_proj_dim"))
        check_embedding(model, recipe, embedded, key.accelerator if attach != "adapter" else "")
        parts = _built(whole, recipe, placement, key.embeddings)
    adapter = None
    if weights is not None and attach == "adapter":
        adapter = (str(_adapter(weights, root)), weights.scale)
    return replace(
        parts,
        accelerator=adapter,
        given=key.accelerator,
        given_vae=key.vae,
        embeddings=key.embeddings,
        licence=licences.joined(licences.used(model, recipe, weights, key.embeddings, key.vae).values()),
        revision=hub.revision_of(root),
    )


def _built(whole: Whole, recipe: Recipe, placement: Placement, words: Sequence[str]) -> Parts:
    unet, first, second = (
        build(whole.parts[name], placement, placement.dtype)
        for name in ("unet", "text_encoder", "text_encoder_2")
    )
    autoencoder = build(whole.parts["vae"], placement, placement.vae_dtype)
    lock = threading.RLock()
    text = TextEncoder(whole.tokenizers(), (first, second), zero_empty=whole.zero_empty, lock=lock)
    embeddings.add(text, words)  # before there are hooks on the encoders
    offload.apply((first, second, unet), autoencoder, placement)
    return Parts(
        unet=unet,
        vae=autoencoder,
        text=text,
        prediction=recipe.prediction or whole.prediction,
        guidance_width=unet.config.time_cond_proj_dim or 0,
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


def _root(source: str, revision: str) -> Path:
    """Where a model is on this machine; what is not in the hub's cache is downloaded."""
    here = local(source)
    root = here if here is not None else hub.folder(source, assets.FOLDER, revision)
    if root == TINY:
        verify(TINY)
    return root


def _unet(weights: Weights, root: Path, base: Blueprint) -> Blueprint:
    """The UNet that a mode puts in the place of the model's own."""
    file = unet_file(weights)
    if file is None and weights.file:
        file = hub.file(weights.source, weights.file)
    if file is not None:
        return single.unet(file, base.config)
    folder = unet_folder(weights.source, root) or hub.folder(weights.source, assets.UNET)
    return folders.network(folder, ("UNet2DConditionModel",))


def _adapter(weights: Weights, root: Path) -> Path:
    here = adapter_file(weights, root)
    if here is None and weights.file:
        here = hub.file(weights.source, weights.file)
    return here or adapting.fetched(weights.source)


def _vae(whole: Whole, root: Path, dtype: torch.dtype, model: Model, given: str) -> Blueprint:
    """The VAE that is given; or the model's own; in fp16, or where it has none, the corrected one."""
    own = whole.parts.get("vae")
    if given:
        path = vae.fetched(given, model)
        vae.check_latents(given, model, vae.config(path), vae.SDXL if own is None else own.config)
        return folders.network(path, vae.CLASSES) if path.is_dir() else single.vae(path)
    half = dtype == torch.float16
    other = vae.instead(None if own is None else own.config, half, str(root))
    if other is not None:
        return folders.network(other, ("AutoencoderKL",))
    assert own is not None  # or `instead` had raised
    return own
