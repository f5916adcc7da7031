"""`place()`: from what was seen, and what a model needs, to where and how it runs, and why."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from fewstep.devices import rules
from fewstep.devices.memory import Need, footprint
from fewstep.devices.probe import Cpu, Cuda, Probe, Spot
from fewstep.devices.rules import TooSmallError
from fewstep.errors import RequestError
from fewstep.limits import check_names


@dataclass(frozen=True, kw_only=True)
class Placement:
    """What was decided."""

    device: torch.device
    dtype: torch.dtype  # of UNet and text encoders; latents between steps are always fp32
    vae_dtype: torch.dtype
    batch: int  # pictures per UNet call; 0 is all at once
    channels_last: bool
    offload: str  # none; model: one network at a time is on the device; sequential: one layer at a time
    tiling: bool  # the VAE works in tiles
    threads: int  # cores that this process may use
    reasons: tuple[str, ...]  # "decision: why", one for each

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format

    @property
    def home(self) -> torch.device:
        """Where the weights are between uses."""
        return self.device if self.offload == "none" else torch.device("cpu")


@dataclass(frozen=True)
class _Asked:
    """The user's words."""

    device: str
    precision: str
    offload: str


def place(
    probe: Probe, need: Need, device: str = "auto", precision: str = "auto", offload: str = "auto"
) -> Placement:
    """Choose where a model runs, in which dtypes, and how it fits. Looks at nothing but its arguments.

    `RequestError` where that is not on this machine, or the model is too large for it.
    """
    check_names(device, precision, offload)
    asked = _Asked(device, precision, offload)
    try:
        return _first(probe, need, asked)
    except TooSmallError as error:
        raise RequestError(f"{error}: {_advice(probe, need, asked)}") from None


def _first(probe: Probe, need: Need, asked: _Asked) -> Placement:
    """On the best device that is large enough."""
    short: list[str] = []
    for spot in _spots(probe, asked):
        try:
            made = _on(spot, probe.cpu, need, asked)
        except TooSmallError as error:
            short.append(str(error))
        except RequestError:
            if not short:  # what only a fallback cannot do is no news
                raise
        else:
            why = "asked for" if asked.device == spot.device else rules.best(spot, probe, short)
            return replace(made, reasons=(f"{spot.device}: {why}", *made.reasons))
    raise TooSmallError("; ".join(short))


def _spots(probe: Probe, asked: _Asked) -> list[Spot]:
    """The devices that may be used, the best first; of GPUs, those with more free memory."""
    every: list[Spot] = [*sorted(probe.cuda, key=lambda gpu: -gpu.free)]
    every += [probe.cpu] if probe.mps is None else [probe.mps, probe.cpu]
    named = [spot for spot in every if asked.device in (spot.device, spot.device.split(":")[0])]
    allowed = every if asked.device == "auto" else named[:1]
    if not allowed:
        there = ", ".join(spot.device for spot in every)
        raise RequestError(f"device={asked.device!r} is not on this machine: choose auto or one of {there}")
    if asked.offload in ("model", "sequential"):
        allowed = [spot for spot in allowed if isinstance(spot, Cuda)]
        if not allowed:
            raise RequestError(
                f"offload={asked.offload!r} moves weights between RAM and a CUDA GPU, and there is none in "
                "use: leave offload out"
            )
    return allowed


def _on(spot: Spot, cpu: Cpu, need: Need, asked: _Asked) -> Placement:
    """Every decision for one device."""
    dtype, why_dtype = rules.precision(spot, need, asked.precision)
    vae_dtype, why_vae = rules.vae_precision(spot, need, dtype)
    batch, why_batch = rules.batch(spot)
    channels_last, why_layout = rules.layout(spot, need)
    rows = 1 if batch else 2  # where guidance is on, a picture has two, and they run together
    size = footprint(need, dtype, vae_dtype, rows)
    offload, tiling, why_fit = rules.arrangement(spot, cpu, size, asked.offload)
    why_threads = f"threads on the CPU, {cpu.cores}: the cores that this process may use"
    return Placement(
        device=torch.device(spot.device),
        dtype=dtype,
        vae_dtype=vae_dtype,
        batch=batch,
        channels_last=channels_last,
        offload=offload,
        tiling=tiling,
        threads=cpu.cores,
        reasons=(why_dtype, why_vae, why_batch, why_layout, *why_fit, why_threads),
    )


def _advice(probe: Probe, need: Need, asked: _Asked) -> str:
    """What to type: the first change of the request with which the model fits."""
    changes = ({"offload": "auto"}, {"precision": "auto"}, {"precision": "bf16"}, {"device": "auto"})
    for change in changes:
        try:
            _first(probe, need, replace(asked, **change))
        except RequestError:
            continue
        return ", ".join(f"type {name}={value!r}" for name, value in change.items())
    return "free some memory, or take a smaller model, such as model='ssd-1b' or model='tiny'"
