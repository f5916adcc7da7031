"""`evaluate`: every mode at every number of steps, a row for each, as they are finished."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fewstep
from fewstep.catalog.assets import modes_for
from fewstep.devices.probe import cpu_name
from fewstep.engine import Engine
from fewstep.errors import RequestError
from fewstep.evaluation import drawing, measures, references, report
from fewstep.evaluation.drawing import CellConfig, DrawingProgress
from fewstep.evaluation.references import References
from fewstep.evaluation.report import Row
from fewstep.evaluation.settings import (
    DEFAULT_SETTINGS,
    MODES,
    EvalPrompt,
    Settings,
    check_settings,
    choose_prompts,
    eval_prompts,
    own_prompts,
)
from fewstep.modes import choose_mode, find_recipe
from fewstep.request import inputs
from fewstep.torch_state import FreshTorchState
from fewstep.train.bundled import data
from fewstep.train.bundled.features import FeatureNetwork, describe_pictures, read_features, retrieval_hits

REFERENCE_CELL = ("base", 50)  # what every other row's pictures are compared with


def evaluate(work: Path, settings: Settings = DEFAULT_SETTINGS, csv: Path | None = None) -> Iterator[Row]:
    """Measure quality and speed of a model's modes; yields a row for each (mode, steps).

        for row in fewstep.evaluation.evaluate(Path("fewstep-train")):
            print(row.mode, row.steps, row.name_1, row.milliseconds)

    work: the folder of `fewstep train data`, whose real pictures say what is right; what is made on
        the way is kept in its folder `eval`. With prompts of one's own (`Settings(texts=...)`) it may be
        empty: what is measured of them needs no real pictures, and the rest is nan.
    csv: each row is appended to it at once ("work/eval/rows.csv" where None). Rows that it already
        holds, of the same weights, prompts and feature space, are yielded and not made again.
    """
    return (item for item in watch(work, settings, csv) if isinstance(item, Row))


@FreshTorchState()
def watch(
    work: Path, settings: Settings = DEFAULT_SETTINGS, csv: Path | None = None
) -> Iterator[DrawingProgress | Row]:
    """`evaluate`, with word of how far the pictures of each row are."""
    path = work / "eval" / "rows.csv" if csv is None else csv
    modes_with_steps = _modes_with_steps(settings)
    finished = {row.key: row for row in report.read(path)}
    bench = _Bench(work, settings)
    for mode, counts in modes_with_steps:
        with _load_engine(settings, mode, counts[0]) as engine:
            weights = drawing.engine_digest(engine)
            for steps in counts:
                cell = bench.cell(engine, steps)
                key = bench.key(drawing.cell_key(weights, engine, cell))
                if key not in finished:
                    finished[key] = yield from bench.row(engine, cell, key)
                    report.append_row(finished[key], path)
                yield finished[key]


def _modes_with_steps(settings: Settings) -> list[tuple[str, tuple[int, ...]]]:
    """Each mode with the step counts, of those asked for, that its recipe allows; those of one engine."""
    check_settings(settings)
    family = choose_mode(settings.model, None)[0].family
    modes = settings.modes or tuple(mode for mode in MODES if mode in modes_for(family))
    unknown = set(settings.guidance) - set(modes)
    if unknown:
        raise RequestError(
            f"guidance for {', '.join(sorted(unknown))}, which is not measured: modes are {', '.join(modes)}"
        )
    recipes = {mode: find_recipe(mode).on(family) for mode in modes}
    modes_with_steps: list[tuple[str, tuple[int, ...]]] = []
    for mode, recipe in recipes.items():
        allowed = tuple(steps for steps in settings.steps if steps in recipe.counts())
        modes_with_steps += (
            [(mode, (steps,)) for steps in allowed] if recipe.steps.only else [(mode, allowed)]
        )
    modes_with_steps = [(mode, counts) for mode, counts in modes_with_steps if counts]
    if not modes_with_steps:
        choices = "; ".join(f"{mode} {r.counts()[0]}-{r.counts()[-1]}" for mode, r in recipes.items())
        raise RequestError(f"steps={settings.steps}: no mode was made for these: choose from {choices}")
    return modes_with_steps


def _load_engine(settings: Settings, mode: str, steps: int) -> Engine:
    """Return the engine of a mode; `steps` counts where each number of them has weights of its own."""
    several = find_recipe(mode).steps.only
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
        self.network: FeatureNetwork = read_features(settings.features)
        self.references: References | None = None  # real pictures; prompts of one's own have none
        self._teacher: _Teacher | None = None
        prompts = own_prompts(settings) if settings.texts else self._prompts_of_real_pictures(work)
        self.prompts: list[EvalPrompt] = [prompt for prompt in prompts for _ in range(settings.seeds)]

    def _prompts_of_real_pictures(self, work: Path) -> list[EvalPrompt]:
        """Read the real pictures; return what of them is asked for."""
        settings = self.settings
        folders = settings.data or (work / "data",)
        references.check_folders(folders)
        sets = [(folder, apart) for folder in folders for apart in _reference_sets(folder, settings.style)]
        parts = [
            references.load_references(self.network, folder, self.cache, apart) for folder, apart in sets
        ]
        self.references = references.join_references(parts)
        return choose_prompts([p for part in parts for p in eval_prompts(part.captions)], settings)

    def cell(self, engine: Engine, steps: int) -> CellConfig:
        """Return the configuration of one row's pictures."""
        settings, recipe = self.settings, engine.recipe
        return CellConfig(
            mode=recipe.mode,
            steps=steps,
            guidance=settings.guidance.get(recipe.mode, recipe.guidance.default),
            prompts=tuple(prompt.text for prompt in self.prompts),
            seeds=tuple(range(settings.seed, settings.seed + len(self.prompts))),
            loras=inputs.parse_loras(settings.loras, recipe.style_scale),
        )

    def key(self, pictures: str) -> str:
        """Return the key of a row: what its pictures depend on, and what they are compared with."""
        real = "" if self.references is None else self.references.key
        return hashlib.sha256(f"{pictures} {real}".encode()).hexdigest()

    def row(self, engine: Engine, cell: CellConfig, key: str) -> Generator[DrawingProgress, None, Row]:
        """Time, draw and compare the pictures of one row, and return it."""
        middle, low, high = drawing.time_calls(engine, cell, self.settings.repeats)
        teacher = yield from self._draw_with_teacher()
        pictures = teacher.pictures
        if (cell.mode, cell.steps) != REFERENCE_CELL:
            pictures = yield from drawing.draw_cell(engine, cell)
        features = describe_pictures(self.network, pictures)
        return Row(
            model=self.settings.model,
            mode=cell.mode,
            steps=cell.steps,
            guidance=cell.guidance,
            pictures=len(pictures),
            prompts=len(pictures) // self.settings.seeds,
            **self._retrieval_rates(features),
            frechet=math.nan
            if self.references is None
            else measures.frechet(features, self.references.features.flatten(0, 1)),
            rmse=measures.rmse(pictures, teacher.pictures),
            feature_distance=measures.distance(features, teacher.features),
            diversity=measures.diversity(features, self.settings.seeds),
            sharpness=float(measures.sharpness(pictures).mean()),
            milliseconds=middle,
            milliseconds_low=low,
            milliseconds_high=high,
            **_machine_facts(engine),
            loras=", ".join(f"{Path(file).name}:{weight:g}" for file, weight in cell.loras),
            key=key,
        )

    def _retrieval_rates(self, features: Tensor) -> dict[str, Any]:
        """How often what was asked for is found, by name and by style; nan where no real pictures are."""
        if self.references is None:
            return dict.fromkeys(("name_1", "name_5", "style_1", "seen_1", "held_out_1"), math.nan)
        real, held_out = self.references, torch.tensor([prompt.held for prompt in self.prompts])
        names, styles = [prompt.label for prompt in self.prompts], [prompt.style for prompt in self.prompts]
        hits = retrieval_hits(features, real.features, real.labels, names, nearest=1)
        return {
            "name_1": measures.share_of_true(hits),
            "name_5": measures.share_of_true(
                retrieval_hits(features, real.features, real.labels, names, nearest=5)
            ),
            "style_1": measures.share_of_true(
                retrieval_hits(features, real.features, real.styles, styles, nearest=1)
            ),
            "seen_1": measures.share_of_true(hits[~held_out]),
            "held_out_1": measures.share_of_true(hits[held_out]),
        }

    def _draw_with_teacher(self) -> Generator[DrawingProgress, None, _Teacher]:
        """The teacher's pictures, made once; the work folder keeps them."""
        if self._teacher is None:
            with _load_engine(self.settings, *REFERENCE_CELL) as engine:
                cell = self.cell(engine, REFERENCE_CELL[1])
                key = drawing.cell_key(drawing.engine_digest(engine), engine, cell)
                pictures = yield from drawing.draw_or_load(engine, cell, key, self.cache)
            features = describe_pictures(self.network, pictures)
            self._teacher = _Teacher(pictures=pictures, features=features)
        return self._teacher


def _reference_sets(folder: Path, style: str) -> tuple[str, ...]:
    """Return a data folder's sets: all that was trained on, and the style asked for where that is apart."""
    return ("", style) if style and data.sprite_files(folder, style)[0].is_file() else ("",)


def _machine_facts(engine: Engine) -> dict[str, Any]:
    """Return what the times were measured on."""
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
