"""What a picture costs on this machine: measured once for each kind of call, and kept."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from fewstep.errors import OutputError
from fewstep.files.output import cache_root, write_file
from fewstep.request import Job
from fewstep.request.engine_choice import EngineChoice
from fewstep.result import installed_version

REPEATS = 3  # calls of each kind, for their median
FURTHER = 3  # steps by which the second kind is longer than the first
_IDENTITY = ("prediction", "device", "precision", "offload", "runtime")

_log = logging.getLogger("fewstep")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Milliseconds of one picture, warm, by its parts."""

    fixed: float  # prompt, noise, a given picture
    step: float
    decode: float

    def total(self, steps: int) -> float:
        """Return the milliseconds of a picture in so many steps."""
        return self.fixed + steps * self.step + self.decode


class CostStore:
    """Costs by the kind of call they are of; in memory, and in a file where one is named."""

    def __init__(self, path: Path | None = None):
        self._path, self._costs = path, dict[str, Cost]()
        self._read = path is None

    def get(self, key: str) -> Cost | None:
        """Return what was measured, now or in an earlier process."""
        if not self._read and self._path is not None:
            self._read, self._costs = True, _read_costs(self._path) | self._costs
        return self._costs.get(key)

    def keep(self, key: str, cost: Cost) -> None:
        """Keep a cost. Where its file cannot be written it is kept for this process."""
        self._costs[key] = cost
        if self._path is None:
            return
        costs = {name: asdict(kept) for name, kept in (_read_costs(self._path) | self._costs).items()}
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_file(self._path, json.dumps(costs, indent=1).encode(), overwrite=True)
        except (OutputError, OSError) as error:
            _log.info("costs are not kept for the next process: %s", error)


def _read_costs(path: Path) -> dict[str, Cost]:
    """Return the costs of a file; none where it is not there, or damaged."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        return {str(key): Cost(**{name: float(ms) for name, ms in row.items()}) for key, row in rows.items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}


@cache
def kept_costs() -> CostStore:
    """Return the store of this user and machine, in the user's cache folder."""
    return CostStore(cache_root() / "costs.json")


def cost_key(choice: EngineChoice, job: Job) -> str:
    """Return what a cost depends on: machine, versions, model, mode, VAE, size, task and add-ons."""
    request, options = job.request, choice.key.options
    guided = choice.recipe.guidance.kind == "cfg" and request.guidance > 1
    task = ("inpaint" if job.masks else "image") if job.images else "text"
    mode = [choice.key.mode, choice.key.steps, options["accelerator"], options["accelerator_weight"]]
    return _key(choice, job, [*mode, guided, task, request.sampler, request.loras])


def decoder_key(choice: EngineChoice, job: Job) -> str:
    """Return what the cost of decoding depends on: the same for every mode."""
    return _key(choice, job, [])


def _key(choice: EngineChoice, job: Job, facts: list[Any]) -> str:
    """Return a digest of these facts, with machine, model, VAE and size."""
    options = [str(choice.key.options[name]) for name in _IDENTITY]  # type: ignore[literal-required]
    size = (job.request.width, job.request.height)
    shared = [*machine(), _model_identity(choice), choice.key.file("vae"), *options, *size]
    digest = hashlib.sha256(json.dumps([*shared, *facts]).encode()).hexdigest()[:24]
    return f"{choice.key.mode if facts else 'decoder'} {digest}"


def _model_identity(choice: EngineChoice) -> str:
    """Return which weights: a hub's revision, or a file's or folder's time of change."""
    model = choice.model
    changed = os.stat(model.source).st_mtime_ns if model.local and os.path.exists(model.source) else 0
    return f"{model.source} {model.revision} {changed}"


def machine() -> tuple[str, ...]:
    """Return what of this machine and process costs depend on, as far as it is known without torch."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (*_hardware(), str(cores), os.environ.get("OMP_NUM_THREADS", ""))


@cache
def _hardware() -> tuple[str, ...]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        processor = platform.processor()
    gpus = sorted(
        next((line for line in path.read_text().splitlines() if line.startswith("Model")), "")
        for path in Path("/proc/driver/nvidia/gpus").glob("*/information")
    )
    versions = map(installed_version, ("fewstep", "torch"))
    return (platform.node(), platform.machine(), processor, *gpus, *versions)


def measure(
    choice: EngineChoice, job_of: Callable[[str, int], Job], load: Callable[[EngineChoice], Any]
) -> Cost:
    """Load an engine, and return what its calls cost: medians of calls in few and in some more steps.

    job_of: a prompt and a number of steps → the job of one picture. Each call has a prompt of its own,
    so that its encoding is in it.
    """
    rule = choice.recipe.steps
    few, more = rule.low, min(rule.high, rule.low + FURTHER)
    _log.info("measuring what mode=%r costs on this machine", choice.key.mode)
    with load(choice) as engine:
        results = {
            steps: [
                engine.run(job_of(f"measured picture {steps} {i}", steps), progress=False)
                for i in range(REPEATS + 1)
            ][1:]  # the first is slower
            for steps in dict.fromkeys((few, more))
        }  # fmt: skip
    stepping = {steps: _median(calls, "steps") for steps, calls in results.items()}
    decode = _median([call for calls in results.values() for call in calls], "decode")
    if few == more:  # weights of their own for this number of steps
        return Cost(fixed=0.0, step=stepping[few] / few, decode=decode)
    step = max(0.0, (stepping[more] - stepping[few]) / (more - few))
    return Cost(fixed=max(0.0, stepping[few] - few * step), step=step, decode=decode)


def _median(results: list[Any], part: str) -> float:
    return 1000 * float(statistics.median(result.timings[part] for result in results))
