"""Drafts, the best of them, refined: what that comes to, beside the base model in all its steps.

for row in fewstep.evaluation.measure_workflow(Path("fewstep-train")):
    print(row.way, row.name_1, row.sharpness, row.milliseconds)
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

import fewstep
from fewstep.devices.probe import cpu_name
from fewstep.engine import Engine
from fewstep.evaluation import drawing, measures, references
from fewstep.evaluation.references import References
from fewstep.evaluation.settings import EvalPrompt, eval_prompts, sample_prompts
from fewstep.images import image_to_tensor
from fewstep.result import Result
from fewstep.torch_state import FreshTorchState
from fewstep.train.bundled.features import (
    SHIPPED,
    FeatureNetwork,
    describe_pictures,
    read_features,
    retrieval_hits,
)

REFERENCE = ("base", 50)


@dataclass(frozen=True, kw_only=True)
class Way:
    """What is measured."""

    drafts: int = 8
    draft: tuple[str, int] = ("turbo", 1)  # mode, steps
    refine: tuple[str, int] = ("base", 4)
    strength: float = 0.5  # of the refining
    prompts: int = 100
    seed: int = 0
    repeats: int = 10  # calls timed of each way, in turn
    features: Path = SHIPPED  # what picks
    judge: Path | None = None  # what counts names; None: what picks, which is then its own judge


DEFAULT_WAY = Way()


@dataclass(frozen=True, kw_only=True)
class WorkflowRow:
    """What one way of drawing gives: means over prompts with their standard errors, and its time."""

    way: str
    name_1: float  # share whose nearest real picture has the name asked for
    name_1_error: float
    sharpness: float  # `measures.sharpness`
    sharpness_error: float
    milliseconds: float  # prompt to final picture: median
    milliseconds_low: float  # lower quartile
    milliseconds_high: float  # upper quartile


@FreshTorchState()
def measure_workflow(work: Path, way: Way = DEFAULT_WAY) -> list[WorkflowRow]:
    """Return rows for the base model in 50 steps, a draft, the best of the drafts, and that refined.

    work: the folder of `fewstep train data`. The best draft is the one whose features are nearest to a real
    picture of the name asked for.
    """
    bench = _Bench(work, way)
    with (
        fewstep.load("tiny", REFERENCE[0]) as base,
        fewstep.load("tiny", way.draft[0]) as drafter,
        fewstep.load("tiny", way.refine[0]) as refiner,
    ):
        pictures = bench.draw(base, drafter, refiner)
        times = bench.time(base, drafter)
    return [bench.row(name, pictures[name], times[name]) for name in pictures]


class _Bench:
    """Prompts, real pictures, and the two networks: the one that picks, and the one that judges."""

    def __init__(self, work: Path, way: Way):
        references.check_folders([work / "data"])
        self.way, cache = way, work / "eval"
        self.picker: FeatureNetwork = read_features(way.features)
        self.judge: FeatureNetwork = self.picker if way.judge is None else read_features(way.judge)
        self.real: References = references.load_references(self.picker, work / "data", cache)
        self.judged: References = references.load_references(self.judge, work / "data", cache)
        self.prompts: list[EvalPrompt] = sample_prompts(
            eval_prompts(self.real.captions), way.prompts, way.seed
        )

    def names(self) -> tuple[str, str, str, str]:
        """Return what the rows are called."""
        way = self.way
        draft, refined = (f"{mode} {steps}" for mode, steps in (way.draft, way.refine))
        best = f"best of {way.drafts} drafts, {draft}"
        return f"{REFERENCE[0]} {REFERENCE[1]}", f"a draft, {draft}", best, f"{best}, refined by {refined}"

    def draw(self, base: Engine, drafter: Engine, refiner: Engine) -> dict[str, Tensor]:
        """Return the pictures of each way, uint8 (P, 3, h, w)."""
        way, texts = self.way, [prompt.text for prompt in self.prompts]
        reference = _draw(base, REFERENCE[1], texts, range(way.seed, way.seed + len(texts)))
        several = [text for text in texts for _ in range(way.drafts)]
        drafts = _draw(drafter, way.draft[1], several, range(way.seed, way.seed + len(several)))
        groups = drafts.unflatten(0, (len(texts), way.drafts))  # (P, D, 3, h, w)
        chosen = torch.stack(
            [group[self.best(group, p)] for group, p in zip(groups, self.prompts, strict=True)]
        )
        seeds = range(way.seed, way.seed + len(texts))
        refined = _refine(refiner, way, texts, chosen, seeds)
        return dict(zip(self.names(), (reference, groups[:, 0], chosen, refined), strict=True))

    def best(self, drafts: Tensor, prompt: EvalPrompt) -> int:
        """Return which of some drafts, uint8 (D, 3, h, w), is nearest to a real picture of the name."""
        wanted = torch.tensor([label == prompt.label for label in self.real.labels])
        features = describe_pictures(self.picker, drafts)
        return int((features @ self.real.features[wanted].flatten(0, 1).T).amax(dim=1).argmax())

    def time(self, base: Engine, drafter: Engine) -> dict[str, list[float]]:
        """Return milliseconds of each way, called in turn, so that what else runs slows all of them alike."""
        names, way = self.names(), self.way
        milliseconds: dict[str, list[float]] = {name: [] for name in names}
        for i in range(way.repeats + 1):  # the first is not counted
            prompt = self.prompts[i % len(self.prompts)]
            started = time.perf_counter()
            base.generate(prompt.text, REFERENCE[1], seed=i, progress=False)
            milliseconds[names[0]].append(_since(started))
            started = time.perf_counter()
            drafter.generate(prompt.text, way.draft[1], seed=i, progress=False)
            milliseconds[names[1]].append(_since(started))
            started = time.perf_counter()
            drafts = drafter.generate(prompt.text, way.draft[1], seed=i, count=way.drafts, progress=False)
            chosen = drafts.pick(self.best(_pictures(drafts), prompt))
            milliseconds[names[2]].append(_since(started))
            chosen.refine(way.refine[1], way.strength, way.refine[0], progress=False)
            milliseconds[names[3]].append(_since(started))
        return {name: times[1:] for name, times in milliseconds.items()}

    def row(self, name: str, pictures: Tensor, times: Sequence[float]) -> WorkflowRow:
        """Return one way's measures."""
        labels, judged = [prompt.label for prompt in self.prompts], self.judged
        features = describe_pictures(self.judge, pictures)
        hits = retrieval_hits(features, judged.features, judged.labels, labels, nearest=1).double()
        sharpness = measures.sharpness(pictures).double()
        low, middle, high = statistics.quantiles(times, n=4, method="inclusive")
        return WorkflowRow(
            way=name,
            name_1=float(hits.mean()),
            name_1_error=_standard_error(hits),
            sharpness=float(sharpness.mean()),
            sharpness_error=_standard_error(sharpness),
            milliseconds=middle,
            milliseconds_low=low,
            milliseconds_high=high,
        )


def _draw(engine: Engine, steps: int, texts: Sequence[str], seeds: Sequence[int]) -> Tensor:
    cell = drawing.CellConfig(
        mode=engine.recipe.mode,
        steps=steps,
        guidance=engine.recipe.guidance.default,
        prompts=tuple(texts),
        seeds=tuple(seeds),
    )
    steps_of_drawing = drawing.draw_cell(engine, cell)
    while True:
        try:
            next(steps_of_drawing)
        except StopIteration as end:
            pictures: Tensor = end.value
            return pictures


def _refine(engine: Engine, way: Way, texts: Sequence[str], chosen: Tensor, seeds: Sequence[int]) -> Tensor:
    """Return each chosen draft drawn over, one by one, as `Result.refine` does."""
    results = [
        engine.generate(
            text, way.refine[1], image=Image.fromarray(picture.permute(1, 2, 0).numpy()),
            strength=way.strength, seed=seed, progress=False,
        )
        for text, picture, seed in zip(texts, chosen, seeds, strict=True)
    ]  # fmt: skip
    return torch.cat([_pictures(result) for result in results])


def _pictures(result: Result) -> Tensor:
    """Return a result's pictures, uint8 (B, 3, h, w)."""
    return torch.cat([drawing.reduce_picture(image_to_tensor(image)) for image in result.images])


def _since(started: float) -> float:
    return 1000 * (time.perf_counter() - started)


def _standard_error(values: Tensor) -> float:
    return float(values.std() / math.sqrt(len(values))) if len(values) > 1 else math.nan


def workflow_table(rows: Sequence[WorkflowRow]) -> str:
    """Return the rows to be read on a terminal."""
    width = max(len(row.way) for row in rows)
    lines = [f"{'':{width}}  name@1          sharpness       ms (quartiles)"]
    for row in rows:
        lines.append(
            f"{row.way:{width}}  {row.name_1:6.1%} ±{row.name_1_error:5.1%}  "
            f"{row.sharpness:.4f} ±{row.sharpness_error:.4f}  "
            f"{row.milliseconds:.0f} ({row.milliseconds_low:.0f}-{row.milliseconds_high:.0f})"
        )
    return "\n".join(
        [*lines, "", f"{cpu_name(Path('/'))}, {torch.get_num_threads()} threads; ± is a standard error"]
    )
