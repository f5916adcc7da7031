"""Add-ons by name, folder or file: which is meant, and is it one? Headers are read; torch is not imported."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from types import MappingProxyType

from fewstep.catalog import assets, hub
from fewstep.catalog.hub import existing_path, is_hub_id
from fewstep.catalog.models import Model, bundled_folder
from fewstep.errors import CorruptModelError, ModelNotFoundError
from fewstep.files import identify, safetensors
from fewstep.files.identify import FileKind
from fewstep.files.safetensors import LORA_NAME, Header
from fewstep.files.tensor_names import BUNDLED_WORD
from fewstep.files.untrusted import printable_path


@dataclass(frozen=True, kw_only=True)
class AddonPlace:
    """Where a ControlNet or an IP-Adapter is."""

    root: str  # a hub id, or a folder here
    file: str = ""  # in it; "" is the folder's one network
    revision: str = ""  # 40 hex digits; "" is not known


CONTROLNETS: MappingProxyType[str, AddonPlace] = MappingProxyType(
    {asset.name: AddonPlace(root=asset.repo, revision=asset.revision) for asset in assets.CONTROLNETS}
)
IP_ADAPTERS: MappingProxyType[str, AddonPlace] = MappingProxyType(
    {
        asset.name: AddonPlace(root=asset.repo, file=asset.files[0], revision=asset.revision)
        for asset in assets.IP_ADAPTERS
    }
)
GUIDE_NAMES = {*CONTROLNETS, *IP_ADAPTERS}
# What a union of ControlNets is shown, and its number among them (github.com/xinsir6/ControlNetPlus; the
# last two are in its "promax" weights only).
VIEWS: MappingProxyType[str, int] = MappingProxyType(
    {
        "pose": 0, "depth": 1, "hed": 2, "pidi": 2, "scribble": 2, "ted": 2, "canny": 3, "lineart": 3,
        "mlsd": 3, "normal": 4, "segment": 5, "tile": 6, "repaint": 7,
    }
)  # fmt: skip


def split_controlnet_view(source: str) -> tuple[str, str]:
    """`union:depth` → "union" and the view that it asks for; "" is none."""
    name, colon, view = source.rpartition(":")
    return (name, view) if colon and view in VIEWS else (source, "")


def check_guides(control: Iterable[str], reference: Iterable[str]) -> None:
    """Check that each is a name, or a place where one may be; raises `ModelNotFoundError`."""
    for source in control:
        locate_controlnet(split_controlnet_view(source)[0])
    for source in reference:
        locate_ip_adapter(source)


def licences_of_guides(control: Iterable[str], reference: Iterable[str]) -> dict[str, str]:
    """Return the licence of each; "unknown" of others than the named ones."""
    names = [split_controlnet_view(source)[0] for source in control] + list(reference)
    return {repr(name): assets.ASSETS[name].licence if name in GUIDE_NAMES else "unknown" for name in names}


def locate_controlnet(source: str) -> AddonPlace:
    """Return where a ControlNet is; `source` has no view."""
    if source in CONTROLNETS:
        return CONTROLNETS[source]
    path = existing_path(source)
    if path is None and not is_hub_id(source):
        raise ModelNotFoundError(
            f"control has {source!r}, which is neither one of {', '.join(CONTROLNETS)}, nor a folder or file "
            "here, nor a hub id such as 'owner/name'"
        )
    return _file_place(path) if path is not None and path.is_file() else AddonPlace(root=source)


def locate_ip_adapter(source: str) -> AddonPlace:
    """Return where an IP-Adapter is."""
    if source in IP_ADAPTERS:
        return IP_ADAPTERS[source]
    path = existing_path(source)
    if path is not None:
        return _file_place(_only_file(path) if path.is_dir() else path)
    owner, _, rest = source.partition("/")
    name, _, file = rest.partition("/")
    if file.endswith(".safetensors") and is_hub_id(f"{owner}/{name}"):
        return AddonPlace(root=f"{owner}/{name}", file=file)
    raise ModelNotFoundError(
        f"reference has {source!r}, which is neither one of {', '.join(IP_ADAPTERS)}, nor a file or folder "
        "here, nor a file on the hub such as 'owner/name/file.safetensors'"
    )


def _file_place(path: Path) -> AddonPlace:
    """Return a file's place; its root is the folder above the file's, as in a copy of h94/IP-Adapter."""
    path = path.absolute()
    return AddonPlace(
        root=str(path.parent.parent), file=str(PurePath(path.parent.name, path.name).as_posix())
    )


def _only_file(folder: Path) -> Path:
    files = sorted(folder.glob("*.safetensors"))
    if len(files) != 1:
        raise CorruptModelError(
            f"{folder} holds {len(files)} .safetensors files: give the IP-Adapter's own file as reference"
        )
    return files[0]


LORA_NAMES = (LORA_NAME, "adapter_model.safetensors")  # diffusers' and PEFT's names for a LoRA in a folder
# A textual inversion's tensors: as web UIs and diffusers name them, and as diffusers' trainer did first.
INVERSION_TENSORS = (("clip_l", "clip_g"), ("text_encoders_0", "text_encoders_1"))
MERGEABLE = ("lora", "locon", "loha", "lokr", "dora", "full", "ia3", "glora", "oft")  # what can be put on
VARIETY_NAMES: MappingProxyType[str, str] = MappingProxyType(
    {
        "lora": "LoRA", "locon": "LoCon", "loha": "LoHa", "lokr": "LoKr", "dora": "DoRA", "full": "full",
        "ia3": "IA3", "glora": "GLoRA", "oft": "OFT", "oft-v2": "OFT v2 (PEFT's)", "peft-boft": "PEFT's BOFT",
        "vera": "VeRA", "hra": "HRA",
    }
)  # fmt: skip
# Families whose UNets share names and widths; what else of a file fits is seen when it is put on.
SDXL_KIN = frozenset({"sdxl", "sdxl-inpaint", "ssd-1b", "vega"})


def check_loras(loras: Sequence[tuple[str, float]], model: Model) -> None:
    """Check that each is there, and a LoRA for such a model; one on the hub alone is not looked at."""
    for source, _ in loras:
        path = addon_file(source)
        if path is not None:
            header = safetensors.read_header(path)
            _require_family(header, require_lora(header), model.family)


def check_embeddings(sources: Sequence[str], model: Model) -> None:
    """Check that each is there, and a textual inversion for such a model; as `check_loras` does."""
    for source in sources:
        path = addon_file(source, "embeddings")
        if path is not None:
            header = safetensors.read_header(path)
            _require_family(header, identify.identify(header), model.family)
            require_inversion(header, len(model.architecture.encoders))


def addon_file(source: str, name: str = "loras") -> Path | None:
    """Return the adapter's file: a name's, itself, or the one in a folder. None: on the hub.

    `name` is the argument that it was given as.
    """
    asset = assets.style_asset(source) if name == "loras" else None
    path = existing_path(source) if asset is None else bundled_folder(asset)
    if path is None:
        if is_hub_id(source):
            return None
        raise ModelNotFoundError(
            f"{name} has {source!r}: neither a file or folder here, nor a hub id such as 'owner/name'"
        )
    if not path.is_dir():
        return path
    named_files = [path / usual_name for usual_name in _usual_names(name) if (path / usual_name).is_file()]
    files = named_files or sorted(path.glob("*.safetensors"))
    if not named_files and len(files) != 1:
        missing = f"no {' or '.join(_usual_names(name))}, and " if _usual_names(name) else ""
        raise ModelNotFoundError(
            f"{name} has {source!r}: {path} holds {missing}{len(files)} {'other ' if missing else ''}"
            ".safetensors files; give the one that is meant"
        )
    return files[0]


def fetch_addon(source: str, name: str = "loras") -> Path:
    """Return the adapter's file of a hub repository: from the hub's cache, or downloaded into it."""
    return hub.fetch_one_of(source, _usual_names(name))


def _usual_names(name: str) -> Sequence[str]:
    """Return what the file is called in a folder; a learned word has a name of its own."""
    return () if name == "embeddings" else LORA_NAMES


def require_lora(header: Header) -> FileKind:
    """Return a LoRA's kind; raises `CorruptModelError` for what is none, or cannot be merged."""
    kind = identify.identify(header)
    if kind.what != "lora":
        description = f"is a {kind.what}" if kind.what != "unknown" else "holds no adapter's tensors"
        raise CorruptModelError(
            f"{printable_path(header.path)} {description}: give a LoRA's .safetensors file"
        )
    if kind.variety not in MERGEABLE:
        kinds = ", ".join(VARIETY_NAMES[name] for name in MERGEABLE)
        raise CorruptModelError(
            f"{printable_path(header.path)} is an adapter of kind {VARIETY_NAMES[kind.variety]}, "
            f"which cannot be put on: give one of kind {kinds}"
        )
    return kind


def require_inversion(header: Header, encoders: int) -> dict[str, tuple[str, ...]]:
    """Return each learned word of a file → its tensors' names, one per text encoder.

    A textual inversion's word is its file's name; those bundled with a LoRA (OneTrainer, AUTOMATIC1111)
    have names of their own. Raises `CorruptModelError`.
    """
    words = bundled_words(header) or {header.path.stem: {name: name for name in header.tensors}}
    return {word: _word_tensors(header, word, parts, encoders) for word, parts in words.items()}


def bundled_words(header: Header) -> dict[str, dict[str, str]]:
    """Return the words that lie in a LoRA's file → the ends of their tensors' names → the names."""
    words: dict[str, dict[str, str]] = {}
    for name in header.tensors:
        word, dot, end = name.removeprefix(BUNDLED_WORD).partition(".")
        if name.startswith(BUNDLED_WORD) and dot and word.isprintable():
            words.setdefault(word, {})[end] = name
    return words


def unread_words(loras: Iterable[str], embeddings: Sequence[str]) -> list[str]:
    """Return a sentence for each LoRA that bundles words, where `embeddings` has not the same file."""
    sentences = []
    for source in loras:
        path = addon_file(source) if source not in embeddings else None
        words = bundled_words(safetensors.read_header(path)) if path is not None else {}
        if words:
            sentences.append(
                f"{printable_path(Path(source))} bundles the words {', '.join(map(repr, words))}, which "
                "loras= does not read: to use them in prompts, give the same file as embeddings= too"
            )
    return sentences


def _word_tensors(header: Header, word: str, parts: Mapping[str, str], encoders: int) -> tuple[str, ...]:
    """Return the names of one word's tensors, one per text encoder; raises `CorruptModelError`."""
    outputs = [end for end in parts if end.endswith("_out")]
    if outputs:
        raise CorruptModelError(
            f"{printable_path(header.path)} has {outputs[0]} for the word {word!r}: vectors for a text "
            "encoder's output, which only OneTrainer adds; train the word without output embeddings"
        )
    if encoders == 1 and len(parts) == 1:  # "emb_params", "clip_l", or the word itself
        return tuple(parts.values())
    for names in INVERSION_TENSORS:
        if len(names) == encoders and parts.keys() == set(names):
            return tuple(parts[name] for name in names)
    kind = identify.identify(header)
    if kind.what == "textual inversion":
        family = "another base" if kind.family == "unknown" else kind.family
        description = (
            f"is a textual inversion for {family}, without a tensor for each of this model's text encoders"
        )
    elif bundled_words(header):
        description = f"has the word {word!r} without a tensor for each of this model's text encoders"
    else:
        description = "is no textual inversion"
    raise CorruptModelError(
        f"{printable_path(header.path)} {description}: give a .safetensors file with "
        f"{'clip_l and clip_g' if encoders > 1 else 'one tensor'}"
    )


def _require_family(header: Header, kind: FileKind, family: str) -> None:
    """A LoRA fits no other base than its own; that of unknown ones is seen when they are put on."""
    if not same_kin(kind.family, family):
        raise CorruptModelError(
            f"{printable_path(header.path)} does not fit this model: it was made for {kind.family}, "
            f"and the model is {family}"
        )


def same_kin(family: str, other: str) -> bool:
    """Return whether adapters for the one may fit the other; what is unknown may."""
    return family == other or "unknown" in (family, other) or {family, other} <= SDXL_KIN
