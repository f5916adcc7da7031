"""Which VAE is loaded: a given one, or the model's own, in fp16 the corrected one. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePath
from types import MappingProxyType
from typing import Any

from fewstep.catalog import assets, hub
from fewstep.catalog.architectures import SDXL, architecture_of
from fewstep.catalog.hub import existing_path, is_hub_id
from fewstep.catalog.models import FP16_VAE, FP16_VAE_REVISION, Model
from fewstep.errors import CorruptModelError, ModelNotFoundError, RequestError
from fewstep.files import safetensors
from fewstep.files.config import LATENT_CHANNELS
from fewstep.files.identify import identify
from fewstep.files.safetensors import Header
from fewstep.files.tensor_names import split_prefix
from fewstep.files.untrusted import read_config

VAE_CLASSES = ("AutoencoderKL", "AutoencoderTiny")
FIRST_WEIGHTS = (
    "decoder.conv_in.weight",
    "decoder.layers.0.weight",
)  # of each: (width, channels of latents, 3, 3)
# How SDXL's VAE is told from others: whoever trained another one for other latents scales them otherwise.
SDXL_VAE: MappingProxyType[str, Any] = MappingProxyType(
    {"block_out_channels": [128, 256, 512, 512], "scaling_factor": SDXL.vae_scale}
)
DEFAULT_SCALE = 0.18215  # of latents, where a configuration does not say: AutoencoderKL's default, SD 1.x's


def usual_vae(model: Model) -> Mapping[str, Any]:
    """Return the configuration of the VAE that models of this architecture have."""
    return {**SDXL_VAE, "scaling_factor": model.architecture.vae_scale}


def fp16_safe(config: Mapping[str, Any]) -> bool:
    """Return whether a VAE's configuration says that it stays within fp16's range.

    AutoencoderTiny ends in a clamp; for others `force_upcast` is the field diffusers reads, true by default.
    """
    return config.get("_class_name") == "AutoencoderTiny" or not config.get("force_upcast", True)


def corrected_vae(config: Mapping[str, Any]) -> Path | None:
    """The corrected VAE from the hub's cache; None where it was never downloaded, or is for other latents."""
    if any(config.get(key) != value for key, value in SDXL_VAE.items()):
        return None
    files = [hub.cached_file(FP16_VAE, name, FP16_VAE_REVISION) for name in assets.VAE_FILES]
    return files[0].parent if files[0] is not None and files[1] is not None else None


def replacement_vae(config: Mapping[str, Any] | None, half: bool, model: Model) -> Path | None:
    """Return the VAE to take instead of a model's own, whose configuration is None where it has none.

    `half`: it will run in fp16. None: its own will do, or there is no other.
    """
    if config is not None:
        return corrected_vae(config) if half and not fp16_safe(config) else None
    corrected = corrected_vae(usual_vae(model))
    if corrected is None:
        advice = (
            "type fewstep models pull vae-fp16 (335 MB)" if model.architecture is SDXL else "give one as vae="
        )
        raise ModelNotFoundError(
            f"model={model.name!r} has no VAE, and {model.architecture.title}'s is not on "
            f"this machine: {advice}"
        )
    return corrected


# --- one that is given


def check_vae(vae: object, model: Model) -> None:
    """Check that it is a VAE for such a model; one that is on the hub alone is not looked at."""
    if not isinstance(vae, str | Path):
        raise RequestError(
            f"vae={vae!r:.120}: give 'tiny', a folder, a .safetensors file, or a hub id such as 'owner/name'"
        )
    name = str(vae)
    if name == "":
        return
    path = _local_vae(name, model)
    if path is not None:
        _require_fit(path, name, model)
    if path is not None or assets.vae_asset(name, model.family) is not None:
        check_latents(
            name, model, {} if path is None else read_vae_config(path, model), _model_vae_config(model)
        )


def fetch_vae(name: str, model: Model) -> Path:
    """Return a VAE's folder or file on this machine; what is not here is downloaded into the hub's cache."""
    asset = assets.vae_asset(name, model.family)
    path = _local_vae(name, model)
    if path is None and asset is not None:
        path = hub.fetch_folder(asset.repo, asset.files, asset.revision)
    if path is None:
        path = hub.fetch_folder(name, assets.NETWORK_FILES)
    _require_fit(path, name, model)
    return path


def read_vae_config(path: Path, model: Model) -> Mapping[str, Any]:
    """Return that of a VAE's folder; of a file, which has none, its class, with the model's latents."""
    if path.is_dir():
        return read_config(path / "config.json")
    index = FIRST_WEIGHTS.index(_first_weight(safetensors.read_header(path))[0])
    return {"_class_name": VAE_CLASSES[index], "scaling_factor": model.architecture.vae_scale}


def check_latents(
    name: str, model: Model, config: Mapping[str, Any], model_config: Mapping[str, Any]
) -> None:
    """Check that a VAE's latents are the model's, whose own VAE has `model_config`; `CorruptModelError`.

    An AutoencoderTiny takes latents as the UNet has them, and does not say whose: of SD 1.x's and SDXL's,
    which have the same shapes, only the one fewstep knows by name can be told.
    """
    asset, model_scale = (
        assets.vae_asset(name, model.family),
        model_config.get("scaling_factor", DEFAULT_SCALE),
    )
    if asset is not None and asset.family != "tiny":
        scale = architecture_of(asset.family).vae_scale
    elif config.get("_class_name") == "AutoencoderTiny":
        return
    else:
        scale = config.get("scaling_factor", DEFAULT_SCALE)
    if scale != model_scale:
        raise CorruptModelError(
            f"vae={name!r} is for latents of scaling_factor {scale!r:.40}, and model={model.name!r} has "
            f"{model_scale!r:.40}: give one made for it, or leave vae out"
        )


def _model_vae_config(model: Model) -> Mapping[str, Any]:
    """The configuration of the model's own VAE, where it is here; else the usual one's."""
    path = Path(model.source) / "vae" / "config.json"
    return read_config(path) if path.is_file() else usual_vae(model)


def _local_vae(name: str, model: Model) -> Path | None:
    """Return the folder or file of a VAE. None: on the hub."""
    asset = assets.vae_asset(name, model.family)
    if asset is not None:
        return _named_vae(asset, name, model)
    path = existing_path(name)
    if path is None:
        if is_hub_id(name):
            return None
        raise ModelNotFoundError(
            f"vae={name!r} is neither one of {', '.join(['tiny', *(a.name for a in assets.VAES)])}, nor a "
            "folder or file here, nor a hub id such as 'owner/name'"
        )
    if path.is_file():
        config = path.parent / "config.json"  # beside weights as diffusers writes them
        return path.parent if config.is_file() and path in safetensors.weight_files(path.parent) else path
    for folder in (path, path / "vae"):
        if (folder / "config.json").is_file():
            return folder
    raise ModelNotFoundError(f"vae={name!r} holds no VAE: config.json and safetensors are needed")


def _named_vae(asset: assets.Asset, name: str, model: Model) -> Path | None:
    """Return a named VAE: in the hub's cache, or inside the model's own folder."""
    if (asset.family == "tiny") != (model.family == "tiny"):
        raise RequestError(
            f"vae={name!r} does not fit model={model.name!r}: it was made for {asset.family}; type vae='tiny'"
        )
    if asset.repo:
        return hub.cached_folder(asset.repo, asset.files, asset.revision)
    folder = Path(model.source) / PurePath(asset.files[0]).parent
    if not folder.is_dir():
        raise ModelNotFoundError(
            f"vae={name!r}: model={model.name!r} has no folder {folder.name}; give that of one made for it, "
            "or leave vae out"
        )
    return folder


def _require_fit(path: Path, name: str, model: Model) -> None:
    """Check that it is a VAE of a class that is built, for latents of the model's shape."""
    paths = safetensors.weight_files(path) if path.is_dir() else [path]
    if not paths:
        raise CorruptModelError(f"vae={name!r}: {path} holds no weights: fewstep reads .safetensors alone")
    header = safetensors.read_header(paths[0])
    kind = identify(header)
    class_name = (
        read_config(path / "config.json").get("_class_name", VAE_CLASSES[0])
        if path.is_dir()
        else VAE_CLASSES[0]
    )
    if kind.what != "vae" or class_name not in VAE_CLASSES:
        described = repr(class_name) if kind.what == "vae" else kind.what
        raise CorruptModelError(
            f"vae={name!r} is of the kind {described:.80}: give an {' or '.join(VAE_CLASSES)}; "
            "fewstep inspect says "
            "what a file is for"
        )
    channels = _first_weight(header)[1]
    if channels != LATENT_CHANNELS:
        raise CorruptModelError(
            f"vae={name!r} is for latents of {channels} channels, and this model's have {LATENT_CHANNELS}: "
            "give one made for it"
        )
    if (kind.family == "tiny") != (model.family == "tiny"):
        owner = "the bundled model" if kind.family == "tiny" else "another base"
        raise CorruptModelError(
            f"vae={name!r} does not fit model={model.name!r}: it was made for {owner}; type vae='tiny', or "
            "give one made for it"
        )


def _first_weight(header: Header) -> tuple[str, int]:
    """The decoder's first weight: its name, without a prefix, and how many channels it reads."""
    shapes = {split_prefix(name).rest: entry.shape for name, entry in header.tensors.items()}
    first_weights = ((name, shapes[name][1]) for name in FIRST_WEIGHTS if len(shapes.get(name, ())) == 4)
    return next(first_weights, (FIRST_WEIGHTS[0], 0))
