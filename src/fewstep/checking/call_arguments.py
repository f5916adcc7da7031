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
    """Every choice that was told; and the pipeline's own size, which acts where none is."""
    rules = (_check_steps, _check_timesteps, _check_eta, _check_guidance, _check_negative_prompt, _check_size)
    for rule in rules:
        for what, severity in rule(case):
            yield Finding(what=what, mend=call_line(case), severity=severity)


Told = Iterator[tuple[str, Severity]]


def call_line(case: Case) -> str:
    """The call as told, what is wrong in it put right, what the pipeline would take otherwise said."""
    asked, stepper, scale = case.asked, case.stepper, _legal_guidance_scale(case)
    words = list(_pictures_of_call(case))
    if asked.negative_prompt and case.recipe.guidance.kind == "cfg":
        words.append(f"negative_prompt={asked.negative_prompt!r}")
    levels = needed_timesteps(case)
    words.append(f"timesteps={levels}" if levels else f"num_inference_steps={_steps_to_ask_diffusers(case)}")
    words.append(f"guidance_scale={scale:g}")
    if asked.strength is not None:
        words.append(f"strength={asked.strength:g}")
    if _eta_of_mode(case) and stepper is not None and stepper.name == "TCDScheduler":
        words.append(f"eta={_eta_of_mode(case):g}")
    trained = case.trained_side if any(_check_size(case)) else None
    sides = {"width": trained or asked.width, "height": trained or asked.height}
    words += [f"{name}={pixels}" for name, pixels in sides.items() if pixels]
    return f"pipe(prompt, {', '.join(words)})"


def needed_timesteps(case: Case) -> list[int]:
    """The levels that no configuration of the class makes, and that the call must name; [] is none."""
    if case.scheduler_name or case.stepper is None or not case.stepper.explicit:
        return []
    recipe = case.recipe
    steps = case.asked.steps
    count = steps if steps is not None and case.steps_fit(steps) else recipe.steps.default
    return [round(t) for t in recipe.schedule(recipe.schedulers[0], count, 1.0).timesteps]


def _task_of_call(case: Case) -> str:
    return next((task for task in STRENGTHS if task in case.pipeline.kind), "")


def _pictures_of_call(case: Case) -> tuple[str, ...]:
    return PICTURES.get(_task_of_call(case), ())


def _steps_diffusers_runs(case: Case, steps: int) -> int:
    """How many steps diffusers runs of those given (`get_timesteps` of its image pipelines)."""
    strength = (
        case.asked.strength if case.asked.strength is not None else STRENGTHS.get(_task_of_call(case), 1.0)
    )
    return min(int(steps * strength), steps)


def _steps_to_ask_diffusers(case: Case) -> int:
    """A number of steps of which diffusers runs as many as the mode was made for."""
    asked, rule = case.asked.steps, case.recipe.steps
    if asked is not None and case.steps_fit(_steps_diffusers_runs(case, asked)):
        return asked
    strength = case.asked.strength
    if strength == 0 or (strength is None and not _task_of_call(case)):
        return rule.default
    return next(n for n in range(rule.default, 1_000_000) if _steps_diffusers_runs(case, n) >= rule.default)


def _check_steps(case: Case) -> Told:
    asked, rule = case.asked.steps, case.recipe.steps
    if asked is None or case.asked.timesteps is not None:
        return
    run = _steps_diffusers_runs(case, asked)
    if run < 1:
        yield f"steps={asked}: diffusers runs int(steps * strength) of them, which is 0, and fails", "wrong"
    elif not case.steps_fit(run):
        legal = f"{rule.low} to {rule.high}" if rule.low < rule.high else f"exactly {rule.high}"
        real = f", of which diffusers runs int(steps * strength) = {run}" if run != asked else ""
        yield f"steps={asked}{real}: these weights of mode {case.mode!r} were made for {legal}", "wrong"


def _check_timesteps(case: Case) -> Told:
    given, needed = case.asked.timesteps, needed_timesteps(case)
    if given is None and needed and case.asked.steps is not None:
        own = case.recipe.schedulers[0] in case.recipe.own_schedulers
        yield (
            f"no timesteps are given, and mode {case.mode!r} was made on {needed}, which "
            f"{case.pipeline.scheduler} does not run by itself",
            "wrong" if own else "doubtful",
        )
    elif given is not None and not any(
        list(given) == levels for levels in _legal_timesteps(case, len(given))
    ):
        levels = next(_legal_timesteps(case, case.recipe.steps.default), [])
        yield f"timesteps={list(given)}: mode {case.mode!r} was made on others, such as {levels}", "wrong"


def _legal_timesteps(case: Case, steps: int) -> Iterator[list[int]]:
    """The levels of each of the mode's schedulers for as many steps."""
    for name in case.recipe.schedulers:
        if case.steps_fit(steps):
            try:
                yield [round(t) for t in case.recipe.schedule(name, steps, 1.0).timesteps]
            except RequestError:
                continue


def _eta_of_mode(case: Case) -> float:
    """The mode's own share of fresh noise; diffusers' pipeline gives 0 where the call names none."""
    return case.recipe.sampler(case.recipe.samplers[0]).eta


def _check_eta(case: Case) -> Told:
    asked, right = case.asked, _eta_of_mode(case)
    given = 0.0 if asked.eta is None else asked.eta
    if asked.told and case.pipeline.scheduler == "TCDScheduler" and given != right:
        unsaid = ", which diffusers takes where none is given" if asked.eta is None else ""
        yield f"eta={given:g}{unsaid}: mode {case.mode!r} was made with {right:g}", "doubtful"


def _check_guidance(case: Case) -> Told:
    given, rule = case.asked.guidance, case.recipe.guidance
    if given is None:
        return
    if rule.kind == "none" and given > 1:
        yield (
            f"guidance_scale={given:g}: mode {case.mode!r} was distilled without; above 1 every step takes "
            "twice the time, and colours burn",
            "wrong",
        )
    legal = f"mode {case.mode!r} was made for {rule.low:g} to {rule.high:g}"
    if rule.kind == "embedded" and not rule.low <= given <= rule.high:
        yield (
            f"guidance_scale={given:g} reaches the UNet as w = {given - 1:g}: {legal}, and it cannot be "
            "switched off; pictures come out washed or burnt",
            "wrong",
        )
    if rule.kind == "cfg" and not rule.low <= max(given, 1.0) <= rule.high:
        yield f"guidance_scale={given:g}: {legal}; pictures come out washed or burnt", "wrong"


def _legal_guidance_scale(case: Case) -> float:
    """A legal guidance in diffusers' words, where 0 says off; above 1 where a negative prompt is to act."""
    rule, given = case.recipe.guidance, case.asked.guidance
    if rule.kind == "none":
        return given if given is not None and given <= 1 else 0.0
    if rule.kind == "cfg" and case.asked.negative_prompt and max(given or 0.0, rule.default) <= 1:
        return (1 + rule.high) / 2
    fits = given is not None and not any(_check_guidance(case)) and not any(_check_negative_prompt(case))
    return given if fits and given is not None else rule.default


def _check_negative_prompt(case: Case) -> Told:
    rule, given = case.recipe.guidance, case.asked.guidance
    if not case.asked.negative_prompt:
        return
    if rule.kind != "cfg":
        why = "has its guidance inside the UNet" if rule.kind == "embedded" else "was distilled without"
        yield f"negative_prompt does nothing: mode {case.mode!r} {why}; use 'lcm-lora' or 'base'", "wrong"
    elif given is not None and given <= 1:
        yield f"negative_prompt does nothing at guidance_scale={given:g}, which is off: raise it", "wrong"


def _check_size(case: Case) -> Told:
    """Where none is told, the picture's or the pipeline's own."""
    own = trained_size(case.pipeline.parts["unet"], case.pipeline.source)
    width, height, trained = case.asked.width or own, case.asked.height or own, case.trained_side
    if _task_of_call(case) and not (case.asked.width or case.asked.height):
        return  # the picture's
    if not size_fits(width, height, trained):
        unsaid = ", the pipeline's own default," if not (case.asked.width or case.asked.height) else ""
        yield (
            f"width={width}, height={height}{unsaid} is not what mode {case.mode!r} was trained at, "
            f"{trained}x{trained}: subjects double or distort",
            "wrong",
        )
