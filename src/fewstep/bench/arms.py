"""The arms of a comparison: fewstep on each runtime, diffusers, optimum-intel; the same files, seeds, words.

An arm is opened (which loads it) and then draws: from a prompt to uint8 pixels in main memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from fewstep.bench.timing import Draw, Pictures
from fewstep.catalog import assets, hub, vaes
from fewstep.catalog.mode_weights import adapter_file, choose_weights, unet_folder
from fewstep.errors import RequestError
from fewstep.request import Plan
from fewstep.request.engine_choice import EngineChoice, choose_engine

SEED = 7
# What diffusers calls the first sampler of a mode, and what that is told beside the model's own files.
SCHEDULERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {"timestep_spacing": "trailing"}),
    "lcm": ("LCMScheduler", {}),
}
DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


@dataclass(frozen=True, kw_only=True)
class Case:
    """What every arm of a row draws."""

    model: str = "tiny"
    mode: str = "turbo"
    steps: int = 1
    pictures: int = 1
    side: int = 0  # pixels; 0 is the model's
    vae: str = ""
    device: str = "cpu"
    precision: str = "fp32"

    @property
    def engine_options(self) -> dict[str, Any]:
        """Return what `fewstep.load` is told of it."""
        return {"vae": self.vae, "device": self.device, "precision": self.precision}

    @property
    def size(self) -> dict[str, Any]:
        """Return what a call is told of it."""
        return {"width": self.side, "height": self.side} if self.side else {}

    @property
    def title(self) -> str:
        """Return it in a few words, for a table."""
        batch = f", batch of {self.pictures}" if self.pictures > 1 else ""
        steps = f"{self.steps} step{'s' if self.steps > 1 else ''}"
        side = f", {self.side}²" if self.side else ""
        return f"{Path(self.model).name}, {self.mode} {steps}{batch}{side}{', tiny VAE' if self.vae else ''}"


def prompt_of(turn: int) -> str:
    """Return the prompt of a round: a new one each time, so that nobody draws from what it has encoded."""
    return f"a red fox face, picture {turn}"


def default_arms(runtimes: Iterable[str] = ("auto",)) -> list[str]:
    """Return the names of the arms that can be had here: diffusers, the baseline, before the others."""
    names = ["diffusers"]
    if find_spec("optimum") is not None and find_spec("optimum.intel") is not None:
        names.append("optimum-intel")
    return [*names, *(f"fewstep {runtime}" for runtime in runtimes)]


def open_arm(name: str, case: Case) -> Draw:
    """Return an arm, loaded: "diffusers", "optimum-intel", or "fewstep" and a runtime."""
    if name.startswith("fewstep "):
        return _open_fewstep(case, name.removeprefix("fewstep "))
    return _open_optimum(case) if name == "optimum-intel" else _open_diffusers(case)


def _open_fewstep(case: Case, runtime: str) -> Draw:
    import fewstep

    engine = fewstep.load(case.model, case.mode, steps=case.steps, runtime=runtime, **case.engine_options)

    def draw(turn: int) -> Pictures:
        result = engine.generate(
            prompt_of(turn), case.steps, seed=SEED + turn, count=case.pictures, progress=False, **case.size
        )
        return as_pixels(result)

    return draw


def _open_diffusers(case: Case) -> Draw:
    """Return diffusers' pipeline on the files that fewstep would load for the same words."""
    import diffusers
    import torch

    choice = choose_engine(case.mode, case.steps, {"model": case.model, "vae": case.vae})
    root = _model_folder(choice)
    dtype = getattr(torch, DTYPES[case.precision])
    weights = choose_weights(choice.model, choice.recipe, "")
    attach = "" if weights is None else weights.attach
    parts: dict[str, Any] = {}
    with _quiet():
        if weights is not None and attach == "unet":
            folder = unet_folder(weights.source, root)
            folder = folder or hub.fetch_folder(weights.source, assets.NETWORK_FILES)
            parts["unet"] = diffusers.UNet2DConditionModel.from_pretrained(folder, dtype=dtype)
        if case.vae:
            parts["vae"] = _open_vae(vaes.fetch_vae(case.vae, choice.model), dtype)
        pipe = _class_of(root / "model_index.json").from_pretrained(
            root, dtype=dtype, **_extras(root), **parts
        )
        if weights is not None and attach == "adapter":
            adapter = adapter_file(weights, root) or hub.fetch_file(weights.source, weights.file)
            pipe.load_lora_weights(adapter.parent, weight_name=adapter.name)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = _scheduler(choice, pipe.scheduler.config)
    return _draw_with(pipe.to(case.device), case)


def _open_vae(folder: Path, dtype: Any) -> Any:
    return _class_of(folder / "config.json").from_pretrained(folder, dtype=dtype)


def _open_optimum(case: Case) -> Draw:
    """Return optimum-intel's pipeline, converted to OpenVINO as it is opened."""
    from optimum.intel import OVDiffusionPipeline  # type: ignore[import-not-found]

    choice = choose_engine(case.mode, case.steps, {"model": case.model, "vae": case.vae})
    weights = choose_weights(choice.model, choice.recipe, "")
    if case.vae or (weights is not None and weights.attach != "checkpoint"):
        raise RequestError("optimum-intel's arm takes a model that is whole in its folder: leave it out here")
    pipe = OVDiffusionPipeline.from_pretrained(_model_folder(choice), export=True, device="CPU")
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = _scheduler(choice, pipe.scheduler.config)
    return _draw_with(pipe, case)


def _draw_with(pipe: Any, case: Case) -> Draw:
    """Return what draws with a pipeline of diffusers' kind."""
    import torch

    guidance = plan_of(case).request.guidance
    plain = plan_of(case).request

    def draw(turn: int) -> Pictures:
        seeds = range(SEED + turn, SEED + turn + case.pictures)
        images = pipe(
            [prompt_of(turn)] * case.pictures, num_inference_steps=case.steps, guidance_scale=guidance,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            width=plain.width, height=plain.height,
        ).images  # fmt: skip
        return as_pixels(images)

    return draw


def plan_of(case: Case) -> Plan:
    """Return what fewstep would run for a case."""
    import fewstep

    return fewstep.plan("a fox", case.steps, case.mode, model=case.model, **case.size)


def as_pixels(images: Iterable[Any]) -> Pictures:
    """Return PIL's images as one array."""
    return np.stack([np.asarray(image.convert("RGB"), dtype=np.uint8) for image in images])


def _model_folder(choice: EngineChoice) -> Path:
    """Return the folder of a model; raises `RequestError` where it is a single file."""
    model = choice.model
    weights = choose_weights(model, choice.recipe, "")
    checkpoint = weights is not None and weights.attach == "checkpoint" and bool(weights.source)
    source = weights.source if weights is not None and checkpoint else model.source
    root = hub.existing_path(source)
    if root is None:
        root = hub.fetch_folder(source, assets.model_files(model.architecture), model.revision)
    if not (root / "model_index.json").is_file():
        raise RequestError(f"model={model.name!r} is no diffusers folder: a comparison needs one")
    return root


def _class_of(config: Path) -> Any:
    """Return the class of diffusers that a configuration file names."""
    import diffusers

    return getattr(diffusers, json.loads(config.read_text(encoding="utf-8"))["_class_name"])


def _extras(root: Path) -> dict[str, Any]:
    """Return what a pipeline is told so that it does what fewstep does, and no more."""
    index = json.loads((root / "model_index.json").read_text(encoding="utf-8"))
    if "XL" in index["_class_name"]:
        return {"add_watermarker": False}
    return {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def _scheduler(choice: EngineChoice, config: Mapping[str, Any]) -> Any:
    """Return diffusers' scheduler that does what the mode's first sampler does."""
    import diffusers

    sampler = choice.recipe.samplers[0]
    if sampler not in SCHEDULERS:
        raise RequestError(
            f"mode={choice.recipe.mode!r} has no twin in diffusers that bench knows: choose turbo or lcm"
        )
    kind, changes = SCHEDULERS[sampler]
    return getattr(diffusers, kind).from_config({**config, **changes})


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep progress bars and remarks of loading off: a terminal is for the rows."""
    import diffusers.utils.logging
    import transformers.utils.logging

    libraries = (diffusers.utils.logging, transformers.utils.logging)
    levels = [library.get_verbosity() for library in libraries]
    for library in libraries:
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, level in zip(libraries, levels, strict=True):
            library.set_verbosity(level)
            library.enable_progress_bar()
