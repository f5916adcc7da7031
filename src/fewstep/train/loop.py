"""The one training loop: a generator over a `Task`, with average, checkpoints and exact resume.

Everything random in step `k` is drawn from generators seeded with (seed, k), so that a resumed run
sees what an uninterrupted one would have seen. Several devices (`accelerate launch`) each take a
batch of their own and average their gradients.
"""

from __future__ import annotations

import json
import math
import os
import random
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, TextIO

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env, reduce
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from fewstep.devices.probe import has_bf16
from fewstep.errors import FewstepError, RequestError
from fewstep.train.optimisers import Optimiser
from fewstep.train.outputs import write_tensors

STATE, LOSSES = "state.safetensors", "losses.csv"


class Learning(Protocol):
    """A network, or the part of one that learns."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...


class Task(Protocol):
    """What is trained: named networks, their twins that hold the average, and a loss.

    What asks for a gradient in `modules` learns; its twin in `averages` has the same name.
    """

    @property
    def modules(self) -> Mapping[str, Learning]: ...

    @property
    def averages(self) -> Mapping[str, Learning]: ...

    def loss(self, draw: Draw) -> Tensor:
        """The scalar loss of one batch, everything random taken from `draw`."""


@dataclass(frozen=True, kw_only=True)
class Hyper:
    """How long and how fast. Linear warm-up, flat, cosine to zero over `decay`."""

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
    muon: bool = False  # for matrices; AdamW for the rest
    accumulate: int = 1  # batches to a step
    paces: Mapping[str, float] = field(default_factory=dict)  # by network: rate as a multiple of the rate


@dataclass(frozen=True)
class Draw:
    """The randomness of one batch; on the CPU, so that it is the same on any device."""

    torch: torch.Generator
    python: random.Random

    @classmethod
    def of(cls, seed: int, number: int) -> Draw:
        # torch's CPU generator reads the low 32 bits only, so both numbers must be in them.
        mixed = (seed * 0x9E3779B1 + number) % 2**32
        return cls(torch.Generator().manual_seed(mixed), random.Random(mixed))


@dataclass(frozen=True)
class Progress:
    """One finished step."""

    step: int  # counted from 1
    loss: float
    rate: float


def train_task(task: Task, hyper: Hyper, folder: Path, *, every: int = 100) -> Iterator[Progress]:
    """Train, resuming from `folder` where it holds a state; yield after each step.

    The state is written every `every` steps and at the end; a run that is complete yields nothing.
    The result is in `task.averages`. `losses.csv` has step, loss, rate and time of every step.

    Raises:
        RequestError: the state was made with other settings.
        FewstepError: the loss is not a finite number.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = _State(task, hyper, folder)
    done = state.resume()
    with _open_log(folder / LOSSES if state.main else Path(os.devnull), done) as log:
        for step in range(done, hyper.steps):
            rate = hyper.rate * rate_factor(step, hyper)
            loss = state.advance(step, rate)
            log.write(f"{step + 1},{loss:.6f},{rate:.3e},{time.time():.1f}\n")
            if state.main and ((step + 1) % every == 0 or step + 1 == hyper.steps):
                state.save(step + 1)
            yield Progress(step + 1, loss, rate)


def restore(averages: Mapping[str, Learning], folder: Path) -> None:
    """Load a run's averaged weights into networks of the names that its task gave them."""
    tensors = load_file(folder / STATE)
    with torch.no_grad():
        parameters = _named_parameters(averages)  # all of them: after training, averages ask for no gradients
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


def process_state(**settings: Any) -> PartialState:
    """This process's device, and its place among those that `accelerate launch` started.

    `settings` count the first time, as those of `PartialState`.
    """
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"), **settings)


def bf16_autocast(device: torch.device, *, enabled: bool = True) -> torch.autocast:
    """Return a context that computes in bf16, where the device does that itself; else in fp32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled and has_bf16(device))


class _State:
    """Parameters, their average and the optimiser, as one thing that can be saved."""

    def __init__(self, task: Task, hyper: Hyper, folder: Path):
        self.task, self.hyper, self.folder = task, hyper, folder
        self.live = {key: p for key, p in _named_parameters(task.modules).items() if p.requires_grad}
        averages = _named_parameters(task.averages)
        self.mean = {key: averages[key] for key in self.live}
        for p in averages.values():
            p.requires_grad_(False)
        self.optimiser = Optimiser(
            self.live, muon=hyper.muon, weight_decay=hyper.weight_decay, paces=hyper.paces
        )
        self._devices = process_state()
        self.main: bool = self._devices.is_main_process

    def advance(self, step: int, rate: float) -> float:
        """One optimiser step; returns the loss, averaged over its batches and devices."""
        shares = self.hyper.accumulate
        losses = [self._backward(step * shares + share) / shares for share in range(shares)]
        for p in self.live.values():
            if p.grad is not None and self._devices.num_processes > 1:
                p.grad = reduce(p.grad, "mean")
        nn.utils.clip_grad_norm_(self.live.values(), self.hyper.clip)
        self.optimiser.step(rate)
        # An average that starts short, so that the first weights are soon forgotten.
        keep = min(self.hyper.ema, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.mean.values()), [p.detach() for p in self.live.values()], 1 - keep)
        loss = float(reduce(torch.stack(losses).sum(), "mean"))
        if not math.isfinite(loss):
            raise FewstepError(
                f"the loss of step {step + 1} is {loss}: lower the rate ({self.hyper.rate:g}), and start "
                f"again from {self.folder / STATE}, which is from before"
            )
        return loss

    def _backward(self, share: int) -> Tensor:
        """The loss of one batch, its gradients added to those that are there."""
        devices = self._devices
        draw = Draw.of(self.hyper.seed, share * devices.num_processes + devices.process_index)
        with bf16_autocast(devices.device, enabled=self.hyper.bf16):
            loss = self.task.loss(draw)
        (loss / self.hyper.accumulate).backward()
        return loss.detach().float()

    def save(self, step: int) -> None:
        """Write everything that a resumed run needs, whole or not at all."""
        tensors = {f"live.{key}": p.detach() for key, p in self.live.items()}
        tensors |= {f"ema.{key}": p for key, p in self.mean.items()}
        tensors |= dict(self.optimiser.tensors())
        metadata = {"step": str(step), "hyper": json.dumps(asdict(self.hyper))}
        write_tensors(tensors, self.folder / STATE, metadata)

    def resume(self) -> int:
        """Read the state back, if there is one; return how many steps are done."""
        path = self.folder / STATE
        if not path.exists():
            return 0
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        self._require_same(json.loads(metadata["hyper"]))
        tensors = load_file(path)
        with torch.no_grad():
            for key, p in self.live.items():
                p.copy_(tensors[f"live.{key}"])
                self.mean[key].copy_(tensors[f"ema.{key}"])
        self.optimiser.load(tensors)
        return int(metadata["step"])

    def _require_same(self, stored: dict[str, object]) -> None:
        """Check that a run goes on with the settings that it began with."""
        current = asdict(self.hyper)
        defaults = asdict(Hyper(steps=0, batch=0, rate=0))  # what a state from before a setting was there had
        changed = [name for name in current if current[name] != stored.get(name, defaults[name])]
        if changed:
            stored_text = ", ".join(f"{name}={stored.get(name, defaults[name])}" for name in changed)
            current_text = ", ".join(f"{name}={current[name]}" for name in changed)
            raise RequestError(
                f"{self.folder} holds a run with {stored_text}, and asked is {current_text}: ask for the "
                "same, or for another folder"
            )


def _open_log(path: Path, done: int) -> TextIO:
    """The log, without what an interrupted run wrote after its last state."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    kept = [line for line in lines if int(line.split(",", 1)[0]) <= done]
    file = path.open("w", buffering=1)
    file.writelines(kept)
    return file


def _named_parameters(networks: Mapping[str, Learning]) -> dict[str, Tensor]:
    """Every parameter, by "network.parameter"."""
    return {f"{name}.{key}": p for name, network in networks.items() for key, p in network.named_parameters()}
