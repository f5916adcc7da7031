"""What is known of a model before any of its weights are read."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fewstep.errors import CorruptModelError, ModelNotFoundError, RequestError, ran_out

TINY = Path(__file__).parent / "tiny"


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


# Sizes and licences from the model cards.
HUB: MappingProxyType[str, Model] = MappingProxyType(
    {
        "sdxl": Model(
            name="sdxl", family="sdxl", source="stabilityai/stable-diffusion-xl-base-1.0", size=1024,
            default_mode="base", licence="openrail++",
        ),
        "ssd-1b": Model(
            name="ssd-1b", family="ssd-1b", source="segmind/SSD-1B", size=1024,
            default_mode="base", licence="Apache-2.0",
        ),
    }
)  # fmt: skip
# SDXL's VAE with weights scaled to stay within fp16's range (its model card); MIT.
FP16_VAE = "madebyollin/sdxl-vae-fp16-fix"
FP16_VAE_REVISION = "207b116dae70ace3637169f1ddd2434b91b3a8cd"
_HUB_ID = re.compile(r"(?!.{97})[\w-][\w.-]*/[\w.-]*[\w-]", re.ASCII)  # the hub's own rule, nearly


def describe(model: str | Path) -> Model:
    """What a model's name means: "tiny", an alias, a diffusers folder or a hub id. Loads no weights."""
    aliases = ", ".join(["tiny", *HUB])
    if not isinstance(model, str | Path) or model == "":
        raise RequestError(
            f"model={model!r}: give one of {aliases}, a folder, or a hub id such as 'owner/name'"
        )
    name = str(model)
    if name == "tiny":
        return Model(
            name="tiny", family="tiny", source=str(TINY), size=128, default_mode="lcm", licence="Apache-2.0"
        )
    if name in HUB:
        return HUB[name]
    folder = local(name)
    if folder is not None and folder.is_dir():
        return _folder(name, folder)
    if is_hub_id(name):
        return Model(name=name, family="sdxl", source=name, size=1024, default_mode="base", licence="unknown")
    raise ModelNotFoundError(
        f"model={name!r} is neither an alias ({aliases}), nor a folder here, "
        "nor a hub id such as 'owner/name'"
    )


def local(name: str) -> Path | None:
    """The file or folder of this name, "~" expanded; None where there is none."""
    path = os.path.expanduser(name)
    return Path(path) if os.path.exists(path) else None  # unlike Path's, these never raise


def is_hub_id(name: str) -> bool:
    """Whether it has the form of a hub id, 'owner/name'."""
    return _HUB_ID.fullmatch(name) is not None


def _folder(name: str, folder: Path) -> Model:
    """A diffusers folder of SDXL's architecture."""
    index, unet = read_json(folder / "model_index.json"), read_json(folder / "unet" / "config.json")
    if "text_encoder_2" not in index or unet.get("addition_embed_type") != "text_time":
        raise CorruptModelError(
            f"model={name!r} is not of SDXL's architecture: it needs two text encoders and a UNet with "
            'addition_embed_type "text_time"'
        )
    carries = "lcm" if unet.get("time_cond_proj_dim") else ""
    return Model(
        name=name, family="sdxl", source=str(folder), size=8 * int(unet.get("sample_size") or 128),
        default_mode=carries or "base", licence="unknown", local=True, carries=carries,
    )  # fmt: skip


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever a foreign reader raises here means that `path` is damaged, or is something else."""
    try:
        yield
    except Exception as error:  # tokenizers raises no narrower one
        if ran_out(error):
            raise
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise CorruptModelError(f"{path} cannot be read, or is not what it should be: {first}") from error


def read_json(path: Path) -> dict[str, Any]:
    """A configuration file of a model; `CorruptModelError` where it is missing or broken."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CorruptModelError(f"{path} is missing: this is not a complete diffusers folder") from None
    except ValueError as error:
        raise CorruptModelError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise CorruptModelError(f"{path} should hold a JSON object")
    return content
