"""Is the pipeline's scheduler what the mode steps by, on its levels, over SDXL's noise?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fewstep.checking.case import LEVELS, Case, Finding, Severity
from fewstep.files.noise import CONSISTENCY, NAMED_BETAS, has_zero_terminal, silent_betas, silent_spacing
from fewstep.noise_process import VariancePreserving
from fewstep.schedulers import leading

SHAPES = ("karras", "exponential", "beta", "lu", "flow")
STARTS = ("leading", "linspace")  # with few steps these start low
ENOUGH = 10  # steps: from here on even "leading" starts above timestep 900


@dataclass(frozen=True, kw_only=True)
class Field:
    """One argument that has one right value wherever it acts."""

    key: str
    needed: object
    reason: str
    severity: Severity
    acts: tuple[str, ...] = ()  # on these classes; () is all


REST = "noise of sigma 0.029 stays in the picture"
FIELDS = (
    Field(
        key="original_inference_steps", needed=50, acts=CONSISTENCY, severity="wrong",
        reason="its levels are then not those that the weights were distilled on (arXiv:2310.04378, "
        "sec. 4.3)",
    ),
    Field(
        key="clip_sample", needed=False, acts=("DDIMScheduler", "DDPMScheduler", *CONSISTENCY),
        severity="wrong", reason="latents, which go beyond, are cut to [-1, 1]: colours wash out",
    ),
    Field(
        key="thresholding", needed=False, severity="wrong",
        reason="a rule for pixels, which breaks latents (diffusers' own documentation)",
    ),
    Field(key="set_alpha_to_one", needed=True, acts=("DDIMScheduler",), severity="doubtful", reason=REST),
    Field(key="final_sigmas_type", needed="zero", severity="doubtful", reason=REST),
)  # fmt: skip


def check_scheduler(case: Case) -> Iterator[Finding]:
    """Yield what is wrong with its class, its levels, and what it makes of them."""
    if not isinstance(case.noise.process, VariancePreserving):
        yield from _check_other_process(case)
        return
    misfits = list(_check_class(case))
    yield from misfits or _check_levels(case)
    config = case.pipeline.parts["scheduler"]
    for field in FIELDS:
        value = config.get(field.key, field.needed)
        if value != field.needed and (not field.acts or case.pipeline.scheduler in field.acts):
            yield Finding(
                what=f"the scheduler has {field.key}={value!r}, and needs {field.needed!r}: {field.reason}",
                mend=case.rescheduled(**{field.key: field.needed}),
                severity=field.severity,
            )
    yield from _check_betas(case, config)
    yield from _check_prediction(case, config)


def _check_other_process(case: Case) -> Iterator[Finding]:
    """Yield what EDM and flow matching mean for a mode: no argument makes the usual process of them."""
    scheduler, title = case.pipeline.scheduler, case.noise.title
    if case.noise.fault:
        yield Finding(what=case.noise.fault, mend="")
    if case.distilled:
        yield Finding(
            what=f"the scheduler, {scheduler}, says {title}, and mode {case.mode!r} was distilled on the "
            "variance-preserving process of Stable Diffusion: no line mends that; use mode='base'",
            mend="",
        )
    elif scheduler.startswith("FlowMatch"):
        yield Finding(
            what=f"the scheduler, {scheduler}, says {title}, and diffusers' SDXL pipeline cannot run it: it "
            "asks for scale_model_input, which this class has not; fewstep draws with the folder as it is",
            mend="",
        )


def _check_class(case: Case) -> Iterator[Finding]:
    scheduler, fitting = case.pipeline.scheduler, case.steppers
    if case.distilled and fitting and scheduler not in [stepper.name for stepper in fitting]:
        names = " or ".join(stepper.name for stepper in fitting)
        yield Finding(
            what=f"the scheduler is {scheduler}, and mode {case.mode!r} steps by {names}: pictures come out "
            "as noise, or blurred",
            mend=case.rescheduled(**LEVELS.get(case.scheduler_name, {})),
        )
    elif not case.distilled and scheduler in CONSISTENCY:
        yield Finding(
            what=f"the scheduler is {scheduler}, made for other weights than those of mode {case.mode!r}: "
            "pictures come out blurred, or as noise",
            mend="pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config, "
            "timestep_spacing='trailing')",
        )


def _check_levels(case: Case) -> Iterator[Finding]:
    config = case.pipeline.parts["scheduler"]
    levels = _our_scheduler_name(case.pipeline.scheduler, config)
    steps = case.planned.steps or case.recipe.steps.default
    if case.distilled and case.scheduler_name and levels not in case.recipe.schedulers:
        start_note = f": with {steps} steps it starts at timestep {_first_timestep(levels, steps)}, not 999"
        yield Finding(
            what=f"the scheduler's levels are {levels!r}, and mode {case.mode!r} was made on "
            f"{' or '.join(map(repr, case.recipe.schedulers))}{start_note * (levels in STARTS)}; noise stays "
            "in the picture, or it blurs",
            mend=case.rescheduled(
                **{**dict.fromkeys(_active_sigma_switches(config), False), **LEVELS[case.scheduler_name]}
            ),
        )
    elif not case.distilled and levels == "leading" and steps < ENOUGH:
        yield Finding(
            what=f"the scheduler's levels are 'leading': with {steps} steps it starts at timestep "
            f"{_first_timestep(levels, steps)}, not 999, on latents of pure noise: grey pictures, or noise",
            mend=case.rescheduled(timestep_spacing="trailing"),
        )
    elif levels == "leading" and config.get("steps_offset", 0) != 1:
        yield Finding(
            what=f"the scheduler has steps_offset={config.get('steps_offset', 0)!r}, and SDXL's has 1: every "
            "level is one timestep too low",
            mend=case.rescheduled(steps_offset=1),
            severity="doubtful",
        )


def _first_timestep(levels: str, steps: int) -> int:
    """Return the first timestep; of "linspace" (numpy's), one step is the last."""
    if levels == "linspace":
        return 999 if steps > 1 else 0
    return round(leading(steps).timesteps[0])


def _our_scheduler_name(name: str, config: Mapping[str, Any]) -> str:
    """Return which of our schedulers a configuration amounts to, or the name of another."""
    if name in CONSISTENCY:
        return "lcm"  # these read no timestep_spacing
    for shape in _active_sigma_switches(config):
        return shape.removeprefix("use_").removesuffix("_sigmas")
    return str(config.get("timestep_spacing", silent_spacing(name) or "linspace"))  # where a file is silent


def _active_sigma_switches(config: Mapping[str, Any]) -> list[str]:
    """Return which switches are on that bend levels whatever their spacing."""
    return [f"use_{shape}_sigmas" for shape in SHAPES if config.get(f"use_{shape}_sigmas")]


def _check_betas(case: Case, config: Mapping[str, Any]) -> Iterator[Finding]:
    defaults = silent_betas(case.pipeline.scheduler)
    betas = {key: config.get(key, defaults[key]) for key in NAMED_BETAS}
    wrong_betas = {key: value for key, value in betas.items() if value != NAMED_BETAS[key]}
    if wrong_betas:
        listing = ", ".join(f"{key}={value!r}" for key, value in wrong_betas.items())
        needed_betas = {key: NAMED_BETAS[key] for key in wrong_betas}
        yield Finding(
            what=f"the scheduler's noise is not SDXL's ({listing}), as when it was made without the model's "
            "configuration: every level is taken for another, and noise stays in the picture",
            mend=case.rescheduled(**needed_betas),
        )


def _check_prediction(case: Case, config: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield where the scheduler takes the UNet's answer for something else."""
    prediction, needed = config.get("prediction_type", "epsilon"), case.recipe.prediction
    velocity = any(sign in _source_names(case) for sign in ("v-pred", "v_pred", "vpred"))
    adapter = case.weights is not None and case.weights.attach == "adapter"
    if needed and prediction != needed:
        yield _wrong_prediction(
            case, prediction, needed, f"the UNet of mode {case.mode!r} answers with {needed!r}"
        )
    elif not needed and velocity and prediction != "v_prediction":
        yield _wrong_prediction(
            case, prediction, "v_prediction", "the model's name says v-prediction", "doubtful"
        )
    elif adapter and case.distilled and not needed and prediction == "v_prediction" and not case.bundled:
        yield Finding(  # what the UNet answers with is the model's own, whatever LoRA is on it
            what=f"the model is {case.noise.title}, by its scheduler, and the LoRA of mode {case.mode!r} was "
            "distilled on epsilon: expect weaker pictures, unless it was trained on this very model",
            mend="",
            severity="doubtful",
        )
    elif not needed and prediction == "v_prediction" and case.distilled and not velocity and not case.bundled:
        severity: Severity = "doubtful" if case.weights is None else "wrong"
        yield _wrong_prediction(
            case, prediction, "epsilon", f"mode {case.mode!r} was distilled on epsilon", severity
        )
    elif not needed and prediction not in ("epsilon", "v_prediction"):
        yield _wrong_prediction(case, prediction, "epsilon", "SDXL's UNet answers with the noise, 'epsilon'")
    if has_zero_terminal(config) and prediction == "epsilon":
        yield Finding(
            what="the scheduler has rescale_betas_zero_snr=True with prediction_type='epsilon': at the first "
            "level there is then no picture left to tell from noise, and numbers overflow",
            mend=case.rescheduled(rescale_betas_zero_snr=False),
        )


def _wrong_prediction(
    case: Case, prediction: object, needed: str, reason: str, severity: Severity = "wrong"
) -> Finding:
    return Finding(
        what=f"the scheduler has prediction_type={prediction!r}, and needs {needed!r}: {reason}; "
        "taken for the other, it makes noise or burnt colours",
        mend=case.rescheduled(prediction_type=needed),
        severity=severity,
    )


def _source_names(case: Case) -> str:
    unet = case.pipeline.parts["unet"].get("_name_or_path", "")
    return f"{case.pipeline.source} {unet}".lower()
