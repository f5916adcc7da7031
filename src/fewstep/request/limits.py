"""Whether a request is within what its mode was made for; each refusal names the legal values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fewstep import values
from fewstep.errors import RequestError
from fewstep.noise_process import PREDICTIONS
from fewstep.recipe import Recipe
from fewstep.request.options import DEVICES, OPTIONS, EngineOptions

if TYPE_CHECKING:
    from fewstep.request.schema import Request


MAX_PROMPT_CHARACTERS = 100_000  # characters of a prompt: some 25,000 tokens, 300 windows


def check_images(images: bool, masks: bool, options: Mapping[str, Any]) -> None:
    """Check that what acts on a picture or a mask has one to act on; raises `RequestError`."""
    if masks and not images:
        raise RequestError("mask was given without image: give the picture to inpaint as image=")
    strength = options.get("strength")
    if strength is not None and strength != 1 and not images:
        raise RequestError(f"strength={strength!r} needs a picture to start from: give image=")
    if options.get("only_masked") and not masks:
        raise RequestError("only_masked=True needs a mask, which says what is drawn: give mask=")
    if options.get("tiles") and not images:
        raise RequestError("tiles=True draws over a picture: give image=")
    if options.get("tiles") and options.get("only_masked"):
        raise RequestError("only_masked draws at the model's own size, which needs no tiles: leave tiles out")


def check_request(request: Request, recipe: Recipe, size: int | None) -> None:
    """Check that everything is within what this mode was made for; raises `RequestError`.

    `size` is the model's own side in pixels; None where a picture of any size is drawn.
    """
    for name, choice, allowed in (
        ("scheduler", request.scheduler, recipe.schedulers),
        ("sampler", request.sampler, recipe.samplers),
    ):
        if choice not in allowed:
            raise RequestError(
                f"{name}={choice!r} does not fit mode {recipe.mode!r}: choose one of {', '.join(allowed)}"
            )
    check_steps(request.steps, recipe)
    rule = recipe.sampler(request.sampler)
    if not rule.tunable and request.eta != rule.eta:
        raise RequestError(f"eta={request.eta:g}: sampler {request.sampler!r} has none; leave eta out")
    if request.timesteps and request.strength < 1:
        raise RequestError("timesteps and strength both choose where to start: leave strength out")
    for text in (*request.prompts, *request.prompts_2, request.negative_prompt):
        check_prompt(text)
    _check_guidance(request, recipe)
    if size is not None and not size_fits(request.width, request.height, size):
        raise RequestError(
            f"width={request.width}, height={request.height}: this model was trained at "
            f"{size}x{size}; give {describe_sizes(size)}"
        )


def check_steps(steps: object, recipe: Recipe) -> None:
    """Check that the mode's weights were made for so many steps; raises `RequestError`."""
    rule = recipe.steps
    if type(steps) is not int:
        advice = values.whole_advice("steps", steps) or f"; type steps={rule.default}"
        raise RequestError(f"steps={values.shown(steps)}: give a whole number{advice}")
    if rule.low <= steps <= rule.high:
        return
    if rule.low < rule.high:
        legal = f"outside what mode {recipe.mode!r} was made for: {rule.low} to {rule.high}"
    else:
        legal = f"not what these weights of mode {recipe.mode!r} were made for: exactly {rule.high}"
    load_advice = f", or load others by load(..., steps={steps})" if steps in rule.also else ""
    raise RequestError(f"steps={steps} is {legal}; type steps={rule.default}{load_advice}")


def check_prompt(text: object) -> None:
    """Check that a prompt is whole Unicode text of at most `MAX_PROMPT_CHARACTERS`; raises `RequestError`."""
    if not isinstance(text, str):
        raise RequestError(f"prompt={text!r}: give a string")
    if len(text) > MAX_PROMPT_CHARACTERS:
        raise RequestError(
            f"a prompt has {len(text)} characters: at most {MAX_PROMPT_CHARACTERS}; shorten it"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = text[error.start]
        raise RequestError(f"{half!r} in {text!r} is half a character: give whole Unicode text") from None


def _check_guidance(request: Request, recipe: Recipe) -> None:
    rule, guidance = recipe.guidance, request.guidance
    if rule.kind == "none" and guidance not in (0.0, 1.0):
        raise RequestError(
            f"guidance={guidance:g}: mode {recipe.mode!r} was distilled without; leave guidance out"
        )
    # 0 for off, as diffusers and model cards write it
    is_off = guidance == 0 and rule.kind == "cfg" and rule.default == 1
    if rule.kind != "none" and not rule.low <= guidance <= rule.high and not is_off:
        embedded = " (it is an input of the UNet and cannot be off)" if rule.kind == "embedded" else ""
        note = " (1 is off)" if rule.kind == "cfg" and rule.low == 1 else embedded
        raise RequestError(
            f"guidance={guidance:g} is outside what mode {recipe.mode!r} was made for: "
            f"{rule.low:g} to {rule.high:g}{note}; type guidance={rule.default:g}"
        )
    if request.guidance_rescale and (rule.kind != "cfg" or guidance <= 1):
        raise RequestError(
            "guidance_rescale acts on classifier-free guidance only: use mode='base', guidance=5"
        )
    if request.negative_prompt and rule.kind != "cfg":
        raise RequestError(
            f"negative_prompt cannot act in mode {recipe.mode!r}: use mode='base', or mode='lcm-lora' "
            "with guidance=1.5"
        )
    if request.negative_prompt and guidance <= 1:
        raise RequestError(
            f"negative_prompt cannot act at guidance={guidance:g}, which is off: raise guidance"
        )


def size_fits(width: int, height: int, size: int) -> bool:
    """Return whether sides are multiples of 8, half to twice the trained one, the area at most 2.25 times."""
    sides = all(size // 2 <= side <= 2 * size and side % 8 == 0 for side in (width, height))
    return sides and width * height <= 2.25 * size * size


def describe_sizes(size: int) -> str:
    """Return which sizes a model of this trained side draws, for errors."""
    return (
        f"sides that are multiples of 8 from {size // 2} to {2 * size}, of an area up to "
        f"{int(1.5 * size)}x{int(1.5 * size)}"
    )


def check_engine_names(options: EngineOptions) -> None:
    """Check that these are a device, a precision, a way to offload; whether they are here comes later.

    Raises `RequestError`.
    """
    device = options["device"]
    kind, colon, index = device.partition(":") if isinstance(device, str) else ("", "", "")
    if kind not in DEVICES or (colon and not (kind == "cuda" and index.isdecimal())):
        raise RequestError(f"device={device!r}: {OPTIONS['device'].advice}, or a GPU such as cuda:1")
    for name in ("precision", "offload", "runtime"):
        if options[name] not in OPTIONS[name].choices:
            raise RequestError(f"{name}={options[name]!r}: {OPTIONS[name].advice}")
    if options["prediction"] not in ("", *PREDICTIONS):
        raise RequestError(f"prediction={options['prediction']!r}: {OPTIONS['prediction'].advice}")


def check_accelerator_weight(weight: object, recipe: Recipe, attach: str) -> None:
    """Check that it is None, or within bounds and of a mode that has a LoRA; raises `RequestError`."""
    option = OPTIONS["accelerator_weight"]
    if weight is None:
        return
    if not isinstance(weight, float) or not 0 < weight <= (option.high or 0):
        raise RequestError(f"accelerator_weight={values.shown(weight)}: {option.advice}, or leave it out")
    if attach != "adapter":
        raise RequestError(
            f"accelerator_weight={weight:g}: mode {recipe.mode!r} has no LoRA of its own here; leave it out"
        )
