"""What a model file is, and which modes it serves: from headers and names alone, without torch."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

from fewstep.catalog import hub
from fewstep.catalog.addons import MERGEABLE, SDXL_KIN, VARIETY_NAMES, bundled_words
from fewstep.catalog.architectures import DRAWABLE
from fewstep.catalog.models import QUANTISED, noise_of_header, obstacle
from fewstep.errors import BackendError, RequestError
from fewstep.files import identify
from fewstep.files.identify import FAMILY_TITLES, METADATA_KEYS, UNKNOWN, FileKind
from fewstep.files.noise import SILENT, Noise
from fewstep.files.safetensors import LORA_NAME, WEIGHT_STEMS, Header, read_any_header
from fewstep.files.untrusted import printable_path
from fewstep.modes import find_recipe, mode_names
from fewstep.recipe import Recipe

LORA_FITS = {*DRAWABLE, *SDXL_KIN, "unknown"}  # of LoRAs
# Kinds that draw only beside a model.
OTHER_KINDS: MappingProxyType[str, str] = MappingProxyType(
    {
        "vae": "a VAE on its own: it draws with the UNet and text encoders of a model",
        "text_encoder": "a text encoder on its own: it draws with the UNet and VAE of a model",
        "textual inversion": "a learned word (textual inversion): give it as embeddings=, and write its name",
        "controlnet": "a ControlNet: give it, a picture and a scale as control=",
        "ip-adapter": "an IP-Adapter: give it, a picture and a scale as reference=",
        "unknown": "its names and shapes fit no kind of model that fewstep knows",
    }
)
ATTACHED_AS = {"checkpoint": "checkpoint", "unet": "unet", "adapter": "lora"}  # a recipe's word → a kind's
AS_IT_IS, BESIDE = "it runs as it is", "the mode's LoRA goes beside its UNet"
AT_WORD = "if it was distilled so: nothing in it says that"
STYLE, OWN = "as loras=, beside what the mode runs", "it has the name of the mode's own file"
# Names that say nothing: every trainer uses them.
_GENERIC = (LORA_NAME, *(f"{stem}{kind}.safetensors" for stem in WEIGHT_STEMS for kind in ("", ".fp16")))
_NAMES = ("modelspec.title", "ss_output_name", *METADATA_KEYS)  # metadata that may name a mode
_SHOWN = (40, 200)  # entries of metadata, and characters of each, that are shown


@dataclass(frozen=True, kw_only=True)
class Inspection(FileKind):
    """What a file or folder is, and how to draw with it."""

    path: Path
    bytes: int
    parameters: int
    dtypes: tuple[str, ...]
    metadata: Mapping[str, str]  # cut for display
    modes: Mapping[str, str]  # mode → why it fits
    mode: str  # what mode=None should take; "" where it must be named
    noise: str  # the noise process that it was trained on, and what says so; "" of what is no UNet
    doubt: str  # where its name speaks of a mode that nothing proves, what to type for it
    notes: tuple[str, ...]  # what else to know, in sentences

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data, ready for JSON."""
        field_values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: _as_plain_data(value) for name, value in field_values.items()}

    def __str__(self) -> str:
        """Return a few lines for the command line."""
        return "\n".join(_text_lines(self))


def inspect(path: str | Path) -> Inspection:
    """Look at a model file, an index of shards or a diffusers folder; reads headers only."""
    if not isinstance(path, str | Path) or path == "":
        raise RequestError(f"path={path!r}: give a .safetensors file, or a folder")
    header = read_any_header(Path(os.path.expanduser(path)))
    kind = identify.identify(header)
    recipes = dict(_sound_recipes())
    own_modes = [mode for mode, recipe in recipes.items() if _is_own_file(recipe, kind, header.path)]
    noise = noise_of_header(header) if kind.what in ("checkpoint", "unet") else SILENT
    obstacle = _obstacle_as_list(kind, noise, header.path)
    reasons = {mode: _why_it_fits(recipe, kind, mode in own_modes) for mode, recipe in recipes.items()}
    modes = {mode: reason for mode, reason in reasons.items() if reason and not obstacle}
    mode, doubt, must_name = _proven_mode(header, kind, {mode: recipes[mode] for mode in modes}, own_modes)
    entries, length = _SHOWN
    return Inspection(
        **vars(kind),
        path=header.path,
        bytes=header.bytes,
        parameters=header.parameters,
        dtypes=tuple(sorted({entry.dtype for entry in header.tensors.values()})),
        metadata={
            _printable(k): _printable(v[:length]) for k, v in sorted(header.metadata.items())[:entries]
        },
        modes=modes,
        mode=mode,
        noise=_noise_in_words(kind, noise),
        doubt=doubt,
        notes=(*_notes(kind, header), *noise.notes, *obstacle, *filter(None, (doubt, must_name))),
    )


def _sound_recipes() -> Iterator[tuple[str, Recipe]]:
    for mode in mode_names():
        try:
            yield mode, find_recipe(mode)
        except BackendError:  # a broken plug-in, which says so when it is asked for
            continue


def _is_own_file(recipe: Recipe, kind: FileKind, path: Path) -> bool:
    """Return whether it is a mode's own file, by its name; by its folder's where the name is a common one."""
    weights = recipe.weights.get(kind.family)
    if weights is None or ATTACHED_AS[weights.attach] != kind.what:
        return False
    if path.name in _GENERIC or path.is_dir():
        owner = {weights.source.split("/")[-1], "models--" + weights.source.replace("/", "--")} - {""}
        return not owner.isdisjoint(path.parts)
    if path.name in weights.names:
        return True
    pattern = re.escape(PurePosixPath(weights.file).name).replace(r"\{steps\}", r"\d{1,3}")
    return re.fullmatch(pattern, path.name) is not None


def _why_it_fits(recipe: Recipe, kind: FileKind, is_own: bool) -> str:
    """Return why a mode fits; "" where it does not."""
    attach = recipe.weights[kind.family].attach if kind.family in recipe.weights else ""
    if kind.what == "lora":
        can_be_put_on = kind.variety in MERGEABLE and kind.family in LORA_FITS
        return (f"as accelerator=: {OWN}" if is_own else STYLE) if can_be_put_on else ""
    embedded = recipe.guidance.kind == "embedded"
    if kind.what not in ("checkpoint", "unet") or kind.family not in DRAWABLE:
        return ""
    if embedded or kind.guidance_width:
        is_matching = embedded and kind.guidance_width
        return f"its UNet has a guidance embedding, {kind.guidance_width} wide" if is_matching else ""
    if is_own or not recipe.weights:
        return OWN if is_own else AS_IT_IS
    return {"adapter": BESIDE, "checkpoint": AT_WORD, kind.what: AT_WORD}.get(attach, "")


def _proven_mode(
    header: Header, kind: FileKind, fitting: Mapping[str, Recipe], own_modes: list[str]
) -> tuple[str, str, str]:
    """Return what mode=None should take ("" is none), a doubt of it, and what to type to name the mode."""
    own_modes = [mode for mode in own_modes if mode in fitting]
    if len(own_modes) == 1 or kind.what == "lora":
        return (own_modes[0] if len(own_modes) == 1 else ""), "", ""
    if kind.guidance_width:
        return ("lcm" if "lcm" in fitting else next(iter(fitting), "")), "", ""
    if own_modes:
        return "", "", f"{OWN} in several: name the mode, one of {', '.join(own_modes)}"
    default, word = ("base" if "base" in fitting else ""), _mode_in_name(header) if fitting else ""
    if not word:
        return default, "", ""
    choice = [mode for mode, recipe in fitting.items() if _may_be(recipe, kind, word)]
    return default, _doubt_of_word("its name or metadata", word, choice), ""


def _doubt_of_word(source: str, word: str, choice: Sequence[str]) -> str:
    """Return what to type where a name speaks of a mode: names prove nothing, so it is run as the base is."""
    alternatives = " or ".join(f"mode={mode!r}" for mode in choice if mode != "base") or "another mode"
    return (
        f"{source} says {word}, which proves nothing: it is run in mode 'base' unless you type {alternatives}"
    )


def _obstacle_as_list(kind: FileKind, noise: Noise, path: Path) -> list[str]:
    """Return why a checkpoint cannot be a model=, in a sentence; [] is fine."""
    if kind.what == "unet":
        fault = QUANTISED if kind.quantised else noise.fault
    else:
        fault = obstacle(kind, noise, folder=path.is_dir()) if kind.what == "checkpoint" else ""
    return [fault] if fault and kind.family in (*DRAWABLE, UNKNOWN) else []


def _may_be(recipe: Recipe, kind: FileKind, word: str) -> bool:
    """Return whether a model that speaks of `word` may be for this mode; an adapter would distil it again."""
    weights = recipe.weights.get(kind.family)
    if weights is None:
        return True
    name_fits = recipe.mode.startswith(word) or not weights.source  # "": for whatever has few steps merged in
    return name_fits and weights.attach != "adapter"


def _mode_in_name(header: Header) -> str:
    """Return the mode that a file's name or metadata speaks of: turbo, lightning, lcm …"""
    path = header.path.parent if header.path.name in _GENERIC else header.path
    return mode_in_text(" ".join([path.stem, *(header.metadata.get(key, "") for key in _NAMES)]))


def name_doubt(name: str) -> str:
    """Return what to say of a model whose name speaks of a mode, in a sentence; "" for none."""
    word, checkpoint = mode_in_text(name), FileKind(what="checkpoint", family="sdxl")
    fitting = {mode: recipe for mode, recipe in _sound_recipes() if _why_it_fits(recipe, checkpoint, False)}
    choice = [mode for mode, recipe in fitting.items() if _may_be(recipe, checkpoint, word)]
    return _doubt_of_word("its name", word, choice) if word else ""


def mode_in_text(text: str) -> str:
    """Return the mode that a text speaks of, as a word of its own; "" for none."""
    words = {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", text)}
    for name in dict.fromkeys(mode.split("-")[0].rstrip("0123456789") for mode in mode_names()):
        if name != "base" and name in words:
            return name
    return ""


def _noise_in_words(kind: FileKind, noise: Noise) -> str:
    """Return a noise process, and what says so."""
    if kind.what not in ("checkpoint", "unet"):
        return ""
    return f"{noise.title} ({noise.source or 'nothing in it says otherwise'})"


def _notes(kind: FileKind, header: Header) -> Iterator[str]:
    title = FAMILY_TITLES[kind.family]
    if kind.what in OTHER_KINDS:
        made_for = f"; it is for {title}" if kind.family != "unknown" else ""
        yield (
            OTHER_KINDS[kind.what]
            + made_for
            + ("" if kind.family in LORA_FITS else ", for which fewstep has no model")
        )
    elif kind.what == "lora":
        yield from _lora_notes(kind, title)
        words = bundled_words(header)
        if words:
            yield f"it bundles the words {', '.join(map(repr, words))}: give it as embeddings= too"
    elif kind.family in ("sdxl-inpaint", "sd-inpaint"):
        yield "its UNet has 9 input channels, for inpainting: fewstep inpaints with any model that has 4"
    elif kind.family not in DRAWABLE:
        yield (
            f"a {kind.what} of {title}; "
            "fewstep draws with SDXL, SSD-1B and SD 1.x and 2.x: choose one of these"
        )
    elif kind.what == "unet":
        yield "a UNet on its own: give it as accelerator=, over a whole model"
    elif "vae" not in kind.targets:
        yield "it holds no VAE: the usual one takes its place"


def _lora_notes(kind: FileKind, title: str) -> Iterator[str]:
    if kind.family == "unknown":
        yield "a LoRA whose base cannot be told: it changes too little of it"
    elif kind.family not in LORA_FITS:
        yield f"a LoRA for {title} fits no model that fewstep draws with"
    if kind.variety not in MERGEABLE:
        kinds = ", ".join(VARIETY_NAMES[name] for name in MERGEABLE)
        yield f"an adapter of kind {VARIETY_NAMES[kind.variety]} cannot be put on: choose one of kind {kinds}"


def _text_lines(inspection: Inspection) -> Iterator[str]:
    layout = f"{inspection.layout} layout, " if inspection.layout else ""
    size = (
        f"{hub.format_size(inspection.bytes)}, {inspection.parameters:,} parameters, "
        f"{', '.join(inspection.dtypes)}"
    )
    yield (
        f"{printable_path(inspection.path)}: {inspection.what} of {FAMILY_TITLES[inspection.family]}, "
        f"{layout}{size}"
    )
    if inspection.what == "lora":
        alpha = ", ".join(f"{value:g}" for value in inspection.alpha) or "none"
        also = "attention and convolutions" if inspection.convolutions else "attention"
        yield f"  variety {inspection.variety}, rank {inspection.rank}, alpha {alpha}; changes {also}"
    if inspection.targets:
        yield f"  networks: {', '.join(inspection.targets)}"
    if inspection.guidance_width:
        yield f"  guidance embedding: {inspection.guidance_width} wide"
    if inspection.noise:
        yield f"  noise process: {inspection.noise}"
    if inspection.mode or (inspection.modes and inspection.what != "lora"):
        yield f"  mode: {inspection.mode or 'must be named'}"
    for reason in dict.fromkeys(inspection.modes.values()):
        modes = ", ".join(mode for mode in inspection.modes if inspection.modes[mode] == reason)
        yield f"  {'any mode' if reason == STYLE else modes}: {reason}"
    yield from (f"  note: {note}" for note in inspection.notes)


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _as_plain_data(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, tuple) else str(value) if isinstance(value, Path) else value
