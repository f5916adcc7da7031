"""Adapter files, as far as names and headers tell: which file is meant, and is it one? No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fewstep.errors import CorruptModelError, ModelNotFoundError
from fewstep.models import assets, header, hub, kinds
from fewstep.models.catalog import Model, bundled, is_hub_id, local
from fewstep.models.header import Header, shown
from fewstep.models.kinds import Kind

(LORA,) = assets.LORA
FILES = (LORA, "adapter_model.safetensors")  # diffusers' and PEFT's names for a LoRA in a folder
# A textual inversion's tensors: as web UIs and diffusers name them, and as diffusers' trainer did first.
WORDS = (("clip_l", "clip_g"), ("text_encoders_0", "text_encoders_1"))
MERGED = ("lora", "locon")  # LoCon is LoRA on convolutions
# Families whose UNets share names and widths; what else of a file fits is seen when it is put on.
KIN = frozenset({"sdxl", "sdxl-inpaint", "ssd-1b", "vega"})


def check(loras: Sequence[tuple[str, float]], model: Model) -> None:
    """Is each there, and a LoRA for such a model? What is on the hub alone is looked at when it is here."""
    for source, _ in loras:
        path = file(source)
        if path is not None:
            found = header.read(path)
            _require_family(found, require_lora(found), model.family)


def check_embeddings(sources: Sequence[str], model: Model) -> None:
    """The same of textual inversions."""
    for source in sources:
        path = file(source, "embeddings")
        if path is not None:
            found = header.read(path)
            _require_family(found, kinds.kind(found), model.family)
            require_word(found)


def file(source: str, name: str = "loras") -> Path | None:
    """The adapter that is meant: a name's, itself, or the one in a folder. None: on the hub.

    `name` is the argument that it was given as.
    """
    known = assets.style(source) if name == "loras" else None
    here = local(source) if known is None else bundled(known)
    if here is None:
        if is_hub_id(source):
            return None
        raise ModelNotFoundError(
            f"{name} has {source!r}: neither a file or folder here, nor a hub id such as 'owner/name'"
        )
    if not here.is_dir():
        return here
    named = [here / each for each in _usual(name) if (here / each).is_file()]
    found = named or sorted(here.glob("*.safetensors"))
    if not named and len(found) != 1:
        none = f"no {' or '.join(_usual(name))}, and " if _usual(name) else ""
        raise ModelNotFoundError(
            f"{name} has {source!r}: {here} holds {none}{len(found)} {'other ' if none else ''}.safetensors "
            "files; give the one that is meant"
        )
    return found[0]


def fetched(source: str, name: str = "loras") -> Path:
    """The same of a hub repository: from its cache, or downloaded into it."""
    return hub.one_of(source, _usual(name))


def _usual(name: str) -> Sequence[str]:
    """What the file is called in a folder; a learned word has its own name."""
    return () if name == "embeddings" else FILES


def require_lora(found: Header) -> Kind:
    """What it is; `CorruptModelError` for what is none, or of a variety that cannot be merged."""
    kind = kinds.kind(found)
    if kind.what != "lora":
        known = f"is a {kind.what}" if kind.what != "unknown" else "holds no adapter's tensors"
        raise CorruptModelError(f"{shown(found.path)} {known}: give a LoRA's .safetensors file")
    if kind.variety not in MERGED:
        raise CorruptModelError(
            f"{shown(found.path)} is a {kind.variety} adapter, which cannot be merged: give a LoRA or LoCon"
        )
    return kind


def require_word(found: Header) -> tuple[str, str]:
    """The tensors of a textual inversion for SDXL's two encoders."""
    for names in WORDS:
        if found.tensors.keys() == set(names):
            return names
    kind = kinds.kind(found)
    if kind.what == "textual inversion":
        family = "another base" if kind.family == "unknown" else kind.family
        what = f"is a textual inversion for {family}, without a tensor for each of SDXL's text encoders"
    else:
        what = "is no textual inversion"
    raise CorruptModelError(f"{shown(found.path)} {what}: give a .safetensors file with clip_l and clip_g")


def _require_family(found: Header, kind: Kind, family: str) -> None:
    """A LoRA fits no other base than its own; that of unknown ones is seen when they are put on."""
    own = kind.family
    fitting = KIN if family in KIN else {family}
    if own != "unknown" and own not in fitting:
        raise CorruptModelError(
            f"{shown(found.path)} does not fit this model: it was made for {own}, and the model is {family}"
        )
