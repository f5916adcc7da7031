"""What is known of a model before any of its weights are read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fewstep.errors import CorruptModelError, ModelNotFoundError

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


def describe(name: str) -> Model:
    """What `name` means: "tiny", an alias, a diffusers folder or a hub id. Loads no weights."""
    if name == "tiny":
        return Model(
            name="tiny", family="tiny", source=str(TINY), size=128, default_mode="lcm", licence="Apache-2.0"
        )
    if name in HUB:
        return HUB[name]
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _folder(name, folder)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return Model(name=name, family="sdxl", source=name, size=1024, default_mode="base", licence="unknown")
    raise ModelNotFoundError(
        f"model={name!r} is neither an alias ({', '.join(['tiny', *HUB])}), nor a folder here, "
        "nor a hub id such as 'owner/name'"
    )


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
    except MemoryError:
        raise
    except Exception as error:  # tokenizers raises no narrower one
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
