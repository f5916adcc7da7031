"""The one training loop: a generator over a `Task`, with EMA, checkpoints and exact resume.

Everything random in step `k` is drawn from generators seeded with (seed, k), so that a
resumed run sees what an uninterrupted one would have seen.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


class Task(Protocol):
    """What is trained: named modules, copies of them that hold the average, and a loss."""

    modules: dict[str, nn.Module]
    averages: dict[str, nn.Module]

    def loss(self, draw: Draw) -> Tensor:
        """The scalar loss of one batch, everything random taken from `draw`."""


@dataclass(frozen=True, kw_only=True)
class Hyper:
    """How long and how fast. AdamW; linear warm-up, flat, cosine to zero over `decay`."""

    steps: int
    batch: int
    rate: float
    warmup: int = 100  # steps
    decay: float = 0.4  # fraction of the run, at its end
    ema: float = 0.999
    weight_decay: float = 0.01
    clip: float = 1.0  # gradient norm
    seed: int = 0
    bf16: bool = True


@dataclass(frozen=True)
class Draw:
    """The randomness of one step."""

    torch: torch.Generator
    python: random.Random

    @classmethod
    def of(cls, seed: int, step: int) -> Draw:
        # torch's CPU generator reads the low 32 bits only, so both numbers must be in them.
        number = (seed * 0x9E3779B1 + step) % 2**32
        return cls(torch.Generator().manual_seed(number), random.Random(number))


@dataclass(frozen=True)
class Progress:
    """One finished step."""

    step: int  # counted from 1
    loss: float
    rate: float


def train(task: Task, hyper: Hyper, folder: Path, *, every: int = 100) -> Iterator[Progress]:
    """Train, resuming from `folder` where it holds a state; yield after each step.

    The state is written every `every` steps and at the end; a run that is complete
    yields nothing. The result is in `task.averages`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = _State(task, hyper, folder)
    for step in range(state.resume(), hyper.steps):
        rate = hyper.rate * rate_factor(step, hyper)
        loss = state.advance(Draw.of(hyper.seed, step), rate, step)
        if (step + 1) % every == 0 or step + 1 == hyper.steps:
            state.save(step + 1)
        yield Progress(step + 1, loss, rate)


def restore(task: Task, folder: Path) -> None:
    """Load a run's averaged weights into `task.averages`."""
    tensors = load_file(folder / "state.safetensors")
    with torch.no_grad():
        parameters = _named(task.averages)  # all of them: after training, averages ask for no gradients
        for key, tensor in tensors.items():
            if key.startswith("ema."):
                parameters[key.removeprefix("ema.")].copy_(tensor)


def rate_factor(step: int, hyper: Hyper) -> float:
    """The learning rate at `step` as a fraction of its peak."""
    if step < hyper.warmup:
        return (step + 1) / hyper.warmup
    start = hyper.steps * (1 - hyper.decay)
    if step < start:
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - start) / (hyper.steps - start)))


class _State:
    """Parameters, their average and the optimiser, as one thing that can be saved."""

    def __init__(self, task: Task, hyper: Hyper, folder: Path):
        self.task, self.hyper, self.folder = task, hyper, folder
        self.live, self.mean = _trained(task.modules), _trained(task.averages)
        for average in task.averages.values():
            average.requires_grad_(False)
        self.optimiser = torch.optim.AdamW(
            self.live.values(), lr=hyper.rate, weight_decay=hyper.weight_decay, fused=True
        )

    def advance(self, draw: Draw, rate: float, step: int) -> float:
        """One optimiser step; returns the loss."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.hyper.bf16):
            loss = self.task.loss(draw)
        self.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.live.values(), self.hyper.clip)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.step()
        # An average that starts short, so that the first weights are soon forgotten.
        keep = min(self.hyper.ema, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.mean.values()), [p.detach() for p in self.live.values()], 1 - keep)
        return float(loss.detach())

    def save(self, step: int) -> None:
        """Write everything that a resumed run needs, whole or not at all."""
        tensors = {f"live.{k}": p.detach() for k, p in self.live.items()}
        tensors |= {f"ema.{k}": p for k, p in self.mean.items()}
        for index, moments in self.optimiser.state_dict()["state"].items():
            tensors |= {f"adam.{index}.{k}": v.clone() for k, v in moments.items()}
        scratch = self.folder / "state.partial"
        save_file(tensors, scratch, metadata={"step": str(step), "hyper": json.dumps(asdict(self.hyper))})
        scratch.replace(self.folder / "state.safetensors")

    def resume(self) -> int:
        """Read the state back, if there is one; return how many steps are done."""
        path = self.folder / "state.safetensors"
        if not path.exists():
            return 0
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            step = int(file.metadata()["step"])
        tensors = load_file(path)
        with torch.no_grad():
            for key, p in self.live.items():
                p.copy_(tensors[f"live.{key}"])
                self.mean[key].copy_(tensors[f"ema.{key}"])
        self.optimiser.load_state_dict(self._adam(tensors))
        return step

    def _adam(self, tensors: dict[str, Tensor]) -> dict[str, Any]:
        state = self.optimiser.state_dict()
        moments: dict[int, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            if key.startswith("adam."):
                _, index, name = key.split(".")
                moments.setdefault(int(index), {})[name] = tensor
        return {"state": moments, "param_groups": state["param_groups"]}


def _trained(modules: dict[str, nn.Module]) -> dict[str, Tensor]:
    """Every parameter that learns, by "module.parameter"."""
    return {key: p for key, p in _named(modules).items() if p.requires_grad}


def _named(modules: dict[str, nn.Module]) -> dict[str, Tensor]:
    """Every parameter, by "module.parameter"."""
    return {f"{name}.{key}": p for name, module in modules.items() for key, p in module.named_parameters()}
