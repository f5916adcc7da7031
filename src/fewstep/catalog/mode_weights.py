"""Which weights a mode puts on a model: decided from names and configuration files, before torch is there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fewstep.catalog import addons, assets, hub
from fewstep.catalog.architectures import title_of
from fewstep.catalog.hub import existing_path, is_hub_id
from fewstep.catalog.models import QUANTISED, Model, noise_of_header, obstacle
from fewstep.errors import CorruptModelError, ModelNotFoundError, RequestError
from fewstep.files.identify import UNKNOWN, identify
from fewstep.files.safetensors import read_header
from fewstep.files.untrusted import read_config
from fewstep.recipe import Recipe, Weights

if TYPE_CHECKING:
    from fewstep.catalog.assets import Asset
    from fewstep.catalog.models import Model
    from fewstep.recipe import Recipe, Weights


_CONVERT = "somebody you trust can convert it, by safetensors.torch.save_file"


def choose_weights(model: Model, recipe: Recipe, accelerator: str | Path) -> Weights | None:
    """The mode's own weights on this model, "" or those given; None where the model's suffice."""
    own = _given_weights(model, recipe, accelerator) if accelerator != "" else _usual_weights(model, recipe)
    embedded = _has_guidance_embedding(model, own)
    if embedded is not None:
        given = accelerator if own is not None and own.attach != "adapter" else ""
        check_guidance_embedding(model, recipe, embedded, given)
    return own


def check_guidance_embedding(
    model: Model, recipe: Recipe, embedded: bool, accelerator: str | Path = ""
) -> None:
    """An LCM UNet must be told its guidance, and no other can be."""
    if embedded != _needs_embedding(recipe):
        has, fitting = ("has a", "lcm") if embedded else ("has no", "base")
        whose, instead = f"model={model.name!r}", f"use mode={fitting!r}"
        if accelerator != "":
            whose, instead = f"accelerator={str(accelerator)!r}", f"give another, or use mode={fitting!r}"
        raise RequestError(
            f"mode={recipe.mode!r} does not fit {whose}, whose UNet {has} guidance embedding: {instead}"
        )


def check_revision(revision: object, model: Model, own: Weights | None) -> None:
    """Is this a commit, and the model one that is read at it? `own` is what `choose` chose."""
    if not isinstance(revision, str) or not hub.COMMIT.fullmatch(revision):
        raise RequestError(f"revision={revision!r}: give a commit of the hub, 40 hex digits")
    if model.family == "tiny" or existing_path(model.source) is not None:
        raise RequestError(
            f"revision={revision!r} is of a model on the hub, and model={model.name!r} is here: "
            "leave revision out"
        )
    if own is not None and own.attach == "checkpoint":
        raise RequestError(
            f"revision={revision!r} cannot act: {own.source} takes the place of model={model.name!r} in this "
            f"mode; leave revision out, or type model={own.source!r}"
        )


def _needs_embedding(recipe: Recipe) -> bool:
    return recipe.guidance.kind == "embedded"


def unet_folder(source: str, root: Path) -> Path | None:
    """A UNet on its own: inside the model's folder, or a folder of its own. None: on the hub."""
    here = existing_path(source)
    for folder in (root / source, *([here, here / "unet"] if here else [])):
        if (folder / "config.json").is_file():
            return folder
    if here is not None:
        raise CorruptModelError(
            f"accelerator={source!r} holds no UNet: config.json and safetensors are needed"
        )
    return None


def unet_file(weights: Weights, root: Path) -> Path | None:
    """A UNet in one file. None: it is a folder, of the model's first of all, or on the hub."""
    if not weights.file and (root / weights.source).is_dir():
        return None  # whatever the working directory has of that name
    here = existing_path(weights.source)
    if here is None or here.is_file():
        return here
    inside = here / weights.file
    return inside if weights.file and inside.is_file() else None


def adapter_file(weights: Weights, root: Path) -> Path | None:
    """A LoRA: inside the model's folder, a file, or the one in a folder. None: on the hub."""
    inside = root / weights.source / weights.file
    if weights.file and inside.is_file():
        return inside
    here = existing_path(weights.source)
    if weights.file and here is None and not is_hub_id(weights.source):
        raise ModelNotFoundError(
            f"{root} holds no {weights.source}/{weights.file}: give the mode's LoRA as accelerator="
        )
    if not weights.file or here is None or here.is_file():
        return addons.addon_file(weights.source, "accelerator")
    return hub.fetch_file(weights.source, weights.file)


def _given_weights(model: Model, recipe: Recipe, accelerator: str | Path) -> Weights:
    """The user's own weights, in the place of the mode's."""
    if not isinstance(accelerator, str | Path):
        raise RequestError(
            f"accelerator={accelerator!r}: give a file, a folder, or a hub id such as 'owner/name'"
        )
    name = str(accelerator)
    if not recipe.weights:
        raise RequestError(
            f"accelerator={name!r}: mode={recipe.mode!r} has no weights of its own: "
            "leave accelerator out, or name the mode that these are for"
        )
    here = existing_path(name)
    if here is None and not is_hub_id(name):
        raise ModelNotFoundError(
            f"accelerator={name!r} is neither a file or folder here, nor a hub id such as 'owner/name'"
        )
    if here is not None and here.is_file() and here.suffix != ".safetensors":
        raise RequestError(
            f"accelerator={name!r} is no .safetensors file, and fewstep reads no other: {_CONVERT}"
        )
    usual = recipe.weights.get(model.family) or next(iter(recipe.weights.values()))
    attach = usual.attach if here is None else _attachment_of_file(name, here, usual.attach, model)
    return Weights(attach=attach, source=name, scale=usual.scale)


Attachment = Literal["checkpoint", "unet", "adapter"]
_ATTACHMENTS: dict[str, Attachment] = {
    "checkpoint": "checkpoint",
    "unet": "unet",
    "lora": "adapter",
}  # by kind


def _attachment_of_file(name: str, here: Path, usual: Attachment, model: Model) -> Attachment:
    """Return what a file or folder would be in a mode, whatever the mode's own weights are."""
    if here.is_dir():
        signs: dict[str, Attachment] = {
            "model_index.json": "checkpoint", "config.json": "unet", "unet/config.json": "unet",
            **dict.fromkeys(addons.LORA_NAMES, "adapter"),
        }  # fmt: skip
        return next((attach for file, attach in signs.items() if (here / file).is_file()), usual)
    header = read_header(here)
    kind = identify(header)
    what = kind.what
    if what not in _ATTACHMENTS:
        raise RequestError(
            f"accelerator={name!r} is of the kind {what!r}: give a UNet, a LoRA or a whole model; "
            f"fewstep inspect {name} says what it is for"
        )
    fault = ""
    if what == "checkpoint":
        fault = obstacle(kind, noise_of_header(header), folder=False)
    elif what == "unet" and kind.quantised:
        fault = QUANTISED
    elif what == "unet" and kind.family not in (UNKNOWN, model.family):
        fault = f"it is a UNet of {title_of(kind.family)}, and this model is of {title_of(model.family)}"
    if fault:
        raise RequestError(f"accelerator={name!r} does not fit model={model.name!r}: {fault}")
    return _ATTACHMENTS[what]


def _usual_weights(model: Model, recipe: Recipe) -> Weights | None:
    """What the recipe names for the model's family, where the model needs it."""
    if not recipe.weights or model.carries == recipe.mode:
        return None
    own = recipe.weights.get(model.family)
    if own is None:
        raise RequestError(
            f"mode={recipe.mode!r} has no weights for model={model.name!r}: choose one of "
            f"{', '.join(assets.modes_for(model.family))}, or give them as accelerator="
        )
    if model.carries == "lcm":
        check_guidance_embedding(model, recipe, True)
    if own.attach == "checkpoint" and not own.source and not model.foreign:
        raise RequestError(
            f"mode={recipe.mode!r} is for checkpoints with few steps merged in, and model={model.name!r} is "
            "none: give such a file, folder or hub id as model="
        )
    if model.foreign and own.attach == "checkpoint":
        return None  # it is taken at the user's word: it is such a checkpoint
    if model.foreign and not model.local and _needs_embedding(recipe):
        return None  # a whole LCM, it may be: its files will tell
    if model.foreign and own.attach == "unet":
        instead = f"use mode={recipe.as_adapter!r}, or give" if recipe.as_adapter else "give"
        why = ", which has no guidance embedding" if model.local and _needs_embedding(recipe) else ""
        raise RequestError(
            f"mode={recipe.mode!r} would replace the UNet of model={model.name!r}{why}: "
            f"{instead} the UNet's folder as accelerator="
        )
    if own.file and not own.file.endswith(".safetensors"):
        instead = f", or use mode={recipe.as_adapter!r}" if recipe.as_adapter else ""
        raise ModelNotFoundError(
            f"mode={recipe.mode!r}: {own.source} publishes {own.file}, a pickle, which fewstep never reads: "
            f"{_CONVERT}; give the result as accelerator={instead}"
        )
    return own


def _has_guidance_embedding(model: Model, own: Weights | None) -> bool | None:
    """Has the UNet that will run a guidance embedding? None where only its file could tell."""
    if own is not None and own.attach == "adapter":
        adapter_file(own, Path(model.source))  # one that is missing is missed now
        own = None
    if own is None:
        return model.carries == "lcm" if model.local or model.family == "tiny" else None
    if own.attach == "unet" and unet_file(own, Path(model.source)) is not None:
        return None
    unet = unet_folder(own.source, Path(model.source)) if own.attach == "unet" else Path(own.source, "unet")
    if unet is None or not (unet / "config.json").is_file():
        return None
    return bool(read_config(unet / "config.json").get("time_cond_proj_dim"))


def licences_of_mode(
    model: Model, recipe: Recipe, weights: Weights | None, embeddings: Sequence[str] = (), vae: str = ""
) -> dict[str, str]:
    """What a mode on a model is made of → its licence; `weights` is what `weights.choose` chose.

    `vae` is the one given in the place of the model's own.
    """
    from fewstep.catalog.assets import vae_asset  # which reads the table above

    found: dict[str, str] = {}
    if weights is None or weights.attach != "checkpoint":
        found[f"model={model.name!r}"] = model.licence
    if weights is not None:
        known, own = _published_asset(weights.source, weights.file), weights in recipe.weights.values()
        usual = recipe.licence if own else "unknown"
        found[f"{weights.source!r} of mode={recipe.mode!r}"] = usual if known is None else known.licence
    if vae:
        published = vae_asset(vae, model.family) or _published_asset(vae)
        found[f"vae={vae!r}"] = "unknown" if published is None else published.licence
    return found | licences_of_files(embeddings)


def licences_of_files(sources: Sequence[str]) -> dict[str, str]:
    """LoRAs or learned words → their licences, where the name or the hub's repository is a known one."""
    from fewstep.catalog.assets import style_asset  # which reads the table above

    known = {source: style_asset(source) or _published_asset(source) for source in sources}
    return {repr(source): "unknown" if asset is None else asset.licence for source, asset in known.items()}


def _published_asset(source: str, file: str = "") -> Asset | None:
    """Files on the hub that fewstep has a name for."""
    from fewstep.catalog.assets import asset_for  # which reads the table above
    from fewstep.catalog.hub import existing_path

    return asset_for(source, file) if existing_path(source) is None else None
