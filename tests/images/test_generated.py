"""Five hundred pictures and masks by one seed, whole and broken, through every door: image, mask, control."""

from __future__ import annotations

import io
import random
import resource
from collections import Counter
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from fewstep import modes
from fewstep.catalog.models import describe_model
from fewstep.errors import RequestError
from fewstep.request import Job, resolve_job
from tests.images import forms
from tests.images.forms import TURNS, Bytes, Form

COUNT = 500
MOST_GROWTH = 300 * 2**20  # bytes: a bomb of 30,000 pixels a side would take 2.7 GB
SIDES = (64, 72, 96)
BASE = Image.linear_gradient("L").resize((64, 64)).convert("RGB")


def colours(draw: random.Random, size: tuple[int, int]) -> Bytes:
    """Smooth ramps between random corners."""
    corners = np.array([draw.randrange(20, 236) for _ in range(12)], np.uint8).reshape(2, 2, 3)
    return np.asarray(Image.fromarray(corners).resize(size, Image.Resampling.BILINEAR))


def alphas(draw: random.Random, size: tuple[int, int]) -> Bytes:
    """Opaque, holed, smooth or empty."""
    kind = draw.choice(["opaque", "opaque", "holed", "smooth", "empty"])
    sheet = Image.new("L", size, 0 if kind == "empty" else 255)
    if kind in ("holed", "smooth"):
        sheet.paste(0, (0, 0, size[0] // 3, size[1] // 2))
    if kind == "smooth":
        sheet = sheet.filter(ImageFilter.BoxBlur(5))
    return np.asarray(sheet)


def turned(draw: random.Random, form: Form, name: str) -> Form:
    """The same file with an EXIF orientation, and what it shows then."""
    orientation = draw.randrange(1, 9)
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.open(io.BytesIO(form.given)).save(buffer, name.split()[0], exif=exif, **(
        {"quality": 95} if name.startswith("JPEG") else {}))  # fmt: skip
    upright = TURNS[orientation]
    return form._replace(
        given=buffer.getvalue(), colours=upright(form.colours), alpha=upright(form.alpha),
        tolerance=form.tolerance * 2,
    )  # fmt: skip


def broken(draw: random.Random, data: bytes) -> tuple[str, bytes]:
    """A file cut short, with a byte changed, or that claims to be huge."""
    how = draw.choice(["cut", "cut", "flipped", "bomb", "noise"])
    if how == "cut":
        return how, data[: draw.randrange(len(data))]
    if how == "flipped":
        place = draw.randrange(len(data))
        return how, data[:place] + bytes([data[place] ^ (1 << draw.randrange(8))]) + data[place + 1 :]
    if how == "bomb":
        side = draw.choice([9_000, 12_000, 30_000, 2**31 - 1])
        return how, forms.png_file((side, side), 1, 0, bytes(1000))
    return how, draw.randbytes(200)


def resolve(**options: Any) -> Job:
    asked: Any = {"width": 64, "height": 64, "seed": 1, **options}
    return resolve_job(*MODEL, "a fox", None, asked)


MODEL = (describe_model("tiny"), modes.find_recipe("lcm"))


def wrong(form: Form, role: str, job: Job) -> bool:
    """Whether pixels are others than what was given shows, and no word of it."""
    share = form.alpha[..., None] / 255
    if role == "mask":
        assert job.masks
        seen, wanted = job.masks[0], forms.grey(form.colours) * share[..., 0]
    else:
        shown = job.images[0] if role == "image" else job.control[0]
        assert shown is not None
        seen, wanted = shown, form.colours * share + 255 * (1 - share)
    sized = np.asarray(
        Image.fromarray(np.rint(wanted).astype(np.uint8)).resize((64, 64), Image.Resampling.LANCZOS)
    )
    far = np.abs(np.asarray(seen).astype(float) - sized).mean()
    unsaid = (
        role != "mask" and form.alpha.min() < 255 and not any("transparent" in w for w in job.plan.warnings)
    )
    return bool(far > form.tolerance + 2 or unsaid)


def give(role: str, given: Any) -> dict[str, Any]:
    return {"image": {"image": given}, "mask": {"image": BASE, "mask": given},
            "control": {"control": [("edges.safetensors", given, 0.5)]}}[role]  # fmt: skip


def test_nothing_foreign_and_nothing_lost() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    outcomes: Counter[str] = Counter()
    bad: list[str] = []
    names = [*forms.PIL_FORMS, *forms.FILE_FORMS, *random.Random(0).sample([*forms.ARRAY_FORMS], 40)]
    for index in range(COUNT):
        draw = random.Random(index)
        name, size = names[index % len(names)], (draw.choice(SIDES),) * 2
        form, damage = forms.FORMS[name](colours(draw, size), alphas(draw, size)), ""
        if name in forms.FILE_FORMS and draw.random() < 0.4:
            damage, data = broken(draw, form.given)
            form = form._replace(given=data)
        elif name in ("JPEG RGB", "PNG RGB", "PNG RGBA", "TIFF RGB") and draw.random() < 0.8:
            form = turned(draw, form, name)
        for role in ("image", "mask", "control"):
            try:
                job = resolve(**give(role, form.given))
            except RequestError as error:
                outcomes["refused"] += 1
                if not damage or "\n" in str(error):
                    bad.append(f"{index} {name} {role}: {error}")
                continue
            except Exception as error:
                bad.append(f"{index} {name} {damage} {role}: {error!r}")
                continue
            outcomes["said" if job.plan.warnings else "right"] += 1
            if damage != "flipped" and wrong(form, role, job):  # no format but PNG has checksums
                bad.append(f"{index} {name} {damage} {role}: wrong, {job.plan.warnings}")
    assert not bad, "\n".join(bad)
    assert sum(outcomes.values()) == 3 * COUNT
    assert min(outcomes[kind] for kind in ("right", "said", "refused")) > 100
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before < MOST_GROWTH
