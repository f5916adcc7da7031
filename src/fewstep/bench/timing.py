"""Times of several ways to do the same, taken in turn, and how far their pictures are apart."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Pictures = npt.NDArray[np.uint8]  # (B, H, W, 3)
Draw = Callable[[int], Pictures]  # round → pictures; a round has a prompt and a seed of its own
MAX_PSNR = 99.0  # dB: what equal pictures are given


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What one arm took, in seconds, round by round."""

    arm: str
    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """Return the first and the third quartile; of one measurement, it twice."""
        if len(self.seconds) == 1:
            return self.seconds * 2
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return low, high


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How far an arm's pictures are from the baseline's."""

    largest: int  # of 255
    psnr: float  # dB, at most `MAX_PSNR`


@dataclass(frozen=True, kw_only=True)
class Row:
    """One thing measured: several arms, held against the first.

    `figure` says what the numbers in `figures`, by arm, count: "speed" is the baseline's time / the
    arm's, "time" the arm's / the baseline's, "share" a part of 1 that the suite has worked out.
    """

    suite: str
    name: str
    timings: tuple[Timing, ...]
    figure: Literal["speed", "time", "share"] = "speed"
    figures: Mapping[str, float] = field(default_factory=dict)
    differences: Mapping[str, Difference] = field(default_factory=dict)  # by arm
    notes: tuple[str, ...] = ()

    @property
    def baseline(self) -> Timing:
        return self.timings[0]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, ready for JSON, with medians and quartiles."""
        arms = [
            {**asdict(t), "median": t.median, "quartiles": t.quartiles, "figure": self.figures.get(t.arm),
             "difference": asdict(self.differences[t.arm]) if t.arm in self.differences else None}
            for t in self.timings
        ]  # fmt: skip
        return {
            "suite": self.suite, "name": self.name, "figure": self.figure, "baseline": self.baseline.arm,
            "arms": arms, "notes": self.notes,
        }  # fmt: skip


def compare_times(
    suite: str,
    name: str,
    timings: Sequence[Timing],
    *,
    figure: Literal["speed", "time"] = "speed",
    pictures: Mapping[str, Pictures] | None = None,
    notes: Sequence[str] = (),
) -> Row:
    """Return the row of these arms, the first of them the baseline; ratios are of medians."""
    base = timings[0]
    ratios = {t.arm: base.median / t.median for t in timings[1:]}
    figures = ratios if figure == "speed" else {arm: 1 / ratio for arm, ratio in ratios.items()}
    pictures = pictures or {}
    differences = {
        t.arm: compare_pictures(pictures[base.arm], pictures[t.arm])
        for t in timings[1:]
        if base.arm in pictures and t.arm in pictures
    }
    return Row(
        suite=suite, name=name, timings=tuple(timings), figure=figure, figures=figures,
        differences=differences, notes=tuple(notes),
    )  # fmt: skip


def time_in_turn(
    arms: Mapping[str, Callable[[int], Any]], repeats: int, warm_up: int = 2
) -> tuple[list[Timing], dict[str, Any]]:
    """Return each arm's times, taken in turn so that all see the same machine, and its answer in round 0.

    `warm_up` rounds come first and are not counted. Which arm begins a round changes from round to
    round; garbage is collected between calls, not within them.
    """
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    answers: dict[str, Any] = {}
    names = list(arms)
    for turn in range(-warm_up, repeats):
        start = turn % len(names)
        for name in names[start:] + names[:start]:
            taken, answer = time_call(arms[name], max(turn, 0))
            if turn >= 0:
                seconds[name].append(taken)
            if turn == 0:
                answers[name] = answer
    return [Timing(arm=name, seconds=tuple(seconds[name])) for name in names], answers


def time_call(call: Callable[[int], Any], turn: int) -> tuple[float, Any]:
    """Return the seconds that one call took, and its answer."""
    gc.collect()
    gc.disable()
    try:
        started = time.perf_counter()
        answer = call(turn)
        return time.perf_counter() - started, answer
    finally:
        gc.enable()


def compare_pictures(first: Pictures, second: Pictures) -> Difference:
    """Return how far two batches of pictures are apart; raises `ValueError` where their shapes differ."""
    if first.shape != second.shape:
        raise ValueError(f"pictures of {first.shape} and {second.shape}")
    apart = np.abs(first.astype(np.int16) - second.astype(np.int16))
    error = float((apart.astype(np.float64) ** 2).mean())
    psnr = MAX_PSNR if error == 0 else min(MAX_PSNR, 10 * math.log10(255**2 / error))
    return Difference(largest=int(apart.max(initial=0)), psnr=round(psnr, 1))
