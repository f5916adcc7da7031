"""The decisions of `place()`, one function each: what was decided, and a sentence why."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from fewstep.devices.memory import Footprint, Need
from fewstep.devices.probe import Cpu, Cuda, Mps, Probe, Spot
from fewstep.errors import RequestError
from fewstep.limits import OFFLOADS

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
WORTHWHILE = 1.1  # times as fast: less may be the measurement's noise


class TooSmallError(RequestError):
    """The model does not fit on a device; `place` tries the next one."""


def best(spot: Spot, probe: Probe, short: Sequence[str]) -> str:
    """Why this device, where the user did not name it."""
    if short:
        return "; ".join(short)
    match spot:
        case Cuda():
            others = f", the most of {len(probe.cuda)} GPUs" if len(probe.cuda) > 1 else ""
            return f"{spot.name} with {left(spot.free)} of {left(spot.total)} GiB free{others}"
        case Mps():
            return f"{spot.name} with {left(spot.free)} of {left(spot.total)} GiB free"
        case Cpu():
            return "no GPU was found"


def precision(spot: Spot, need: Need, asked: str) -> tuple[torch.dtype, str]:
    """The dtype of UNet and text encoders."""
    if asked != "auto":
        _refuse(spot, asked)
        return DTYPES[asked], f"{asked}: asked for"
    match spot:
        case Cuda(bf16=True):
            return torch.bfloat16, f"bf16: computed by the GPU's own units (capability {_dotted(spot)})"
        case Cuda():
            return torch.float16, f"fp16: bf16 needs capability 8.0, and this GPU has {_dotted(spot)}"
        case Mps():
            return torch.float16, "fp16: half the memory of fp32, and faster on MPS"
    if need.small:
        return torch.float32, "fp32: so small a model gains nothing from bf16"
    if not spot.bf16:
        return torch.float32, "fp32: this CPU has no bf16 instructions"
    measured = f"convolutions in bf16 ran {spot.bf16_speedup:.2f} times as fast as in fp32"
    if spot.bf16_speedup > WORTHWHILE:
        return torch.bfloat16, f"bf16: {measured}"
    return torch.float32, f"fp32: {measured}, not worth its rounding"


def _refuse(spot: Spot, asked: str) -> None:
    match spot, asked:
        case Cpu(), "fp16":
            raise RequestError("precision='fp16' on a CPU is slow and incomplete: choose fp32 or bf16")
        case Cuda(bf16=False), "bf16":
            raise RequestError(
                f"precision='bf16' needs capability 8.0; {spot.device}, {spot.name}, has {_dotted(spot)}: "
                "choose fp16 or fp32"
            )
        case Mps(bf16=False), "bf16":
            raise RequestError("precision='bf16' on MPS needs macOS 14: choose fp16 or fp32")


def vae_precision(spot: Spot, need: Need, dtype: torch.dtype) -> tuple[torch.dtype, str]:
    """The VAE's dtype. SDXL's own overflows in fp16; never fp32 in silence, which takes twice the memory."""
    if dtype != torch.float16:
        return dtype, f"VAE in {NAMES[dtype]}: like the UNet"
    if spot.bf16:
        return torch.bfloat16, "VAE in bf16: fp16 has too small a range for SDXL's, and bf16 has fp32's"
    if need.vae_fp16_safe:
        return torch.float16, "VAE in fp16: this one is made for it"
    return torch.float16, (
        "VAE in fp16: there is no bf16 here, and this VAE may overflow; where it does, a picture is decoded "
        "again in fp32. `hf download madebyollin/sdxl-vae-fp16-fix` gets one for SDXL that does not"
    )


def batch(spot: Spot) -> tuple[int, str]:
    """Pictures per UNet call; 0 is all.

    One by one where it costs little: the bits of a picture then cannot depend on its neighbours,
    and MPS has batch faults (diffusers#3432).
    """
    if isinstance(spot, Cuda):
        return 0, "whole batches: a GPU is faster so"
    return 1, "pictures one by one: it costs little here, and their bits cannot depend on each other"


def layout(spot: Spot, need: Need) -> tuple[bool, str]:
    """Channels last?"""
    if isinstance(spot, Mps):
        return False, "channels first: the layout of MPS"
    if need.small:
        return False, "channels first: changing the layout costs more than it gains in a small model"
    return True, "channels last: convolutions are faster so"


def arrangement(spot: Spot, cpu: Cpu, size: Footprint, asked: str) -> tuple[str, bool, tuple[str, str]]:
    """Offload and tiling: the fastest way in which the model fits."""
    free, ram = _free(spot), _free(cpu)
    ways = _offloads(spot, asked)
    possible = [how for how in ways if how == "none" or size.weights <= ram]
    for how in possible:
        for tiling in (False, True):
            if size.on_device(how, tiling) <= free:
                return how, tiling, _why(spot, size, how, tiling)
    short = []
    if possible:
        least = size.on_device(possible[-1], True)
        how = f" with offload={possible[-1]!r}" if isinstance(spot, Cuda) else ""
        short += [f"the model needs {needed(least)} GiB on {spot.device}{how}, and {left(free)} GiB are free"]
    if len(possible) < len(ways):
        short += [f"weights that wait in RAM need {needed(size.weights)} GiB of it, of {left(ram)} free"]
    raise TooSmallError("; ".join(short))


def _offloads(spot: Spot, asked: str) -> tuple[str, ...]:
    """The ways to try, the fastest first. Other devices share the CPU's memory, or are it."""
    if asked != "auto":
        return (asked,)
    return OFFLOADS[1:] if isinstance(spot, Cuda) else ("none",)


def _why(spot: Spot, size: Footprint, how: str, tiling: bool) -> tuple[str, str]:
    names = {"none": "no offload", "model": "offload by network", "sequential": "offload by layer"}
    taken = f"takes {needed(size.on_device(how, tiling))} GiB"
    free = f" of {left(spot.free)} free" if spot.free else ", and nothing tells how much is free"
    instead = "" if how == "none" else f"; without it, {needed(size.on_device('none', True))} at least"
    tiles = f"tiles in the VAE: with whole pictures, {needed(size.on_device(how, False))} GiB"
    return (
        f"{names[how]}: {taken}{free}{instead}",
        tiles if tiling else "no tiles in the VAE: whole pictures fit",
    )


def _free(spot: Spot) -> float:
    """Bytes; without end where a system does not tell how much RAM is free."""
    return math.inf if isinstance(spot, Cpu) and not spot.free else spot.free


def _dotted(gpu: Cuda) -> str:
    return ".".join(map(str, gpu.capability))


def needed(count: float) -> str:
    """Bytes in GiB, to the next tenth above, so that it never reads like what is free."""
    return f"{math.ceil(count / 2**30 * 10) / 10:.1f}"


def left(count: float) -> str:
    """Bytes in GiB, to the next tenth below."""
    return f"{math.floor(count / 2**30 * 10) / 10:.1f}"
