"""What is known of a model before any of its weights are read."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path, PurePath
from types import MappingProxyType
from typing import Any

from fewstep.catalog.assets import ASSETS, BASES, MODEL_FILES, VAES, Asset, asset_for, pinned_revision
from fewstep.errors import CorruptModelError, ModelNotFoundError, RequestError
from fewstep.files import safetensors
from fewstep.files.config import trained_size
from fewstep.files.identify import CONTEXT_FAMILIES, UNKNOWN, identify
from fewstep.files.untrusted import read_config

TINY = Path(__file__).parent.parent / "tiny"


@dataclass(frozen=True, kw_only=True)
class Model:
    """A base model: whose pictures."""

    name: str  # what the user typed
    family: str  # which recipes' weights fit it: tiny, sdxl, ssd-1b
    source: str  # a folder, or a hub id
    size: int  # pixels: the side it was trained at
    default_mode: str
    licence: str
    local: bool = False  # a folder of the user's
    carries: str = ""  # the mode that its own UNet was distilled for, where that can be seen
    revision: str = ""  # of a hub id, 40 hex digits; "" is the newest

    @property
    def foreign(self) -> bool:
        """Is it somebody's own, and none that the modes' whole checkpoints and UNets stand for?"""
        return self.local or (self.family != "tiny" and self.source not in _BASES)


def _named_model(asset: Asset, name: str) -> Model:
    """A model that fewstep has a name for."""
    return Model(
        name=name, family=asset.family, source=asset.repo or str(TINY), revision=asset.revision,
        size=asset.size, default_mode="lcm" if asset.name == "tiny" else asset.modes[0],
        licence=asset.licence,
    )  # fmt: skip


ALIASES: MappingProxyType[str, Model] = MappingProxyType(
    {a.name: _named_model(a, a.name) for a in BASES if a.repo}
)
_BASES = frozenset(asset.repo for asset in BASES)
FP16_VAE, FP16_VAE_REVISION = VAES[0].repo, VAES[0].revision
# Families with text encoders and a UNet, but others than SDXL's.
OTHER_FAMILIES = ("sd-1.x", "sd-2.x", "sdxl-refiner", "sdxl-inpaint", "kolors", "flux", "sd3")
_HUB_ID = re.compile(r"(?!.{97})[\w-][\w.-]*/[\w.-]*[\w-]", re.ASCII)  # the hub's own rule, nearly


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
    here = local_path(name)
    if here is not None:
        return _folder_model(name, here) if here.is_dir() else _file_model(name, here)
    if name.endswith(".safetensors") or name.startswith((".", "~", os.sep)):
        raise ModelNotFoundError(
            f"model={name!r}: there is no such file or folder; give one that is there, one of {aliases}, or "
            "a hub id such as 'owner/name'"
        )
    if is_hub_id(name):
        known = asset_for(name)
        if known is not None and known.files == MODEL_FILES:
            return _named_model(known, name)
        return Model(
            name=name, family="sdxl", source=name, revision=pinned_revision(name), size=1024, default_mode="base",
            licence="unknown",
        )  # fmt: skip
    raise ModelNotFoundError(
        f"model={name!r} is neither an alias ({aliases}), nor a folder or file here, "
        f"nor a hub id such as 'owner/name'{_suggestion(name)}"
    )


def _suggestion(name: str) -> str:
    """A mode's name for a model's, or a name mistyped; "" where nothing is near."""
    bare = name.lower().removeprefix("sdxl-")
    if bare in ASSETS and ASSETS[bare].modes and bare not in ALIASES:
        return f"; did you mean model='sdxl', mode={ASSETS[bare].modes[0]!r}?"
    near = get_close_matches(name, ["tiny", *ALIASES], n=1)
    return f"; did you mean model={near[0]!r}?" if near else ""


def local_path(name: str) -> Path | None:
    """The file or folder of this name, "~" expanded; None where there is none."""
    path = os.path.expanduser(name)
    return Path(path) if os.path.exists(path) else None  # unlike Path's, these never raise


def is_hub_id(name: str) -> bool:
    """Whether it has the form of a hub id, 'owner/name'."""
    return _HUB_ID.fullmatch(name) is not None


def _folder_model(name: str, folder: Path) -> Model:
    """A diffusers folder of SDXL's architecture."""
    index, unet = read_config(folder / "model_index.json"), read_config(folder / "unet" / "config.json")
    if "text_encoder_2" not in index or unet.get("addition_embed_type") != "text_time":
        raise CorruptModelError(
            f"model={name!r} is not of SDXL's architecture: it needs two text encoders and a UNet with "
            'addition_embed_type "text_time"'
        )
    carries = "lcm" if unet.get("time_cond_proj_dim") else ""
    return Model(
        name=name, family=_unet_family(unet), source=str(folder), size=trained_size(unet, f"model={name!r}"),
        default_mode=carries or "base", licence="unknown", local=True, carries=carries,
    )  # fmt: skip


def bundled_folder(asset: Asset) -> Path:
    """The folder of what comes with fewstep."""
    return TINY / PurePath(asset.files[0]).parent if asset.files else TINY


def _unet_family(unet: Mapping[str, Any]) -> str:
    """Of a UNet's configuration: SSD-1B's has 4 blocks where SDXL's has 10, and none in its middle."""
    depths, middle = unet.get("transformer_layers_per_block"), unet.get("mid_block_type")
    width = unet.get("cross_attention_dim")
    if isinstance(width, int) and CONTEXT_FAMILIES.get(width) == "tiny":
        return "tiny"
    small = isinstance(depths, list) and depths[-1:] == [4]
    return "ssd-1b" if small and middle == "UNetMidBlock2D" else "sdxl"


def _file_model(name: str, path: Path) -> Model:
    """One .safetensors file of SDXL's architecture, in the original layout."""
    known = identify(safetensors.read_header(path))
    whole = known.what == "checkpoint" and known.layout == "original"
    if not whole or known.family in OTHER_FAMILIES or "text_encoder_2" not in known.targets:
        what = " ".join(
            word for word in (known.family, known.layout, known.what) if word not in ("", UNKNOWN)
        )
        raise CorruptModelError(
            f"model={name!r} is {what or 'an unknown file'}, not a whole SDXL model in its original layout: "
            f"type fewstep inspect {name} to see what it is for"
        )
    carries = "lcm" if known.guidance_width else ""
    return Model(
        name=name, family="ssd-1b" if known.family == "ssd-1b" else "sdxl", source=str(path), size=1024,
        default_mode=carries or "base", licence="unknown", local=True, carries=carries,
    )  # fmt: skip
