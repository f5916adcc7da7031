"""Which noise process an engine runs: what the files say, what the user says, and what a mode was made on."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from fewstep.catalog.hub import existing_path
from fewstep.catalog.models import Model, noise_of_folder
from fewstep.errors import RequestError
from fewstep.files import safetensors
from fewstep.files.noise import Noise, noise_of_file
from fewstep.noise_process import Flow, VariancePreserving
from fewstep.recipe import Recipe, Weights

_V_NAME = re.compile(r"(?<![a-z])[vV][-_ ]?[pP]red(?:iction)?(?![a-z])")  # in the name of a model


def noise_for(model: Model, recipe: Recipe, weights: Weights | None, prediction: str, given: bool) -> Noise:
    """Return what is run; raises `RequestError` where prediction or mode cannot act on it.

    `weights` are what the mode puts on the model, `given` whether they are the user's; `prediction` is
    the user's word, "" where there is none.
    """
    noise = _of_weights(model.noise, weights) if given else model.noise
    if weights is not None and weights.attach == "adapter" and model.family != "tiny":
        noise = _under_adapter(noise, model, recipe, given)
    if prediction:
        return _as_told(noise, model, prediction)
    if not noise.source and not recipe.prediction and _V_NAME.search(Path(model.name).stem):
        doubt = (
            f"the name of model={model.name!r} says v-prediction, and nothing in it does: it is run as "
            "epsilon; where pictures are noise, type prediction='v_prediction'"
        )
        return replace(noise, notes=(*noise.notes, doubt))
    if recipe.prediction and isinstance(noise.process, VariancePreserving):
        return replace(noise, process=replace(noise.process, prediction=recipe.prediction))
    return noise


def _of_weights(noise: Noise, weights: Weights | None) -> Noise:
    """Return that of the user's weights, where they replace the model's, are here and say one."""
    here = None if weights is None or weights.attach == "adapter" else existing_path(weights.source)
    if weights is None or here is None:
        return noise
    if here.is_dir():
        return noise_of_folder(here) if weights.attach == "checkpoint" else noise
    noise_of_weights = noise_of_file(safetensors.read_header(here))
    if noise_of_weights.fault:
        raise RequestError(f"accelerator={weights.source!r} cannot be drawn with: {noise_of_weights.fault}")
    if noise_of_weights.source or weights.attach == "checkpoint":
        return noise_of_weights
    if noise.usual:
        return noise
    doubt = (
        f"accelerator={weights.source!r} does not say what it predicts, and is run as the model's UNet is "
        f"({noise.title}): where that is wrong, type prediction='epsilon'"
    )
    return replace(noise, notes=(*noise.notes, doubt))


def _under_adapter(noise: Noise, model: Model, recipe: Recipe, given: bool) -> Noise:
    """Return the same with a doubt: published accelerators were distilled on SDXL's own process."""
    if noise.usual:
        return noise
    distilled = "was distilled on the variance-preserving process of Stable Diffusion with epsilon"
    if isinstance(noise.process, VariancePreserving):
        doubt = (
            f"the LoRA of mode {recipe.mode!r} {distilled}, and this model is {noise.title}: expect weaker "
            "pictures, unless the LoRA was trained on this very model"
        )
    elif given:
        doubt = (
            f"this model is {noise.title}: accelerator= must have been distilled on such a model, as none of "
            f"the published LoRAs of mode {recipe.mode!r} is"
        )
    else:
        raise RequestError(
            f"mode={recipe.mode!r} does not fit model={model.name!r}: its LoRA {distilled}, and the model is "
            f"{noise.title}; use mode='base', or give a LoRA made for it as accelerator="
        )
    return replace(noise, notes=(*noise.notes, doubt))


def _as_told(noise: Noise, model: Model, prediction: str) -> Noise:
    """Return the process with the user's prediction in it; a contradiction is said."""
    process = noise.process
    if isinstance(process, Flow) or not (isinstance(process, VariancePreserving) or prediction != "sample"):
        raise RequestError(
            f"prediction={prediction!r} cannot act on model={model.name!r}, which is {noise.title} "
            f"({noise.source}): leave prediction out"
        )
    if process.prediction == prediction:
        return noise
    notes = noise.notes
    if noise.source:
        notes += (
            f"prediction={prediction!r} is run because you say so, but {noise.source} says "
            f"{process.prediction!r}: where pictures are noise, leave prediction out",
        )
    return replace(noise, process=replace(process, prediction=prediction), notes=notes)  # type: ignore[type-var]
