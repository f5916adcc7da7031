"""What is known of a model before any of its weights are read."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path, PurePath
from types import MappingProxyType

from fewstep.catalog import architectures, hub
from fewstep.catalog.architectures import ArchitectureInfo
from fewstep.catalog.assets import (
    ASSETS,
    BASES,
    MODEL_FILES,
    SD_FILES,
    VAES,
    Asset,
    asset_for,
    pinned_revision,
)
from fewstep.catalog.hub import existing_path, is_hub_id
from fewstep.errors import CorruptModelError, ModelNotFoundError, RequestError
from fewstep.files import safetensors
from fewstep.files.config import trained_size
from fewstep.files.identify import UNKNOWN, FileKind, identify
from fewstep.files.noise import SILENT, Noise, noise_of_file, noise_of_scheduler
from fewstep.files.untrusted import read_config
from fewstep.noise_process import VariancePreserving

QUANTISED = "its weights are quantised (scaled fp8 or whole numbers): choose one in fp32, fp16 or bf16"
TINY = Path(__file__).parent.parent / "tiny"


@dataclass(frozen=True, kw_only=True)
class Model:
    """A base model: whose pictures."""

    name: str  # what the user typed
    family: str  # which recipes' weights fit it: tiny, sdxl, ssd-1b, sd-1.x, sd-2.x
    source: str  # a folder, or a hub id
    size: int  # pixels: the side it was trained at
    default_mode: str
    licence: str
    local: bool = False  # a folder of the user's
    carries: str = ""  # the mode that its own UNet was distilled for, where that can be seen
    revision: str = ""  # of a hub id, 40 hex digits; "" is the newest
    noise: Noise = SILENT  # the process that its files say
    doubts: tuple[str, ...] = ()  # what every plan should say of it

    @property
    def architecture(self) -> ArchitectureInfo:
        """Return the architecture of its family."""
        return architectures.architecture_of(self.family)

    @property
    def foreign(self) -> bool:
        """Return whether it is somebody's own, none that the modes' whole checkpoints and UNets stand for."""
        return self.local or (self.family != "tiny" and self.source not in _BASES)


def _named_model(asset: Asset, name: str) -> Model:
    """A model that fewstep has a name for."""
    return Model(
        name=name, family=asset.family, source=asset.repo or str(TINY), revision=asset.revision,
        size=asset.size, default_mode="lcm" if asset.name == "tiny" else asset.modes[0],
        licence=asset.licence, noise=_NAMED_NOISE[asset.family == "tiny"],
    )  # fmt: skip


# The scheduler_config.json of the bundled model; and those of SDXL base, SSD-1B and SD 1.5, which agree.
_NAMED_NOISE = {
    True: Noise(process=VariancePreserving("v_prediction"), source="EulerDiscreteScheduler's configuration",
                spacing="trailing"),
    False: Noise(source="its scheduler's configuration", spacing="leading"),
}  # fmt: skip
ALIASES: MappingProxyType[str, Model] = MappingProxyType(
    {a.name: _named_model(a, a.name) for a in BASES if a.repo}
)
_BASES = frozenset(asset.repo for asset in BASES)
FP16_VAE, FP16_VAE_REVISION = VAES[0].repo, VAES[0].revision


def describe_model(model: str | Path) -> Model:
    """What a model's name means: "tiny", an alias, a folder, a file or a hub id. Loads no weights."""
    aliases = ", ".join(["tiny", *ALIASES])
    if not isinstance(model, str | Path) or model == "":
        raise RequestError(
            f"model={model!r}: give one of {aliases}, a folder, a .safetensors file, or a hub id such as "
            "'owner/name'"
        )
    name = str(model)
    if name == "tiny":
        return _named_model(BASES[0], name)
    if name in ALIASES:
        return ALIASES[name]
    path = existing_path(name)
    if path is not None:
        return _folder_model(name, path) if path.is_dir() else _file_model(name, path)
    if name.endswith(".safetensors") or name.startswith((".", "~", os.sep)):
        raise ModelNotFoundError(
            f"model={name!r}: there is no such file or folder; give one that is there, one of {aliases}, or "
            "a hub id such as 'owner/name'"
        )
    if is_hub_id(name):
        asset = asset_for(name)
        if asset is not None and asset.kind != "vae" and asset.files in (MODEL_FILES, SD_FILES):
            return _named_model(asset, name)
        return _hub_model(name)
    raise ModelNotFoundError(
        f"model={name!r} is neither an alias ({aliases}), nor a folder or file here, "
        f"nor a hub id such as 'owner/name'{_did_you_mean(name)}"
    )


def _did_you_mean(name: str) -> str:
    """A mode's name for a model's, or a name mistyped; "" where nothing is near."""
    bare = name.lower().removeprefix("sdxl-")
    if bare in ASSETS and ASSETS[bare].modes and bare not in ALIASES:
        return f"; did you mean model='sdxl', mode={ASSETS[bare].modes[0]!r}?"
    near = get_close_matches(name, ["tiny", *ALIASES], n=1)
    return f"; did you mean model={near[0]!r}?" if near else ""


def bundled_folder(asset: Asset) -> Path:
    """Return the folder of what comes with fewstep."""
    return TINY / PurePath(asset.files[0]).parent if asset.files else TINY


def _folder_model(name: str, folder: Path, source: str = "") -> Model:
    """Return the model of a diffusers folder; `source` is the hub id whose copy it is."""
    index, unet = read_config(folder / "model_index.json"), read_config(folder / "unet" / "config.json")
    architecture = architectures.architecture_of_folder(index)
    family = architectures.family_of_config(architecture, unet)
    if not family:
        raise CorruptModelError(
            f"model={name!r} is of no architecture that fewstep draws with: it has "
            f"{len(architecture.encoders)} text encoder(s) and a UNet with addition_embed_type="
            f"{unet.get('addition_embed_type')!r:.40}; SDXL has two and 'text_time', "
            "SD 1.x and 2.x one and None"
        )
    carries = "lcm" if unet.get("time_cond_proj_dim") else ""
    noise = noise_of_folder(folder)
    if not source and any(safetensors.weight_files(folder / part) for part in architecture.networks):
        kind = identify(safetensors.read_any_header(folder))
        if kind.what == "checkpoint":  # of what is missing, loading says which
            _require_drawable(name, kind, noise, folder=True)
    return Model(
        name=name, family=family, source=source or str(folder), size=trained_size(unet, f"model={name!r}"),
        default_mode=carries or "base", licence="unknown", local=not source, carries=carries,
        revision=hub.revision_in_path(folder) if source else "", noise=noise,
    )  # fmt: skip


def _hub_model(name: str) -> Model:
    """Return the model of a hub id without a name here: what its copy here says, else one like SDXL."""
    revision = pinned_revision(name)
    config = hub.cached_file(name, "unet/config.json", revision)
    if config is not None and hub.cached_file(name, "model_index.json", revision) is not None:
        return replace(_folder_model(name, config.parent.parent, name), revision=revision)
    return Model(
        name=name, family="sdxl", source=name, revision=revision, size=1024, default_mode="base",
        licence="unknown",
    )  # fmt: skip


def _file_model(name: str, path: Path) -> Model:
    """Return the model of one .safetensors file in the original layout."""
    header = safetensors.read_header(path)
    kind, noise = identify(header), noise_of_file(header)
    _require_drawable(name, kind, noise, folder=False)
    carries = "lcm" if kind.guidance_width else ""
    family = (
        kind.family
        if kind.family in architectures.DRAWABLE
        else architectures.family_of_networks(kind.targets)
    )
    return Model(
        name=name, family=family, source=str(path), size=architectures.architecture_of(family).side,
        default_mode=carries or "base", licence="unknown", local=True, carries=carries, noise=noise,
    )  # fmt: skip


def noise_of_folder(folder: Path) -> Noise:
    """Return the noise process that a diffusers folder's scheduler says; one without any says nothing."""
    path = folder / "scheduler" / "scheduler_config.json"
    return noise_of_scheduler(read_config(path), str(folder)) if path.is_file() else SILENT


def noise_of_header(header: safetensors.Header) -> Noise:
    """Return the noise process that a file, or the folder that was read as one, says."""
    if header.path.is_dir():
        return noise_of_folder(header.path)
    return noise_of_file(header) if header.path.suffix == ".safetensors" else SILENT


def _require_drawable(name: str, kind: FileKind, noise: Noise, *, folder: bool) -> None:
    """Check that this is a whole model that can be drawn with; raises `CorruptModelError`."""
    fault = obstacle(kind, noise, folder=folder)
    if kind.what != "checkpoint" or fault:
        what = " ".join(word for word in (kind.family, kind.layout, kind.what) if word not in ("", UNKNOWN))
        raise CorruptModelError(
            f"model={name!r} is {what or 'an unknown file'}, not a whole model that fewstep draws with"
            f"{f': {fault}' if fault else ''}; type fewstep inspect {name} to see what it is for"
        )


def obstacle(kind: FileKind, noise: Noise, *, folder: bool) -> str:
    """Return why a checkpoint cannot be a model=, in a few words; "" is fine.

    The one judge of `inspect`, `plan` and loading.
    """
    if kind.family not in architectures.DRAWABLE and kind.family != UNKNOWN:
        return f"fewstep does not draw with {architectures.title_of(kind.family)}"
    if kind.quantised:
        return QUANTISED
    family = architectures.family_of_networks(kind.targets) if kind.family == UNKNOWN else kind.family
    needed = architectures.architecture_of(family).encoders
    missing = [part for part in needed if part not in kind.targets]
    if missing:
        return f"it holds no {' and no '.join(missing)}: choose one that holds all"
    if kind.layout == "diffusers" and not folder:
        return "its parts have diffusers' names: fewstep reads those from a diffusers folder"
    return noise.fault
