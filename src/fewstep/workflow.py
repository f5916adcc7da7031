"""Draft, pick, refine: what a `Result` can be asked for next. Each answer is a result that knows its parents.

All are calls of `fewstep.generate` with `image=` the result: same prompt, model, mode and seeds unless told.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from PIL import Image

from fewstep import values
from fewstep.errors import RequestError
from fewstep.images.masks import (
    Borders,
    border_mask,
    checked_feather,
    open_feathered,
    usual_feather,
    widen_picture,
)
from fewstep.images.sheet import contact_sheet
from fewstep.request.options import File, Picture, Prompts
from fewstep.request.pictures import MOST, Given

if TYPE_CHECKING:
    from fewstep.request.schema import EngineKey

R = TypeVar("R")  # what is drawn: a `Result`

MOST_SCALE = 8.0  # at one go
OUTPAINTED_STRENGTH = 0.85  # the edges' colours shine through, so that old and new are of one tone
SCALED_STRENGTH = 0.2  # where a picture is enlarged: details are drawn, the picture stays
# Where they are left out they are the mode's own, and another mode has others.
_OF_MODE = frozenset(
    {"steps", "guidance", "guidance_rescale", "scheduler", "sampler", "eta", "accelerator",
     "accelerator_weight"}
)  # fmt: skip
_OF_MODEL = frozenset({"mode", "prediction", "revision", "width", "height"})
_OF_START = frozenset({"image", "mask", "strength", "timesteps", "only_masked", "padding", "width", "height"})


class Workflow(Sequence[Image.Image], Generic[R]):
    """The next steps from pictures that know how they were made. `Result` fills in what stands here."""

    images: tuple[Image.Image, ...]
    engine_key: EngineKey
    redraw: Callable[..., R]
    seeds: Any  # of each picture

    def only(self, pictures: Sequence[int]) -> Self:
        """Return the result of some of its pictures."""
        raise NotImplementedError

    def call(self, index: int | None = None) -> dict[str, Any]:
        """Return the keywords that draw it again."""
        raise NotImplementedError

    @property
    def labels(self) -> list[str]:
        """What stands over each picture on the sheet."""
        return [f"{number}   seed {seed}" for number, seed in enumerate(self.seeds)]

    def sheet(self, columns: int | None = None) -> Image.Image:
        """Return all pictures on one sheet, each with its number for `pick`, and its seed."""
        return contact_sheet(self.images, self.labels, columns)

    def pick(self, *numbers: int | slice | Sequence[int], seed: int | Sequence[int] | None = None) -> Self:
        """Return the result of some pictures: by their numbers on the sheet, from 0, slices, or by `seed`.

        They stand in the order in which they were picked, numbered anew. Raises `RequestError`.
        """
        places = [place for number in numbers for place in self._places(number)]
        for wanted in () if seed is None else values.members(seed) or [seed]:
            matches = [i for i, picture_seed in enumerate(self.seeds) if picture_seed == values.whole(wanted)]
            if not matches:
                raise RequestError(f"seed={wanted!r}: no picture here has it; there are {list(self.seeds)}")
            places += matches
        if not places:
            raise RequestError("pick what? Type pick(4, 10), pick(slice(0, 4)) or pick(seed=7)")
        return self.only(places)

    def _places(self, number: Any) -> list[int]:
        """Return what one argument of `pick` means; raises `RequestError` for numbers that are not there."""
        if isinstance(number, slice):
            return [*range(len(self))[number]]
        places = []
        for member in values.members(number) or [number]:
            place = values.whole(member)
            if type(place) is not int or not -len(self) <= place < len(self):
                raise RequestError(
                    f"there is no picture {values.shown(member)}: they are numbered 0 to {len(self) - 1}"
                )
            places.append(place % len(self))
        return places

    def refine(  # noqa: PLR0913  the public call names every choice
        self,
        steps: int | Sequence[int] | None = None,
        strength: float | Sequence[float] | None = None,
        mode: str | None = None,
        model: File | None = None,
        scale: float | None = None,
        prompt: Prompts | None = None,
        *,
        upscaler: File | None = None,
        **options: Any,
    ) -> R:
        """Return the pictures drawn over (image-to-image): same prompts, model, mode and seeds unless told.

        strength: 0.6 where left out, and 0.2 with `scale`.
        mode, model: another loads beside; guidance, sampler and the like are then its own.
        scale: enlarges first, from 1 to 8 times: by Lanczos, or by the network of `upscaler`, a .safetensors
            file (extra: fewstep[upscale]). What is then larger than the model's pictures is drawn in tiles.
        options: any others of `fewstep.generate`.
        """
        call = changed_call(self.call(), self.engine_key, steps=steps, mode=mode, model=model, prompt=prompt)
        call["image"] = self
        if scale is not None:
            width, height = scaled_size(self.images, scale)
            call |= {"width": width, "height": height, "tiles": True, "strength": SCALED_STRENGTH}
            if upscaler is not None:
                from fewstep.upscaling import enlarge

                call["image"] = self._with_parents([enlarge(image, upscaler) for image in self.images])
        elif upscaler is not None:
            raise RequestError("upscaler= enlarges where scale= says how much: type scale=2")
        return self._draw(call, {"strength": strength, **options})

    def vary(self, strength: float | Sequence[float] = 0.5, count: int = 4, **options: Any) -> R:
        """Return `count` pictures like each: drawn over from `strength`, with new seeds."""
        call = self._call_over(options)
        del call["seed"]
        return self._draw(call | {"image": self, "count": count}, {"strength": strength, **options})

    def inpaint(
        self,
        mask: Picture | Sequence[Picture],
        prompt: Prompts | None = None,
        *,
        only_masked: bool = False,
        padding: int = 32,
        feather: int | None = None,
        **options: Any,
    ) -> R:
        """Return the pictures, drawn anew where `mask` is white, and untouched where it is black.

        only_masked: draws the masked area, with `padding` pixels around it, as large as the model's own
            pictures, and puts it back: for faces, hands and other small things.
        feather: pixels from the mask's edge inwards over which old turns into new; a 32nd of the longer
            side where left out, 0 for none. options: any others of `fewstep.generate`; strength is 1.
        """
        call = self._call_over(options, prompt)
        masks = mask if isinstance(mask, Sequence) and not isinstance(mask, str | bytes) else [mask]
        if len(masks) not in (1, len(self)):
            raise RequestError(f"mask lists {len(masks)} for {len(self)} pictures: give one, or as many")
        call |= {
            "image": self,
            "mask": [
                open_feathered(masks[i % len(masks)], image.size, feather)
                for i, image in enumerate(self.images)
            ],
            "strength": 1.0,
        }
        if only_masked:
            call |= {"only_masked": True, "padding": padding}
        return self._draw(call, options)

    def outpaint(
        self,
        left: int = 0,
        top: int = 0,
        right: int = 0,
        bottom: int = 0,
        prompt: Prompts | None = None,
        **options: Any,
    ) -> R:
        """Return the pictures made larger by so many pixels, where new is drawn that goes on from the old.

        The old stays as it is, but for a band along the new, a 16th of the longer side (`feather=` in
        pixels), over which old turns into new. options: any others of `fewstep.generate`; strength is 0.85.
        """
        borders = _checked_borders(left, top, right, bottom)
        call = self._call_over(options, prompt)
        feather = options.pop("feather", None)
        overlaps = [
            2 * usual_feather(image.size) if feather is None else checked_feather(feather)
            for image in self.images
        ]
        call |= {
            "image": self._with_parents([widen_picture(image, borders) for image in self.images]),
            "mask": [
                border_mask(image.size, borders, overlap)
                for image, overlap in zip(self.images, overlaps, strict=True)
            ],
            "strength": OUTPAINTED_STRENGTH,
        }
        return self._draw(call, options)

    def _call_over(self, options: dict[str, Any], prompt: Prompts | None = None) -> dict[str, Any]:
        """Return the keywords for drawing over these pictures; takes what changes them out of `options`."""
        changes = {name: options.pop(name, None) for name in ("steps", "mode", "model")}
        return changed_call(self.call(), self.engine_key, prompt=prompt, **changes)

    def _with_parents(self, images: Sequence[Image.Image]) -> list[Given]:
        """Return pictures made of these, one of each, as `image=` takes them."""
        return [Given(images=(image,), parents=(self.only([i]),)) for i, image in enumerate(images)]

    def _draw(self, call: Mapping[str, Any], options: Mapping[str, Any]) -> R:
        """Return what a changed call draws; `options` are the caller's own, None where left out."""
        return self.redraw(
            **{**call, **{name: v for name, v in options.items() if v is not None or name == "seed"}}
        )


def changed_call(
    call: Mapping[str, Any],
    key: EngineKey,
    *,
    steps: Any = None,
    mode: str | None = None,
    model: File | None = None,
    prompt: Any = None,
) -> dict[str, Any]:
    """Return the keywords of a call for drawing over its pictures: without what it started from itself.

    What belongs to a mode goes where the mode is another, what belongs to a model where that is.
    """
    gone = set(_OF_START)
    if model is not None and str(model) != key.file("model"):
        gone |= _OF_MODE | _OF_MODEL
    elif (mode is not None and mode != key.mode) or (steps is not None and key.steps not in (0, steps)):
        gone |= _OF_MODE
    if steps is not None:
        gone.add("steps")
    if prompt is not None:
        gone |= {"prompt", "prompt_2"}
    kept = {name: value for name, value in call.items() if name not in gone}
    changes = {"steps": steps, "mode": mode, "model": model, "prompt": prompt}
    kept |= {name: value for name, value in changes.items() if value is not None}
    return kept


def scaled_size(images: Sequence[Image.Image], scale: object) -> tuple[int, int]:
    """Return width and height of enlarged pictures, which are of one size; raises `RequestError`."""
    factor = values.real(scale)
    if not isinstance(factor, float) or not 1 <= factor <= MOST_SCALE:
        raise RequestError(f"scale={values.shown(scale)}: give a number from 1 to {MOST_SCALE:g}")
    sizes = {image.size for image in images}
    if len(sizes) > 1:
        raise RequestError(f"scale= enlarges pictures of one size, and these have {sorted(sizes)}: pick some")
    width, height = (round(side * factor) for side in sizes.pop())
    if max(width, height) > MOST:
        raise RequestError(f"scale={factor:g} makes {width}x{height}: sides have at most {MOST} pixels")
    return width, height


def _checked_borders(*borders: int) -> Borders:
    """Return the four borders as they are; raises `RequestError`."""
    sides = [values.whole(border) for border in borders]
    if any(type(side) is not int or not 0 <= side <= MOST for side in sides) or not any(sides):
        raise RequestError(
            "outpaint by how much? Give pixels, from 0, for left, top, right or bottom: outpaint(right=128)"
        )
    left, top, right, bottom = sides
    return left, top, right, bottom
