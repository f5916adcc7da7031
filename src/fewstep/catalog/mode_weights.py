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
    """Return the mode's weights on a model, or the user's; None where the model's own suffice."""
    weights = (
        _given_weights(model, recipe, accelerator) if accelerator != "" else _usual_weights(model, recipe)
    )
    embedded = _has_guidance_embedding(model, weights)
    if embedded is not None:
        replacement = accelerator if weights is not None and weights.attach != "adapter" else ""
        check_guidance_embedding(model, recipe, embedded, replacement)
    return weights


def check_guidance_embedding(
    model: Model, recipe: Recipe, embedded: bool, accelerator: str | Path = ""
) -> None:
    """Check that the UNet has a guidance embedding where the mode needs one, and only there."""
    if embedded != _needs_embedding(recipe):
        verb, fitting_mode = ("has a", "lcm") if embedded else ("has no", "base")
        subject, advice = f"model={model.name!r}", f"use mode={fitting_mode!r}"
        if accelerator != "":
            subject, advice = (
                f"accelerator={str(accelerator)!r}",
                f"give another, or use mode={fitting_mode!r}",
            )
        raise RequestError(
            f"mode={recipe.mode!r} does not fit {subject}, whose UNet {verb} guidance embedding: {advice}"
        )


def check_revision(revision: object, model: Model, weights: Weights | None) -> None:
    """Check that it is a commit, and the model read at it; `weights` is `choose_weights`' choice."""
    if not isinstance(revision, str) or not hub.COMMIT.fullmatch(revision):
        raise RequestError(f"revision={revision!r}: give a commit of the hub, 40 hex digits")
    if model.family == "tiny" or existing_path(model.source) is not None:
        raise RequestError(
            f"revision={revision!r} is of a model on the hub, and model={model.name!r} is here: "
            "leave revision out"
        )
    if weights is not None and weights.attach == "checkpoint":
        raise RequestError(
            f"revision={revision!r} cannot act: {weights.source} takes the place of model={model.name!r} in "
            f"this mode; leave revision out, or type model={weights.source!r}"
        )


def _needs_embedding(recipe: Recipe) -> bool:
    return recipe.guidance.kind == "embedded"


def unet_folder(source: str, root: Path) -> Path | None:
    """Return the folder of a UNet: inside the model's folder, or of its own. None: on the hub."""
    path = existing_path(source)
    for folder in (root / source, *([path, path / "unet"] if path else [])):
        if (folder / "config.json").is_file():
            return folder
    if path is not None:
        raise CorruptModelError(
            f"accelerator={source!r} holds no UNet: config.json and safetensors are needed"
        )
    return None


def unet_file(weights: Weights, root: Path) -> Path | None:
    """Return a UNet's one file. None: it is a folder, of the model's first of all, or on the hub."""
    if not weights.file and (root / weights.source).is_dir():
        return None  # whatever the working directory has of that name
    path = existing_path(weights.source)
    if path is None or path.is_file():
        return path
    inside = path / weights.file
    return inside if weights.file and inside.is_file() else None


def adapter_file(weights: Weights, root: Path) -> Path | None:
    """Return a LoRA's file: inside the model's folder, itself, or the one in a folder. None: on the hub."""
    inside = root / weights.source / weights.file
    if weights.file and inside.is_file():
        return inside
    path = existing_path(weights.source)
    if weights.file and path is None and not is_hub_id(weights.source):
        raise ModelNotFoundError(
            f"{root} holds no {weights.source}/{weights.file}: give the mode's LoRA as accelerator="
        )
    if not weights.file or path is None or path.is_file():
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
    path = existing_path(name)
    if path is None and not is_hub_id(name):
        raise ModelNotFoundError(
            f"accelerator={name!r} is neither a file or folder here, nor a hub id such as 'owner/name'"
        )
    if path is not None and path.is_file() and path.suffix != ".safetensors":
        raise RequestError(
            f"accelerator={name!r} is no .safetensors file, and fewstep reads no other: {_CONVERT}"
        )
    recipe_weights = recipe.weights.get(model.family) or next(iter(recipe.weights.values()))
    default = recipe_weights.attach
    attach = default if path is None else _attachment_of_file(name, path, default, model)
    return Weights(attach=attach, source=name, scale=recipe_weights.scale)


Attachment = Literal["checkpoint", "unet", "adapter"]
_ATTACHMENTS: dict[str, Attachment] = {
    "checkpoint": "checkpoint",
    "unet": "unet",
    "lora": "adapter",
}  # by kind


def _attachment_of_file(name: str, path: Path, default: Attachment, model: Model) -> Attachment:
    """Return what a file or folder would be in a mode, whatever the mode's own weights are."""
    if path.is_dir():
        signs: dict[str, Attachment] = {
            "model_index.json": "checkpoint", "config.json": "unet", "unet/config.json": "unet",
            **dict.fromkeys(addons.LORA_NAMES, "adapter"),
        }  # fmt: skip
        return next((attach for file, attach in signs.items() if (path / file).is_file()), default)
    header = read_header(path)
    kind = identify(header)
    if kind.what not in _ATTACHMENTS:
        raise RequestError(
            f"accelerator={name!r} is of the kind {kind.what!r}: give a UNet, a LoRA or a whole model; "
            f"fewstep inspect {name} says what it is for"
        )
    fault = ""
    if kind.what == "checkpoint":
        fault = obstacle(kind, noise_of_header(header), folder=False)
    elif kind.what == "unet" and kind.quantised:
        fault = QUANTISED
    elif kind.what == "unet" and kind.family not in (UNKNOWN, model.family):
        fault = f"it is a UNet of {title_of(kind.family)}, and this model is of {title_of(model.family)}"
    if fault:
        raise RequestError(f"accelerator={name!r} does not fit model={model.name!r}: {fault}")
    return _ATTACHMENTS[kind.what]


def _usual_weights(model: Model, recipe: Recipe) -> Weights | None:
    """What the recipe names for the model's family, where the model needs it."""
    if not recipe.weights or model.carries == recipe.mode:
        return None
    weights = recipe.weights.get(model.family)
    if weights is None:
        raise RequestError(
            f"mode={recipe.mode!r} has no weights for model={model.name!r}: choose one of "
            f"{', '.join(assets.modes_for(model.family))}, or give them as accelerator="
        )
    if model.carries == "lcm":
        check_guidance_embedding(model, recipe, True)
    if weights.attach == "checkpoint" and not weights.source and not model.foreign:
        raise RequestError(
            f"mode={recipe.mode!r} is for checkpoints with few steps merged in, and model={model.name!r} is "
            "none: give such a file, folder or hub id as model="
        )
    if model.foreign and weights.attach == "checkpoint":
        return None  # it is taken at the user's word: it is such a checkpoint
    if model.foreign and not model.local and _needs_embedding(recipe):
        return None  # a whole LCM, it may be: its files will tell
    if model.foreign and weights.attach == "unet":
        advice = f"use mode={recipe.as_adapter!r}, or give" if recipe.as_adapter else "give"
        why = ", which has no guidance embedding" if model.local and _needs_embedding(recipe) else ""
        raise RequestError(
            f"mode={recipe.mode!r} would replace the UNet of model={model.name!r}{why}: "
            f"{advice} the UNet's folder as accelerator="
        )
    if weights.file and not weights.file.endswith(".safetensors"):
        advice = f", or use mode={recipe.as_adapter!r}" if recipe.as_adapter else ""
        raise ModelNotFoundError(
            f"mode={recipe.mode!r}: {weights.source} publishes {weights.file}, a pickle, which fewstep never "
            f"reads: {_CONVERT}; give the result as accelerator={advice}"
        )
    return weights


def _has_guidance_embedding(model: Model, weights: Weights | None) -> bool | None:
    """Return whether the UNet that will run has a guidance embedding; None where only its file could tell."""
    if weights is not None and weights.attach == "adapter":
        adapter_file(weights, Path(model.source))  # one that is missing is missed now
        weights = None
    if weights is None:
        return model.carries == "lcm" if model.local or model.family == "tiny" else None
    if weights.attach == "unet" and unet_file(weights, Path(model.source)) is not None:
        return None
    unet = (
        unet_folder(weights.source, Path(model.source))
        if weights.attach == "unet"
        else Path(weights.source, "unet")
    )
    if unet is None or not (unet / "config.json").is_file():
        return None
    return bool(read_config(unet / "config.json").get("time_cond_proj_dim"))


def licences_of_mode(
    model: Model, recipe: Recipe, weights: Weights | None, embeddings: Sequence[str] = (), vae: str = ""
) -> dict[str, str]:
    """Return the licences of what a mode on a model is made of; `weights` is `choose_weights`' choice.

    `vae` is the one given in the place of the model's own.
    """
    from fewstep.catalog.assets import vae_asset  # which reads the table above

    licences: dict[str, str] = {}
    if weights is None or weights.attach != "checkpoint":
        licences[f"model={model.name!r}"] = model.licence
    if weights is not None:
        asset, is_recipes = _published_asset(weights.source, weights.file), weights in recipe.weights.values()
        licence = recipe.licence if is_recipes else "unknown"
        licences[f"{weights.source!r} of mode={recipe.mode!r}"] = licence if asset is None else asset.licence
    if vae:
        published = vae_asset(vae, model.family) or _published_asset(vae)
        licences[f"vae={vae!r}"] = "unknown" if published is None else published.licence
    return licences | licences_of_files(embeddings)


def licences_of_files(sources: Sequence[str]) -> dict[str, str]:
    """LoRAs or learned words → their licences, where the name or the hub's repository is a known one."""
    from fewstep.catalog.assets import style_asset  # which reads the table above

    asset_by_source = {source: style_asset(source) or _published_asset(source) for source in sources}
    return {
        repr(source): "unknown" if asset is None else asset.licence
        for source, asset in asset_by_source.items()
    }


def _published_asset(source: str, file: str = "") -> Asset | None:
    """Files on the hub that fewstep has a name for."""
    from fewstep.catalog.assets import asset_for  # which reads the table above
    from fewstep.catalog.hub import existing_path

    return asset_for(source, file) if existing_path(source) is None else None
