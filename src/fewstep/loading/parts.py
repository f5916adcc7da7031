"""Model files → parts in memory: safetensors alone, an architecture's classes alone, nothing remote runs."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fewstep.architectures import load_architecture
from fewstep.architectures.text import TextEncoder
from fewstep.catalog import addons, assets, hub, licences, mode_weights, vaes
from fewstep.catalog.architectures import ArchitectureInfo
from fewstep.catalog.hub import existing_path
from fewstep.catalog.mode_weights import (
    adapter_file,
    check_guidance_embedding,
    choose_weights,
    unet_file,
    unet_folder,
)
from fewstep.catalog.models import TINY, Model
from fewstep.catalog.noise import noise_for
from fewstep.devices import Placement
from fewstep.errors import CorruptModelError, ModelError
from fewstep.files import config
from fewstep.files.checksums import UsedWeights, remember, used_file
from fewstep.files.noise import Noise
from fewstep.loading import single_file, textual_inversion
from fewstep.loading.build import Blueprint, ModelBlueprint, build_network, import_libraries
from fewstep.loading.folder import read_folder, read_network
from fewstep.loading.used_weights import weights_of_adapter, weights_of_engine
from fewstep.noise_process import NoiseProcess
from fewstep.recipe import Recipe, Weights
from fewstep.request.schema import EngineKey
from fewstep.runtimes import offload


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The networks of one (model, mode), placed and ready."""

    unet: Any  # UNet2DConditionModel
    vae: Any  # AutoencoderKL or AutoencoderTiny
    text: TextEncoder
    noise: Noise  # as it is run
    guidance_width: int  # of LCM's guidance embedding; 0 is none
    lock: AbstractContextManager[Any]  # re-entrant; held while any of the networks runs
    accelerator: tuple[str, float] | None = None  # the mode's own LoRA and its weight
    licence: str = "unknown"  # of all that was loaded
    revision: str = ""  # the commit that the model came from; "" is none, or not known
    weights: tuple[UsedWeights, ...] = ()  # files that all this came from; none of a pipeline's

    @property
    def process(self) -> NoiseProcess:
        """Return what the UNet was trained on."""
        return self.noise.process


def count_bytes(parts: Parts) -> int:
    """Return how many bytes the weights take."""
    modules = (parts.unet, parts.vae, *parts.text.encoders)
    return sum(tensor.nbytes for module in modules for tensor in (*module.parameters(), *module.buffers()))


def load_parts(model: Model, recipe: Recipe, key: EngineKey, placement: Placement) -> Parts:
    """Read a model and the mode's own weights, or those that `key.accelerator` puts in their place."""
    import_libraries()
    with _without_progress_bars():
        weights = choose_weights(model, recipe, key.file("accelerator"))
        attach = "" if weights is None else weights.attach
        source_and_revision = (model.source, model.revision)
        if weights is not None and attach == "checkpoint":
            source_and_revision = (weights.source, "")  # all of the model is its
        root = _model_root(*source_and_revision, model.architecture)
        blueprint = read_folder(root) if root.is_dir() else single_file.read_single_file(root)
        _require_expected(blueprint, model, root)
        if weights is not None and attach == "unet":
            blueprint = blueprint.with_part("unet", _unet_blueprint(weights, root, blueprint.parts["unet"]))
        blueprint = blueprint.with_part(
            "vae", _vae_blueprint(blueprint, root, placement.vae_dtype, model, key.file("vae"))
        )
        config.check_channels(blueprint.parts["unet"].config, blueprint.parts["vae"].config, str(root))
        embedded = bool(blueprint.parts["unet"].config.get("time_cond_proj_dim"))
        check_guidance_embedding(
            model, recipe, embedded, key.file("accelerator") if attach != "adapter" else ""
        )
        if blueprint.noise.fault:  # of a hub id, only the files tell
            raise CorruptModelError(f"{root} cannot be drawn with: {blueprint.noise.fault}")
        overrides = (key.options["prediction"], key.file("accelerator") != "")
        noise = noise_for(replace(model, noise=blueprint.noise), recipe, weights, *overrides)
        parts = _build_parts(blueprint, noise, placement, key.embeddings)
        parts = replace(parts, weights=weights_of_engine(model, weights, key, blueprint, root))
    if weights is not None and attach == "adapter":
        parts = _with_adapter(parts, weights, root, key.options["accelerator_weight"])
    return replace(
        parts,
        licence=licences.join_licences(
            mode_weights.licences_of_mode(model, recipe, weights, key.embeddings, key.file("vae")).values()
        ),
        revision=hub.revision_in_path(root),
    )


def _with_adapter(parts: Parts, weights: Weights, root: Path, weight: float | None) -> Parts:
    """Return the parts with the mode's own LoRA to be put on, at this weight or its usual one."""
    path, scale = _mode_lora(weights, root), weights.scale if weight is None else weight
    used = (*parts.weights, weights_of_adapter(weights.source, path, scale))
    return replace(parts, accelerator=(str(path), scale), weights=used)


def _build_parts(
    blueprint: ModelBlueprint, noise: Noise, placement: Placement, embeddings: Sequence[str]
) -> Parts:
    unet = build_network(blueprint.parts["unet"], placement, placement.dtype)
    encoders = tuple(
        build_network(blueprint.parts[name], placement, placement.dtype)
        for name in blueprint.architecture.encoders
    )
    autoencoder = build_network(blueprint.parts["vae"], placement, placement.vae_dtype)
    lock = threading.RLock()
    layout = load_architecture(blueprint.architecture).text
    text = TextEncoder(
        blueprint.tokenizers(), encoders, layout=layout, zero_empty=blueprint.zero_empty, lock=lock
    )
    textual_inversion.add_words(text, embeddings)  # before there are hooks on the encoders
    offload.apply_offload((*encoders, unet), autoencoder, placement)
    return Parts(
        unet=unet,
        vae=autoencoder,
        text=text,
        noise=noise,
        guidance_width=unet.config.time_cond_proj_dim or 0,
        lock=lock,
    )


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """Switch progress bars off while weights are read; a library does not print."""
    from transformers.utils import logging

    were_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if were_enabled:
            logging.enable_progress_bar()


def _require_expected(blueprint: ModelBlueprint, model: Model, root: Path) -> None:
    """Check that the files are of the architecture that was planned with: of a hub id, only they can tell."""
    if blueprint.architecture is not model.architecture:
        raise ModelError(
            f"model={model.name!r} is of {blueprint.architecture.title}, which could not be known "
            f"before {root} was here: type the same again"
        )


def verify_checksums(folder: Path) -> None:
    """Check every file that `SHA256SUMS` lists; `CorruptModelError` names the first that differs."""
    for line in (folder / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ", 1)
        path = folder / name
        if not path.is_file():
            raise CorruptModelError(f"{path} is missing: install fewstep again")
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                raise CorruptModelError(f"{path} is damaged (its sha256 differs): install fewstep again")
            remember(used_file(path), digest)


def _model_root(source: str, revision: str, architecture: ArchitectureInfo) -> Path:
    """Return where a model is on this machine; what is not in the hub's cache is downloaded."""
    path = existing_path(source)
    root = path if path is not None else hub.fetch_folder(source, assets.model_files(architecture), revision)
    if root == TINY:
        verify_checksums(TINY)
    return root


def _unet_blueprint(weights: Weights, root: Path, base: Blueprint) -> Blueprint:
    """Return the UNet that a mode puts in the place of the model's own."""
    file = unet_file(weights, root)
    if file is None and weights.file:
        file = hub.fetch_file(weights.source, weights.file)
    if file is not None:
        return single_file.read_unet_file(file, base.config)
    folder = unet_folder(weights.source, root) or hub.fetch_folder(weights.source, assets.NETWORK_FILES)
    return read_network(folder, ("UNet2DConditionModel",))


def _mode_lora(weights: Weights, root: Path) -> Path:
    path = adapter_file(weights, root)
    if path is None and weights.file:
        path = hub.fetch_file(weights.source, weights.file)
    return path or addons.fetch_addon(weights.source)


def _vae_blueprint(
    blueprint: ModelBlueprint, root: Path, dtype: torch.dtype, model: Model, source: str
) -> Blueprint:
    """Return the VAE that is given; or the model's own; in fp16, or where it has none, the corrected one."""
    model_vae = blueprint.parts.get("vae")
    if source:
        path = vaes.fetch_vae(source, model)
        vaes.check_latents(
            source,
            model,
            vaes.read_vae_config(path, model),
            vaes.usual_vae(model) if model_vae is None else model_vae.config,
        )
        return (
            read_network(path, vaes.VAE_CLASSES)
            if path.is_dir()
            else single_file.read_vae_file(path, model.architecture)
        )
    half = dtype == torch.float16
    replacement = vaes.replacement_vae(None if model_vae is None else model_vae.config, half, model)
    if replacement is not None:
        return read_network(replacement, ("AutoencoderKL",))
    assert model_vae is not None  # or `replacement_vae` had raised
    return model_vae
