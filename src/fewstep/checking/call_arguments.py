"""Is the call what the mode was made for? And the line that is."""

from __future__ import annotations

from collections.abc import Iterator

from fewstep.checking.case import Case, Finding, Severity
from fewstep.errors import RequestError
from fewstep.files.config import trained_size
from fewstep.request.limits import size_fits

STRENGTHS = {"Img2Img": 0.3, "Inpaint": 0.9999}  # what diffusers' SDXL pipelines take where none is given
PICTURES = {"Img2Img": ("image=image",), "Inpaint": ("image=image", "mask_image=mask")}


def check_call(case: Case) -> Iterator[Finding]:
    """Yield what is wrong with the arguments of the call, and with the default size where it has none."""
    rules = (_check_steps, _check_timesteps, _check_eta, _check_guidance, _check_negative_prompt, _check_size)
    for rule in rules:
        for message, severity in rule(case):
            yield Finding(what=message, mend=call_line(case), severity=severity)


Faults = Iterator[tuple[str, Severity]]


def call_line(case: Case) -> str:
    """Return the call with what is wrong put right, and with what the pipeline would take otherwise."""
    planned, stepper, scale = case.planned, case.stepper, _legal_guidance_scale(case)
    arguments = list(_pictures_of_call(case))
    if planned.negative_prompt and case.recipe.guidance.kind == "cfg":
        arguments.append(f"negative_prompt={planned.negative_prompt!r}")
    levels = needed_timesteps(case)
    arguments.append(
        f"timesteps={levels}" if levels else f"num_inference_steps={_steps_to_ask_diffusers(case)}"
    )
    arguments.append(f"guidance_scale={scale:g}")
    if planned.strength is not None:
        arguments.append(f"strength={planned.strength:g}")
    if _eta_of_mode(case) and stepper is not None and stepper.name == "TCDScheduler":
        arguments.append(f"eta={_eta_of_mode(case):g}")
    trained = case.trained_side if any(_check_size(case)) else None
    sides = {"width": trained or planned.width, "height": trained or planned.height}
    arguments += [f"{name}={pixels}" for name, pixels in sides.items() if pixels]
    return f"pipe(prompt, {', '.join(arguments)})"


def needed_timesteps(case: Case) -> list[int]:
    """Return levels that no configuration of the class makes, and that the call must name; [] is none."""
    if case.scheduler_name or case.stepper is None or not case.stepper.explicit:
        return []
    recipe = case.recipe
    steps = case.planned.steps
    count = steps if steps is not None and case.steps_fit(steps) else recipe.steps.default
    return [round(t) for t in recipe.schedule(recipe.schedulers[0], count, 1.0).timesteps]


def _task_of_call(case: Case) -> str:
    return next((task for task in STRENGTHS if task in case.pipeline.kind), "")


def _pictures_of_call(case: Case) -> tuple[str, ...]:
    return PICTURES.get(_task_of_call(case), ())


def _steps_diffusers_runs(case: Case, steps: int) -> int:
    """Return how many of these steps diffusers runs (`get_timesteps` of its image pipelines)."""
    strength = (
        case.planned.strength
        if case.planned.strength is not None
        else STRENGTHS.get(_task_of_call(case), 1.0)
    )
    return min(int(steps * strength), steps)


def _steps_to_ask_diffusers(case: Case) -> int:
    """Return a number of steps of which diffusers runs as many as the mode was made for."""
    steps, rule = case.planned.steps, case.recipe.steps
    if steps is not None and case.steps_fit(_steps_diffusers_runs(case, steps)):
        return steps
    strength = case.planned.strength
    if strength == 0 or (strength is None and not _task_of_call(case)):
        return rule.default
    return next(n for n in range(rule.default, 1_000_000) if _steps_diffusers_runs(case, n) >= rule.default)


def _check_steps(case: Case) -> Faults:
    steps, rule = case.planned.steps, case.recipe.steps
    if steps is None or case.planned.timesteps is not None:
        return
    run = _steps_diffusers_runs(case, steps)
    if run < 1:
        yield f"steps={steps}: diffusers runs int(steps * strength) of them, which is 0, and fails", "wrong"
    elif not case.steps_fit(run):
        legal = f"{rule.low} to {rule.high}" if rule.low < rule.high else f"exactly {rule.high}"
        note = f", of which diffusers runs int(steps * strength) = {run}" if run != steps else ""
        yield f"steps={steps}{note}: these weights of mode {case.mode!r} were made for {legal}", "wrong"


def _check_timesteps(case: Case) -> Faults:
    timesteps, needed = case.planned.timesteps, needed_timesteps(case)
    if timesteps is None and needed and case.planned.steps is not None:
        own_scheduler = case.recipe.schedulers[0] in case.recipe.own_schedulers
        yield (
            f"no timesteps are given, and mode {case.mode!r} was made on {needed}, which "
            f"{case.pipeline.scheduler} does not run by itself",
            "wrong" if own_scheduler else "doubtful",
        )
    elif timesteps is not None and not any(
        list(timesteps) == levels for levels in _legal_timesteps(case, len(timesteps))
    ):
        levels = next(_legal_timesteps(case, case.recipe.steps.default), [])
        yield f"timesteps={list(timesteps)}: mode {case.mode!r} was made on others, such as {levels}", "wrong"


def _legal_timesteps(case: Case, steps: int) -> Iterator[list[int]]:
    """Yield the levels of each of the mode's schedulers for as many steps."""
    for name in case.recipe.schedulers:
        if case.steps_fit(steps):
            try:
                yield [round(t) for t in case.recipe.schedule(name, steps, 1.0).timesteps]
            except RequestError:
                continue


def _eta_of_mode(case: Case) -> float:
    """Return the mode's own share of fresh noise; diffusers' pipeline takes 0 where the call names none."""
    return case.recipe.sampler(case.recipe.samplers[0]).eta


def _check_eta(case: Case) -> Faults:
    planned, needed = case.planned, _eta_of_mode(case)
    eta = 0.0 if planned.eta is None else planned.eta
    if planned.says_anything and case.pipeline.scheduler == "TCDScheduler" and eta != needed:
        default_note = ", which diffusers takes where none is given" if planned.eta is None else ""
        yield f"eta={eta:g}{default_note}: mode {case.mode!r} was made with {needed:g}", "doubtful"


def _check_guidance(case: Case) -> Faults:
    guidance, rule = case.planned.guidance, case.recipe.guidance
    if guidance is None:
        return
    if rule.kind == "none" and guidance > 1:
        yield (
            f"guidance_scale={guidance:g}: mode {case.mode!r} was distilled without; above 1 every step "
            "takes twice the time, and colours burn",
            "wrong",
        )
    legal = f"mode {case.mode!r} was made for {rule.low:g} to {rule.high:g}"
    if rule.kind == "embedded" and not rule.low <= guidance <= rule.high:
        yield (
            f"guidance_scale={guidance:g} reaches the UNet as w = {guidance - 1:g}: {legal}, and it cannot "
            "be switched off; pictures come out washed or burnt",
            "wrong",
        )
    if rule.kind == "cfg" and not rule.low <= max(guidance, 1.0) <= rule.high:
        yield f"guidance_scale={guidance:g}: {legal}; pictures come out washed or burnt", "wrong"


def _legal_guidance_scale(case: Case) -> float:
    """Return a legal guidance in diffusers' words: 0 is off; above 1 where a negative prompt has to act."""
    rule, guidance = case.recipe.guidance, case.planned.guidance
    if rule.kind == "none":
        return guidance if guidance is not None and guidance <= 1 else 0.0
    if rule.kind == "cfg" and case.planned.negative_prompt and max(guidance or 0.0, rule.default) <= 1:
        return (1 + rule.high) / 2
    legal = guidance is not None and not any(_check_guidance(case)) and not any(_check_negative_prompt(case))
    return guidance if legal and guidance is not None else rule.default


def _check_negative_prompt(case: Case) -> Faults:
    rule, guidance = case.recipe.guidance, case.planned.guidance
    if not case.planned.negative_prompt:
        return
    if rule.kind != "cfg":
        reason = "has its guidance inside the UNet" if rule.kind == "embedded" else "was distilled without"
        yield f"negative_prompt does nothing: mode {case.mode!r} {reason}; use 'lcm-lora' or 'base'", "wrong"
    elif guidance is not None and guidance <= 1:
        yield f"negative_prompt does nothing at guidance_scale={guidance:g}, which is off: raise it", "wrong"


def _check_size(case: Case) -> Faults:
    """Yield what is wrong with the size: the call's, the picture's, or the pipeline's own."""
    side = trained_size(case.pipeline.parts["unet"], case.pipeline.source)
    width, height, trained = case.planned.width or side, case.planned.height or side, case.trained_side
    if _task_of_call(case) and not (case.planned.width or case.planned.height):
        return  # the picture's
    if not size_fits(width, height, trained):
        default_note = (
            ", the pipeline's own default," if not (case.planned.width or case.planned.height) else ""
        )
        yield (
            f"width={width}, height={height}{default_note} is not what mode {case.mode!r} was trained at, "
            f"{trained}x{trained}: subjects double or distort",
            "wrong",
        )
