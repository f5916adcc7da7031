"""`evaluate`: every mode at every number of steps, a row for each, as they are finished."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fewstep
from fewstep import backends
from fewstep.devices.probe import cpu_name
from fewstep.engine import Engine
from fewstep.errors import RequestError
from fewstep.evaluation import drawing, features, measures, references, report
from fewstep.evaluation.asking import DEFAULT, MODES, Asked, Settings, askable, check, chosen
from fewstep.evaluation.drawing import Drawn, Order
from fewstep.evaluation.features import FeatureNetwork
from fewstep.evaluation.references import References
from fewstep.evaluation.report import Row
from fewstep.models.assets import modes_for
from fewstep.request import extras
from fewstep.train import data

TEACHER = ("base", 50)  # what every other row's pictures are compared with


def evaluate(work: Path, settings: Settings = DEFAULT, csv: Path | None = None) -> Iterator[Row]:
    """Measure quality and speed of a model's modes; yields a row for each (mode, steps).

        for row in fewstep.evaluation.evaluate(Path("fewstep-train")):
            print(row.mode, row.steps, row.name_1, row.milliseconds)

    work: the folder of `fewstep train data`, whose real pictures say what is right; what is made on
        the way is kept in its folder `eval`.
    csv: each row is appended to it at once ("work/eval/rows.csv" where None). Rows that it already
        holds, of the same weights, prompts and feature space, are yielded and not made again.
    """
    return (one for one in watch(work, settings, csv) if isinstance(one, Row))


def watch(work: Path, settings: Settings = DEFAULT, csv: Path | None = None) -> Iterator[Drawn | Row]:
    """`evaluate`, with word of how far the pictures of each row are."""
    path = work / "eval" / "rows.csv" if csv is None else csv
    cells = _cells(settings)
    finished = {row.key: row for row in report.read(path)}
    bench = _Bench(work, settings)
    for mode, counts in cells:
        with _engine(settings, mode, counts[0]) as engine:
            weights = drawing.weights_of(engine)
            for steps in counts:
                order = bench.order(engine, steps)
                key = bench.key(drawing.key_of(weights, engine, order))
                if key not in finished:
                    finished[key] = yield from bench.row(engine, order, key)
                    report.append(finished[key], path)
                yield finished[key]


def _cells(settings: Settings) -> list[tuple[str, tuple[int, ...]]]:
    """Each mode with the step counts, of those asked for, that its recipe allows; those of one engine."""
    check(settings)
    family = backends.chosen(settings.model, None)[0].family
    modes = settings.modes or tuple(mode for mode in MODES if mode in modes_for(family))
    unknown = set(settings.guidance) - set(modes)
    if unknown:
        raise RequestError(
            f"guidance for {', '.join(sorted(unknown))}, which is not measured: modes are {', '.join(modes)}"
        )
    recipes = {mode: backends.recipe(mode).on(family) for mode in modes}
    cells: list[tuple[str, tuple[int, ...]]] = []
    for mode, recipe in recipes.items():
        fitting = tuple(steps for steps in settings.steps if steps in recipe.counts())
        cells += [(mode, (steps,)) for steps in fitting] if recipe.steps.only else [(mode, fitting)]
    cells = [(mode, counts) for mode, counts in cells if counts]
    if not cells:
        legal = "; ".join(f"{mode} {r.counts()[0]}-{r.counts()[-1]}" for mode, r in recipes.items())
        raise RequestError(f"steps={settings.steps}: no mode was made for these: choose from {legal}")
    return cells


def _engine(settings: Settings, mode: str, steps: int) -> Engine:
    """Loaded; `steps` counts where each number of them has weights of its own."""
    several = backends.recipe(mode).steps.only
    return fewstep.load(
        settings.model, mode, steps=steps if several else None,
        device=settings.device, precision=settings.precision,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _Teacher:
    """The pictures that others are compared with."""

    pictures: Tensor  # uint8, (N, 3, h, w)
    features: Tensor  # (N, D)


class _Bench:
    """What all rows share: prompts, the feature space, real pictures and the teacher's."""

    def __init__(self, work: Path, settings: Settings):
        self.settings, self.cache = settings, work / "eval"
        folders = settings.data or (work / "data",)
        references.check(folders)
        self.network: FeatureNetwork = features.read(settings.features)
        sets = [(folder, apart) for folder in folders for apart in _sets(folder, settings.style)]
        parts = [references.load(self.network, folder, self.cache, apart) for folder, apart in sets]
        self.known: References = references.joined(parts)
        pool = [asked for part in parts for asked in askable(part.captions)]
        prompts = chosen(pool, settings)
        self.asked: list[Asked] = [one for one in prompts for _ in range(settings.seeds)]
        self._teacher: _Teacher | None = None

    def order(self, engine: Engine, steps: int) -> Order:
        """The pictures of one row."""
        settings, recipe = self.settings, engine.recipe
        return Order(
            mode=recipe.mode,
            steps=steps,
            guidance=settings.guidance.get(recipe.mode, recipe.guidance.default),
            prompts=tuple(one.text for one in self.asked),
            seeds=tuple(range(settings.seed, settings.seed + len(self.asked))),
            loras=extras.loras(settings.loras, recipe.style_scale),
        )

    def key(self, pictures: str) -> str:
        """Of a row: what its pictures depend on, and what they are compared with."""
        return hashlib.sha256(f"{pictures} {self.known.key}".encode()).hexdigest()

    def row(self, engine: Engine, order: Order, key: str) -> Generator[Drawn, None, Row]:
        """Time, draw, compare."""
        middle, low, high = drawing.timed(engine, order, self.settings.repeats)
        teacher = yield from self._taught()
        pictures = teacher.pictures
        if (order.mode, order.steps) != TEACHER:
            pictures = yield from drawing.draw(engine, order)
        looks = features.describe(self.network, pictures)
        return Row(
            model=self.settings.model,
            mode=order.mode,
            steps=order.steps,
            guidance=order.guidance,
            pictures=len(pictures),
            prompts=len(pictures) // self.settings.seeds,
            **self._retrieved(looks),
            frechet=measures.frechet(looks, self.known.features.flatten(0, 1)),
            rmse=measures.rmse(pictures, teacher.pictures),
            feature_distance=measures.distance(looks, teacher.features),
            diversity=measures.diversity(looks, self.settings.seeds),
            milliseconds=middle,
            milliseconds_low=low,
            milliseconds_high=high,
            **_machine(engine),
            loras=", ".join(f"{Path(file).name}:{weight:g}" for file, weight in order.loras),
            key=key,
        )

    def _retrieved(self, looks: Tensor) -> dict[str, Any]:
        """How often what was asked for is found, by name and by style."""
        known, held = self.known, torch.tensor([one.held for one in self.asked])
        names, styles = [one.label for one in self.asked], [one.style for one in self.asked]
        right = measures.carried(looks, known.features, known.labels, names, nearest=1)
        return {
            "name_1": measures.share(right),
            "name_5": measures.share(measures.carried(looks, known.features, known.labels, names, nearest=5)),
            "style_1": measures.share(
                measures.carried(looks, known.features, known.styles, styles, nearest=1)
            ),
            "seen_1": measures.share(right[~held]),
            "held_out_1": measures.share(right[held]),
        }

    def _taught(self) -> Generator[Drawn, None, _Teacher]:
        """The teacher's pictures, made once; the work folder keeps them."""
        if self._teacher is None:
            with _engine(self.settings, *TEACHER) as engine:
                order = self.order(engine, TEACHER[1])
                key = drawing.key_of(drawing.weights_of(engine), engine, order)
                pictures = yield from drawing.kept(engine, order, key, self.cache)
            looks = features.describe(self.network, pictures)
            self._teacher = _Teacher(pictures=pictures, features=looks)
        return self._teacher


def _sets(folder: Path, style: str) -> tuple[str, ...]:
    """Of a data folder: all that was trained on, and the style asked for where that is apart."""
    return ("", style) if style and data.files(folder, style)[0].is_file() else ("",)


def _machine(engine: Engine) -> dict[str, Any]:
    """What the times are of."""
    place = engine.placement
    gpu = place.device.type == "cuda"
    return {
        "device": str(place.device),
        "precision": str(place.dtype).removeprefix("torch."),
        "processor": torch.cuda.get_device_name(place.device) if gpu else cpu_name(Path("/")),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "fewstep": fewstep.__version__,
    }
