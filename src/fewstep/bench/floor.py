"""The floor of physics: a picture's multiply-adds at the speed of a large matrix product on this machine.

Activations, norms, attention's softmax and memory traffic come on top: 1.0 is not to be had, and how
far above it a picture is says what overheads are left.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from fewstep.bench.arms import DTYPES, SEED, Case, open_arm, prompt_of
from fewstep.bench.timing import Row, Timing, compare_times, time_call

SIDE = 2048  # of the matrices: large enough for the peak, 0.1 s on two cores
SECONDS = 1.0  # for the measurement


def measured_peak(dtype: torch.dtype, device: str = "cpu") -> float:
    """Return floating-point operations a second of the fastest product of two large matrices in a second."""
    left, right = (torch.ones(SIDE, SIDE, dtype=dtype, device=device) for _ in range(2))
    best, end = float("inf"), time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        started = time.perf_counter()
        answer = left @ right
        float(answer[0, 0])  # a GPU has then done it
        best = min(best, time.perf_counter() - started)
    return 2 * SIDE**3 / best


def counted_operations(engine: Any, case: Case) -> int:
    """Return the floating-point operations (two per multiply-add) of one call, as torch counts them.

    The engine has to run on plain torch: what other runtimes compute is not seen.
    """
    with FlopCounterMode(display=False) as counter:
        engine.generate(
            prompt_of(-1), case.steps, seed=SEED, count=case.pictures, progress=False, **case.size
        )
    return int(counter.get_total_flops())


def measure_against_floor(case: Case, runtime: str, rounds: int) -> Row:
    """Return a call's times beside its floor, which is measured anew before each."""
    import fewstep

    options = case.engine_options
    with fewstep.load(case.model, case.mode, steps=case.steps, runtime="eager", **options) as engine:
        operations = counted_operations(engine, case)
    draw, arm = open_arm(f"fewstep {runtime}", case), f"fewstep {runtime}"
    draw(0)
    peaks, seconds = [], []
    for turn in range(1, rounds + 1):
        peaks.append(measured_peak(getattr(torch, DTYPES[case.precision]), case.device))
        seconds.append(time_call(draw, turn)[0])
    floor = Timing(arm="floor", seconds=tuple(operations / peak for peak in peaks))
    note = f"{operations / 1e9:.1f} GFLOP; a matrix product runs at {max(peaks) / 1e9:.0f} GFLOP/s"
    return compare_times(
        "floor", case.title, [floor, Timing(arm=arm, seconds=tuple(seconds))], figure="time", notes=[note]
    )
