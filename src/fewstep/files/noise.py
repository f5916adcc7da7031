"""The noise process that a model's files say it was trained on: marks in a file, a scheduler's configuration.

What is read, and where it comes from:

    tensors v_pred, ztsnr            v-prediction, zero terminal SNR (NoobAI v-pred; ComfyUI reads them)
    tensors edm_vpred.sigma_max/_min EDM over v-prediction (CosXL)
    tensors edm_mean, edm_std        EDM (Playground v2.5)
    metadata modelspec.prediction_type  Stability's ModelSpec: "epsilon" or "v"; some write "flow"
    scheduler/scheduler_config.json  diffusers' classes, each with its own meaning of what is not there
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

from fewstep.errors import CorruptModelError
from fewstep.files.safetensors import Header, read_scalars
from fewstep.noise_process import (
    BETA_END,
    BETA_SCHEDULES,
    BETA_START,
    PREDICTIONS,
    SDXL_NOISE,
    SDXL_SIGMAS,
    TRAIN_STEPS,
    Edm,
    Flow,
    NoiseProcess,
    VariancePreserving,
    sigmas_of_betas,
    zero_terminal,
)

V_MARK, ZERO_TERMINAL_MARK = "v_pred", "ztsnr"  # tensors, whatever they hold
COSXL_MARKS = ("edm_vpred.sigma_max", "edm_vpred.sigma_min")
PLAYGROUND_MARKS = ("edm_mean", "edm_std")  # of its latents: mean and deviation, four numbers each
PREDICTION_KEY = "modelspec.prediction_type"
# How its value is written, in small letters.
WORDS: Mapping[str, str] = {
    **dict.fromkeys(("epsilon", "eps", "noise"), "epsilon"),
    **dict.fromkeys(("v", "v_prediction", "v-prediction", "v_pred", "v-pred", "vpred"), "v_prediction"),
    **dict.fromkeys(("sample", "x0"), "sample"),
    **dict.fromkeys(("flow", "flow_matching", "flow-matching", "rectified_flow", "flow_prediction"), "flow"),
}  # fmt: skip
FAR = 2.0**24  # no deviation is larger, and none smaller than its inverse

CONSISTENCY = ("LCMScheduler", "TCDScheduler")
NAMED_BETAS: Mapping[str, object] = {
    "beta_schedule": "scaled_linear", "beta_start": BETA_START, "beta_end": BETA_END,
    "num_train_timesteps": TRAIN_STEPS, "trained_betas": None,
}  # fmt: skip
LINEAR = (  # of these diffusers' defaults are SDXL's betas but for the schedule
    "DPMSolverSDEScheduler", "HeunDiscreteScheduler", "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
)  # fmt: skip
LEADING = (
    "DDIMScheduler",
    "DDIMParallelScheduler",
    "DDPMScheduler",
    "DDPMParallelScheduler",
    "PNDMScheduler",
)
PLAIN = (  # these have no rescale_betas_zero_snr: what a configuration carries of it does not act
    "DEISMultistepScheduler", "DPMSolverSDEScheduler", "DPMSolverSinglestepScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "LMSDiscreteScheduler", "PNDMScheduler",
)  # fmt: skip
BENDS = ("karras", "exponential", "beta", "lu", "flow")  # use_…_sigmas
FLOWS = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler")


@dataclass(frozen=True, kw_only=True)
class Noise:
    """A model's noise process, and how its files say it."""

    process: NoiseProcess = SDXL_NOISE
    source: str = ""  # what says so; "" where the files are silent
    spacing: str = ""  # the scheduler of fewstep's that is the model's own; "" is not said
    offset: int = 1  # added to each timestep of the scheduler "leading"
    fault: str = ""  # why it cannot be drawn, in a sentence; "" is fine
    notes: tuple[str, ...] = ()  # what every plan should say

    @property
    def title(self) -> str:
        """Return the process in words."""
        return title_of_process(self.process)

    @property
    def usual(self) -> bool:
        """Whether it is SDXL's own, which every few-step mode was distilled on."""
        return self.process == SDXL_NOISE


def title_of_process(process: NoiseProcess) -> str:
    """Return a noise process in words."""
    match process:
        case Edm():
            return (
                f"EDM, {process.prediction}, sigma {process.sigma_min:g} to {process.sigma_max:g}, "
                f"sigma_data {process.sigma_data:g}"
            )
        case Flow():
            return f"flow matching, shift {process.shift:g}"
        case VariancePreserving():
            end = ", zero terminal SNR" if process.sigmas[-1] > 1000 else ""
            betas = ", betas of its own" if process.sigmas not in (SDXL_SIGMAS, SDXL_ZERO_TERMINAL) else ""
            return f"variance-preserving, {process.prediction}{end}{betas}"
    return type(process).__name__


SDXL_ZERO_TERMINAL = zero_terminal(BETA_SCHEDULES["scaled_linear"](BETA_START, BETA_END))
# Of files that say nothing: SDXL's process, and the spacing of the folders that SDXL and SD are published in.
SILENT = Noise(spacing="leading")


# --- one file


def noise_of_file(header: Header) -> Noise:
    """Return what a single file says; raises `CorruptModelError` where a mark has no meaning."""
    names = header.tensors
    if any(mark in names for mark in COSXL_MARKS):
        return _noise_of_cosxl(header)
    if all(mark in names for mark in PLAYGROUND_MARKS):
        # ComfyUI's and diffusers' constants for it: its model card's scheduler_config.json.
        return Noise(
            process=Edm("epsilon", sigma_max=80.0, sigma_data=0.5), source="tensors edm_mean, edm_std",
            spacing="karras",
        )  # fmt: skip
    return _noise_of_marks(
        V_MARK in names, ZERO_TERMINAL_MARK in names, header.metadata.get(PREDICTION_KEY, "")
    )


def _noise_of_cosxl(header: Header) -> Noise:
    values = dict(zip(COSXL_MARKS, (120.0, 0.002), strict=True))  # CosXL's own, where one is not there
    for mark in COSXL_MARKS:
        if mark in header.tensors:
            read = read_scalars(header, [mark])
            if len(read) != 1:
                raise CorruptModelError(f"{header.path} has a tensor {mark} that is not one number")
            values[mark] = read[0]
    high, low = values.values()
    if not 1 / FAR < low < high < FAR:
        raise CorruptModelError(f"{header.path} has {COSXL_MARKS[0]}={high:g} and {COSXL_MARKS[1]}={low:g}")
    # sigma_data 1: ComfyUI's ModelSamplingContinuousEDM and diffusers' documentation of EDMEulerScheduler.
    return Noise(
        process=Edm("v_prediction", sigma_min=low, sigma_max=high, sigma_data=1.0),
        source="tensor edm_vpred.sigma_max", spacing="exponential",
    )  # fmt: skip


def _noise_of_marks(v: bool, zero: bool, written: str) -> Noise:
    """Return what the marks of one file, and its metadata, come to."""
    word = WORDS.get(written.strip().lower(), "")
    said, notes = f"metadata {PREDICTION_KEY}={written[:40]!r}", list[str]()
    if written and not word:
        notes.append(f"its {said} is none that fewstep knows: give prediction= where it is not epsilon")
    if word == "flow":
        return Noise(process=Flow(), source=said, spacing="linspace", notes=tuple(notes))
    prediction, source = word or "epsilon", said if word else ""
    marks = [name for name, there in ((V_MARK, v), (ZERO_TERMINAL_MARK, zero)) if there]
    if marks and word not in ("", "v_prediction"):
        notes.append(f"its tensor {marks[0]} says v_prediction and its {said}; the tensor is believed")
    if (
        marks
    ):  # zero terminal SNR alone: at pure noise, only v has the picture in it (arXiv:2305.08891, sec. 3.2)
        prediction, source = "v_prediction", f"tensor{'s' * (len(marks) - 1)} {', '.join(marks)}"
    sigmas = SDXL_ZERO_TERMINAL if zero else SDXL_SIGMAS
    return Noise(
        process=VariancePreserving(prediction, sigmas), source=source,
        spacing="trailing" if zero else SILENT.spacing,
        notes=tuple(notes),
    )  # fmt: skip


# --- a scheduler's configuration


def noise_of_scheduler(config: Mapping[str, Any], where: str) -> Noise:
    """Return what a scheduler's configuration says; raises `CorruptModelError` where it is none.

    `where` is whose it is, for errors.
    """
    name = str(config.get("_class_name", ""))
    if name.startswith("EDM"):
        return replace(_noise_of_edm(config, where), source=name)
    if "FlowM" in name or config.get("use_flow_sigmas"):
        return replace(_noise_of_flow(name, config, where), source=name)
    prediction = config.get("prediction_type", PREDICTIONS[0])
    if prediction not in PREDICTIONS:
        raise CorruptModelError(
            f"{where} has a scheduler with prediction_type={prediction!r:.80}, none of "
            + ", ".join(PREDICTIONS)
        )
    sigmas, fault = _sigmas_of_config(name, config, where)
    said = "prediction_type" in config
    spacing = _spacing_of_config(name, config)
    return Noise(
        process=VariancePreserving(str(prediction), sigmas), source=f"{name}'s configuration" if said else "",
        spacing=spacing, offset=_offset_of_config(config, where), fault=fault,
        notes=tuple(_notes_of_config(config, str(prediction), sigmas, spacing)),
    )  # fmt: skip


def _noise_of_edm(config: Mapping[str, Any], where: str) -> Noise:
    low, high, data, rho = (
        _number(config, key, default, where)
        for key, default in (("sigma_min", 0.002), ("sigma_max", 80.0), ("sigma_data", 0.5), ("rho", 7.0))
    )
    prediction, spacing = config.get("prediction_type", "epsilon"), config.get("sigma_schedule", "karras")
    if prediction not in PREDICTIONS[:2] or spacing not in ("karras", "exponential") or not low < high:
        raise CorruptModelError(
            f"{where} has an EDM scheduler with prediction_type={prediction!r:.80}, sigma_schedule="
            f"{spacing!r:.80}, sigma_min={low:g} and sigma_max={high:g}: it should have epsilon or "
            "v_prediction, karras or exponential, and the one below the other"
        )
    fault = (
        ""
        if rho == 7
        else f"its EDM scheduler has rho={rho:g}, and fewstep spaces sigmas with 7: set rho to 7"
    )
    process = Edm(str(prediction), sigma_min=low, sigma_max=high, sigma_data=data)
    return Noise(process=process, spacing=str(spacing), fault=fault)


def _noise_of_flow(name: str, config: Mapping[str, Any], where: str) -> Noise:
    shift = _number(config, "shift" if "FlowM" in name else "flow_shift", 1.0, where)
    odd = [key for key in ("use_dynamic_shifting", "shift_terminal", "invert_sigmas", "stochastic_sampling")
           if config.get(key)]  # fmt: skip
    odd += [f"use_{bend}_sigmas" for bend in BENDS[:4] if config.get(f"use_{bend}_sigmas")]
    if name not in FLOWS:
        odd.insert(0, f"the class {name}")
    if config.get("num_train_timesteps", TRAIN_STEPS) != TRAIN_STEPS:
        odd.append("num_train_timesteps")
    fault = (
        f"its scheduler says flow matching with {', '.join(odd)}, which fewstep does not run: give it a "
        f"FlowMatchEulerDiscreteScheduler with shift={shift:g} alone"
        if odd
        else ""
    )
    return Noise(process=Flow(shift), spacing="linspace", fault=fault)


def silent_betas(scheduler: str) -> Mapping[str, object]:
    """Return what a class of diffusers takes where a file is silent; a test reads the installed ones."""
    if scheduler in CONSISTENCY or scheduler == "":
        return NAMED_BETAS
    linear = {**NAMED_BETAS, "beta_schedule": "linear"}
    return linear if scheduler in LINEAR else {**linear, "beta_start": 0.0001, "beta_end": 0.02}


def has_zero_terminal(config: Mapping[str, Any]) -> bool:
    """Return whether a scheduler's betas are rescaled to zero terminal SNR."""
    return bool(config.get("rescale_betas_zero_snr")) and config.get("_class_name") not in PLAIN


def silent_spacing(scheduler: str) -> str:
    """Return a class's own timestep_spacing, likewise; "" where it has none."""
    if scheduler in (*LEADING, *CONSISTENCY):
        return "leading"
    return "" if scheduler in ("", "DPMSolverSinglestepScheduler", "IPNDMScheduler") else "linspace"


def _sigmas_of_config(name: str, config: Mapping[str, Any], where: str) -> tuple[tuple[float, ...], str]:
    """Return sigma by timestep, and what cannot be run of it."""
    silent = silent_betas(name)
    config_betas = {key: config.get(key, silent[key]) for key in NAMED_BETAS}
    if config_betas["num_train_timesteps"] != TRAIN_STEPS:
        count = config_betas["num_train_timesteps"]
        return (
            SDXL_SIGMAS,
            f"its scheduler has num_train_timesteps={count!r:.40}, and fewstep runs {TRAIN_STEPS}",
        )
    zero = has_zero_terminal(config)
    if config_betas == NAMED_BETAS:
        return (SDXL_ZERO_TERMINAL if zero else SDXL_SIGMAS), ""
    schedule, trained = config_betas["beta_schedule"], config_betas["trained_betas"]
    if trained is None and schedule not in BETA_SCHEDULES:
        return (
            SDXL_SIGMAS,
            f"its scheduler has beta_schedule={schedule!r:.40}, and fewstep runs {', '.join(BETA_SCHEDULES)}",
        )
    if trained is None:
        start, end = (_number(config_betas, key, 0.0, where) for key in ("beta_start", "beta_end"))
        trained = BETA_SCHEDULES[str(schedule)](start, end)
    betas = trained if isinstance(trained, list | tuple) else ()
    if len(betas) != TRAIN_STEPS or not all(_is_number(beta) and 0 < beta < 1 for beta in betas):
        raise CorruptModelError(
            f"{where} has a scheduler whose betas are not {TRAIN_STEPS} numbers between 0 and 1"
        )
    return (zero_terminal if zero else sigmas_of_betas)(betas), ""


def _spacing_of_config(name: str, config: Mapping[str, Any]) -> str:
    """Return which of fewstep's schedulers a configuration amounts to; "" where it is none."""
    if name in CONSISTENCY:
        return "lcm"  # these read no timestep_spacing
    bends = [bend for bend in BENDS if config.get(f"use_{bend}_sigmas") or config.get(f"use_{bend}_lambdas")]
    if bends:
        return bends[0] if bends[0] in ("karras", "exponential") else ""
    spacing = str(config.get("timestep_spacing") or silent_spacing(name))
    return spacing if spacing in ("leading", "trailing", "linspace") else ""


def _offset_of_config(config: Mapping[str, Any], where: str) -> int:
    offset = config.get("steps_offset", 0)
    if type(offset) is not int or not 0 <= offset < TRAIN_STEPS:
        raise CorruptModelError(
            f"{where} has a scheduler with steps_offset={offset!r:.40}: it should be 0 or 1"
        )
    return offset


def _notes_of_config(
    config: Mapping[str, Any], prediction: str, sigmas: tuple[float, ...], spacing: str
) -> Iterator[str]:
    if sigmas not in (SDXL_SIGMAS, SDXL_ZERO_TERMINAL):
        yield (
            "its scheduler's betas are not those of Stable Diffusion (scaled_linear, 0.00085 to 0.012), and "
            "are run as they are: where pictures are noise, the folder's scheduler is not the model's"
        )
    if has_zero_terminal(config) and prediction == "epsilon":
        yield (
            "its scheduler has zero terminal SNR with prediction_type='epsilon', which cannot tell a picture "
            "from pure noise: give prediction='v_prediction' if the model was trained so"
        )
    bent = [
        bend
        for bend in ("beta", "lu")
        if config.get(f"use_{bend}_sigmas") or config.get(f"use_{bend}_lambdas")
    ]
    if bent and not spacing:
        yield f"its scheduler spaces levels by {bent[0]!r}, which fewstep has not: the mode's own is run"


def _number(config: Mapping[str, Any], key: str, default: float, where: str) -> float:
    """Return a number above 0."""
    value = config.get(key, default)
    value = default if value is None else value
    if not _is_number(value) or not 1 / FAR < value < FAR:
        raise CorruptModelError(
            f"{where} has a scheduler with {key}={value!r:.80}: it should be a number above 0"
        )
    return float(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
