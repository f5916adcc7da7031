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
    right: object
    why: str
    severity: Severity
    acts: tuple[str, ...] = ()  # on these classes; () is all


REST = "noise of sigma 0.029 stays in the picture"
FIELDS = (
    Field(
        key="original_inference_steps", right=50, acts=CONSISTENCY, severity="wrong",
        why="its levels are then not those that the weights were distilled on (arXiv:2310.04378, sec. 4.3)",
    ),
    Field(
        key="clip_sample", right=False, acts=("DDIMScheduler", "DDPMScheduler", *CONSISTENCY),
        severity="wrong", why="latents, which go beyond, are cut to [-1, 1]: colours wash out",
    ),
    Field(
        key="thresholding", right=False, severity="wrong",
        why="a rule for pixels, which breaks latents (diffusers' own documentation)",
    ),
    Field(key="set_alpha_to_one", right=True, acts=("DDIMScheduler",), severity="doubtful", why=REST),
    Field(key="final_sigmas_type", right="zero", severity="doubtful", why=REST),
)  # fmt: skip


def check_scheduler(case: Case) -> Iterator[Finding]:
    """Class, levels, and what it makes of them."""
    if not isinstance(case.noise.process, VariancePreserving):
        yield from _check_other_process(case)
        return
    misfits = list(_check_class(case))
    yield from misfits or _check_levels(case)
    config = case.pipeline.parts["scheduler"]
    for field in FIELDS:
        value = config.get(field.key, field.right)
        if value != field.right and (not field.acts or case.pipeline.scheduler in field.acts):
            yield Finding(
                what=f"the scheduler has {field.key}={value!r}, and needs {field.right!r}: {field.why}",
                mend=case.rescheduled(**{field.key: field.right}),
                severity=field.severity,
            )
    yield from _check_betas(case, config)
    yield from _check_prediction(case, config)


def _check_other_process(case: Case) -> Iterator[Finding]:
    """EDM and flow matching: nothing else that is looked at acts, and no argument makes VP of them."""
    own, title = case.pipeline.scheduler, case.noise.title
    if case.noise.fault:
        yield Finding(what=case.noise.fault, mend="")
    if case.distilled:
        yield Finding(
            what=f"the scheduler, {own}, says {title}, and mode {case.mode!r} was distilled on the "
            "variance-preserving process of Stable Diffusion: no line mends that; use mode='base'",
            mend="",
        )
    elif own.startswith("FlowMatch"):
        yield Finding(
            what=f"the scheduler, {own}, says {title}, and diffusers' SDXL pipeline cannot run it: it asks "
            "for scale_model_input, which this class has not; fewstep draws with the folder as it is",
            mend="",
        )


def _check_class(case: Case) -> Iterator[Finding]:
    own, fitting = case.pipeline.scheduler, case.steppers
    if case.distilled and fitting and own not in [one.name for one in fitting]:
        names = " or ".join(one.name for one in fitting)
        yield Finding(
            what=f"the scheduler is {own}, and mode {case.mode!r} steps by {names}: pictures come out as "
            "noise, or blurred",
            mend=case.rescheduled(**LEVELS.get(case.scheduler_name, {})),
        )
    elif not case.distilled and own in CONSISTENCY:
        yield Finding(
            what=f"the scheduler is {own}, made for other weights than those of mode {case.mode!r}: "
            "pictures come out blurred, or as noise",
            mend="pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config, "
            "timestep_spacing='trailing')",
        )


def _check_levels(case: Case) -> Iterator[Finding]:
    config = case.pipeline.parts["scheduler"]
    made = _our_scheduler_name(case.pipeline.scheduler, config)
    steps = case.asked.steps or case.recipe.steps.default
    if case.distilled and case.scheduler_name and made not in case.recipe.schedulers:
        first = f": with {steps} steps it starts at timestep {_first_timestep(made, steps)}, not 999"
        yield Finding(
            what=f"the scheduler's levels are {made!r}, and mode {case.mode!r} was made on "
            f"{' or '.join(map(repr, case.recipe.schedulers))}{first * (made in STARTS)}; noise stays in the "
            "picture, or it blurs",
            mend=case.rescheduled(
                **{**dict.fromkeys(_active_sigma_switches(config), False), **LEVELS[case.scheduler_name]}
            ),
        )
    elif not case.distilled and made == "leading" and steps < ENOUGH:
        yield Finding(
            what=f"the scheduler's levels are 'leading': with {steps} steps it starts at timestep "
            f"{_first_timestep(made, steps)}, not 999, on latents of pure noise: grey pictures, or noise",
            mend=case.rescheduled(timestep_spacing="trailing"),
        )
    elif made == "leading" and config.get("steps_offset", 0) != 1:
        yield Finding(
            what=f"the scheduler has steps_offset={config.get('steps_offset', 0)!r}, and SDXL's has 1: every "
            "level is one timestep too low",
            mend=case.rescheduled(steps_offset=1),
            severity="doubtful",
        )


def _first_timestep(made: str, steps: int) -> int:
    """The first timestep; of "linspace" (numpy's), one step is the last."""
    if made == "linspace":
        return 999 if steps > 1 else 0
    return round(leading(steps).timesteps[0])


def _our_scheduler_name(name: str, config: Mapping[str, Any]) -> str:
    """Which of our schedulers a configuration amounts to, or the name of another."""
    if name in CONSISTENCY:
        return "lcm"  # these read no timestep_spacing
    for shape in _active_sigma_switches(config):
        return shape.removeprefix("use_").removesuffix("_sigmas")
    return str(config.get("timestep_spacing", silent_spacing(name) or "linspace"))  # where a file is silent


def _active_sigma_switches(config: Mapping[str, Any]) -> list[str]:
    """The switches, of those that bend levels whatever their spacing, that are on."""
    return [f"use_{shape}_sigmas" for shape in SHAPES if config.get(f"use_{shape}_sigmas")]


def _check_betas(case: Case, config: Mapping[str, Any]) -> Iterator[Finding]:
    silent = silent_betas(case.pipeline.scheduler)
    given = {key: config.get(key, silent[key]) for key in NAMED_BETAS}
    off = {key: value for key, value in given.items() if value != NAMED_BETAS[key]}
    if off:
        told = ", ".join(f"{key}={value!r}" for key, value in off.items())
        right = {key: NAMED_BETAS[key] for key in off}
        yield Finding(
            what=f"the scheduler's noise is not SDXL's ({told}), as when it was made without the model's "
            "configuration: every level is taken for another, and noise stays in the picture",
            mend=case.rescheduled(**right),
        )


def _check_prediction(case: Case, config: Mapping[str, Any]) -> Iterator[Finding]:
    """What the UNet answers with must be what the scheduler takes it for."""
    own, needed = config.get("prediction_type", "epsilon"), case.recipe.prediction
    velocity = any(sign in _source_names(case) for sign in ("v-pred", "v_pred", "vpred"))
    adapter = case.weights is not None and case.weights.attach == "adapter"
    if needed and own != needed:
        yield _wrong_prediction(case, own, needed, f"the UNet of mode {case.mode!r} answers with {needed!r}")
    elif not needed and velocity and own != "v_prediction":
        yield _wrong_prediction(case, own, "v_prediction", "the model's name says v-prediction", "doubtful")
    elif adapter and case.distilled and not needed and own == "v_prediction" and not case.bundled:
        yield Finding(  # what the UNet answers with is the model's own, whatever LoRA is on it
            what=f"the model is {case.noise.title}, by its scheduler, and the LoRA of mode {case.mode!r} was "
            "distilled on epsilon: expect weaker pictures, unless it was trained on this very model",
            mend="",
            severity="doubtful",
        )
    elif not needed and own == "v_prediction" and case.distilled and not velocity and not case.bundled:
        severity: Severity = "doubtful" if case.weights is None else "wrong"
        yield _wrong_prediction(
            case, own, "epsilon", f"mode {case.mode!r} was distilled on epsilon", severity
        )
    elif not needed and own not in ("epsilon", "v_prediction"):
        yield _wrong_prediction(case, own, "epsilon", "SDXL's UNet answers with the noise, 'epsilon'")
    if has_zero_terminal(config) and own == "epsilon":
        yield Finding(
            what="the scheduler has rescale_betas_zero_snr=True with prediction_type='epsilon': at the first "
            "level there is then no picture left to tell from noise, and numbers overflow",
            mend=case.rescheduled(rescale_betas_zero_snr=False),
        )


def _wrong_prediction(
    case: Case, own: object, needed: str, why: str, severity: Severity = "wrong"
) -> Finding:
    return Finding(
        what=f"the scheduler has prediction_type={own!r}, and needs {needed!r}: {why}; taken for the other, "
        "it makes noise or burnt colours",
        mend=case.rescheduled(prediction_type=needed),
        severity=severity,
    )


def _source_names(case: Case) -> str:
    unet = case.pipeline.parts["unet"].get("_name_or_path", "")
    return f"{case.pipeline.source} {unet}".lower()
