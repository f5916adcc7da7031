"""Which weights a mode puts on a model: decided from names and configuration files, before torch is there."""

from __future__ import annotations

from pathlib import Path

from fewstep.errors import CorruptModelError, ModelNotFoundError, RequestError
from fewstep.models.catalog import Model, is_hub_id, local, read_json
from fewstep.recipe import Recipe, Weights

LORA = "pytorch_lora_weights.safetensors"  # diffusers' name for an adapter's file


def choose(model: Model, recipe: Recipe, accelerator: str | Path) -> Weights | None:
    """The mode's own weights on this model, "" or those given; None where the model's suffice."""
    own = _given(recipe, accelerator) if accelerator != "" else _usual(model, recipe)
    embedded = _embedded(model, own)
    if embedded is not None:
        check_embedding(model, recipe, embedded)
    return own


def check_embedding(model: Model, recipe: Recipe, embedded: bool) -> None:
    """An LCM UNet must be told its guidance, and no other can be."""
    if embedded != (recipe.guidance.kind == "embedded"):
        has, fitting = ("has a", "lcm") if embedded else ("has no", "base")
        raise RequestError(
            f"mode={recipe.mode!r} does not fit model={model.name!r}, whose UNet {has} guidance embedding: "
            f"use mode={fitting!r}"
        )


def unet_folder(source: str, root: Path) -> Path | None:
    """A UNet on its own: inside the model's folder, or a folder of its own. None: on the hub."""
    here = local(source)
    for folder in (root / source, *([here, here / "unet"] if here else [])):
        if (folder / "config.json").is_file():
            return folder
    if here is not None:
        raise CorruptModelError(
            f"accelerator={source!r} holds no UNet: config.json and safetensors are needed"
        )
    return None


def adapter_file(weights: Weights) -> Path | None:
    """A LoRA: a file, or the one in a folder. None: on the hub."""
    here, name = local(weights.source), weights.file or LORA
    if here is None or here.is_file():
        return here
    if not (here / name).is_file():
        raise ModelNotFoundError(f"{here} holds no {name}: give the LoRA's .safetensors file as accelerator=")
    return here / name


def _given(recipe: Recipe, accelerator: str | Path) -> Weights:
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
    if local(name) is None and not is_hub_id(name):
        raise ModelNotFoundError(
            f"accelerator={name!r} is neither a file or folder here, nor a hub id such as 'owner/name'"
        )
    return Weights(attach=next(iter(recipe.weights.values())).attach, source=name)


def _usual(model: Model, recipe: Recipe) -> Weights | None:
    """What the recipe names for the model's family, where the model needs it."""
    if not recipe.weights or model.carries == recipe.mode:
        return None
    own = recipe.weights.get(model.family)
    if own is None:
        fitting = "base, lcm" if model.family == "tiny" else "base"
        raise RequestError(
            f"mode={recipe.mode!r} has no weights for model={model.name!r}: choose one of {fitting}, "
            "or give them as accelerator="
        )
    if model.carries:
        check_embedding(model, recipe, True)
    if model.local and own.attach == "checkpoint":
        return None  # the folder is taken at the user's word: it is such a checkpoint
    if model.local and own.attach == "unet":
        raise RequestError(
            f"mode={recipe.mode!r} would replace the UNet of model={model.name!r}, which has no guidance "
            "embedding: use mode='lcm-lora', or give the UNet's folder as accelerator="
        )
    return own


def _embedded(model: Model, own: Weights | None) -> bool | None:
    """Has the UNet that will run a guidance embedding? None where only the hub could tell."""
    if own is not None and own.attach == "adapter":
        adapter_file(own)  # one that is missing is missed now
        own = None
    if own is None:
        return bool(model.carries) if model.local or model.family == "tiny" else None
    unet = unet_folder(own.source, Path(model.source)) if own.attach == "unet" else Path(own.source, "unet")
    if unet is None or not (unet / "config.json").is_file():
        return None
    return bool(read_json(unet / "config.json").get("time_cond_proj_dim"))
