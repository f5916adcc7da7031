"""`place()`: from what was seen, and what a model needs, to where and how it runs, and why.

One function for each decision, which says what and why; then torch's threads on a shared CPU.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from fewstep.devices.memory import Footprint, ModelSize, footprint
from fewstep.devices.probe import Cpu, Cuda, Device, Mps, Probe
from fewstep.errors import RequestError
from fewstep.request.limits import check_engine_names
from fewstep.request.options import OFFLOADS, with_defaults


@dataclass(frozen=True, kw_only=True)
class Placement:
    """What was decided."""

    device: torch.device
    dtype: torch.dtype  # of UNet and text encoders; latents between steps are always fp32
    vae_dtype: torch.dtype
    batch: int  # rows per UNet call; 0 is all at once
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
class _Wishes:
    """The user's words."""

    device: str
    precision: str
    offload: str


def place(
    probe: Probe, need: ModelSize, device: str = "auto", precision: str = "auto", offload: str = "auto"
) -> Placement:
    """Choose where a model runs, in which dtypes, and how it fits. Looks at nothing but its arguments.

    `RequestError` where that is not on this machine, or the model is too large for it.
    """
    check_engine_names(with_defaults({"device": device, "precision": precision, "offload": offload}))
    wishes = _Wishes(device, precision, offload)
    try:
        return _place_on_first(probe, need, wishes)
    except TooSmallError as error:
        raise RequestError(f"{error}: {_advice_to_fit(probe, need, wishes)}") from None


def _place_on_first(probe: Probe, need: ModelSize, wishes: _Wishes) -> Placement:
    """Return the placement on the best device that is large enough."""
    short: list[str] = []
    for spot in _allowed_devices(probe, wishes):
        try:
            placement = _place_on(spot, probe.cpu, need, wishes)
        except TooSmallError as error:
            short.append(str(error))
        except RequestError:
            if not short:  # what only a fallback cannot do is no news
                raise
        else:
            why = "asked for" if wishes.device == spot.device else _why_best(spot, probe, short)
            return replace(placement, reasons=(f"{spot.device}: {why}", *placement.reasons))
    raise TooSmallError("; ".join(short))


def _allowed_devices(probe: Probe, wishes: _Wishes) -> list[Device]:
    """The devices that may be used, the best first; of GPUs, those with more free memory."""
    devices: list[Device] = [*sorted(probe.cuda, key=lambda gpu: -gpu.free)]
    devices += [probe.cpu] if probe.mps is None else [probe.mps, probe.cpu]
    matching = [spot for spot in devices if wishes.device in (spot.device, spot.device.split(":")[0])]
    allowed = devices if wishes.device == "auto" else matching[:1]
    if not allowed:
        names = ", ".join(spot.device for spot in devices)
        raise RequestError(f"device={wishes.device!r} is not on this machine: choose auto or one of {names}")
    if wishes.offload in ("model", "sequential"):
        allowed = [spot for spot in allowed if isinstance(spot, Cuda)]
        if not allowed:
            raise RequestError(
                f"offload={wishes.offload!r} moves weights between RAM and a CUDA GPU, and there is none in "
                "use: leave offload out"
            )
    return allowed


def _place_on(spot: Device, cpu: Cpu, need: ModelSize, wishes: _Wishes) -> Placement:
    """Return every decision for one device."""
    dtype, why_dtype = choose_precision(spot, need, wishes.precision)
    vae_dtype, why_vae = choose_vae_precision(spot, need, dtype)
    batch, why_batch = choose_batch(spot, need)
    channels_last, why_layout = choose_layout(spot)
    rows = 1 if batch else 2  # where guidance is on, a picture has two, and they run together
    size = footprint(need, dtype, vae_dtype, rows)
    offload, tiling, why_fit = choose_offload(spot, cpu, size, wishes.offload)
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


def _advice_to_fit(probe: Probe, need: ModelSize, wishes: _Wishes) -> str:
    """What to type: the first change of the request with which the model fits."""
    changes = ({"offload": "auto"}, {"precision": "auto"}, {"precision": "bf16"}, {"device": "auto"})
    for change in changes:
        try:
            _place_on_first(probe, need, replace(wishes, **change))
        except RequestError:
            continue
        return ", ".join(f"type {name}={value!r}" for name, value in change.items())
    return "free some memory, or take a smaller model, such as model='ssd-1b' or model='tiny'"


DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
SMALL_BATCH = 16  # rows; on two AVX2 cores the bundled UNet took 23 ms for one, 5.8 ms each for 16
MIN_SPEEDUP = 1.1  # times as fast: less may be the measurement's noise


class TooSmallError(RequestError):
    """The model does not fit on a device; `place` tries the next one."""


def _why_best(spot: Device, probe: Probe, short: Sequence[str]) -> str:
    """Return why this device was taken, where the user did not name it."""
    if short:
        return "; ".join(short)
    match spot:
        case Cuda():
            others = f", the most of {len(probe.cuda)} GPUs" if len(probe.cuda) > 1 else ""
            return f"{spot.name} with {gib_left(spot.free)} of {gib_left(spot.total)} GiB free{others}"
        case Mps():
            return f"{spot.name} with {gib_left(spot.free)} of {gib_left(spot.total)} GiB free"
        case Cpu():
            return "no GPU was found"


def choose_precision(spot: Device, need: ModelSize, precision: str) -> tuple[torch.dtype, str]:
    """The dtype of UNet and text encoders."""
    if precision != "auto":
        _refuse_precision(spot, precision)
        return DTYPES[precision], f"{precision}: asked for"
    match spot:
        case Cuda(bf16=True):
            return (
                torch.bfloat16,
                f"bf16: computed by the GPU's own units (capability {_cuda_capability(spot)})",
            )
        case Cuda():
            return (
                torch.float16,
                f"fp16: bf16 needs capability 8.0, and this GPU has {_cuda_capability(spot)}",
            )
        case Mps():
            return torch.float16, "fp16: half the memory of fp32, and faster on MPS"
    if need.small:
        return torch.float32, "fp32: so small a model gains nothing from bf16"
    if not spot.bf16:
        return torch.float32, "fp32: this CPU has no bf16 instructions"
    measured = f"convolutions in bf16 ran {spot.bf16_speedup:.2f} times as fast as in fp32"
    if spot.bf16_speedup > MIN_SPEEDUP:
        return torch.bfloat16, f"bf16: {measured}"
    return torch.float32, f"fp32: {measured}, not worth its rounding"


def _refuse_precision(spot: Device, precision: str) -> None:
    match spot, precision:
        case Cpu(), "fp16":
            raise RequestError("precision='fp16' on a CPU is slow and incomplete: choose fp32 or bf16")
        case Cuda(bf16=False), "bf16":
            raise RequestError(
                f"precision='bf16' needs capability 8.0; {spot.device}, {spot.name}, has "
                f"{_cuda_capability(spot)}: "
                "choose fp16 or fp32"
            )
        case Mps(bf16=False), "bf16":
            raise RequestError("precision='bf16' on MPS needs macOS 14: choose fp16 or fp32")


def choose_vae_precision(spot: Device, need: ModelSize, dtype: torch.dtype) -> tuple[torch.dtype, str]:
    """The VAE's dtype. SDXL's own overflows in fp16; never fp32 in silence, which takes twice the memory."""
    if dtype != torch.float16:
        return dtype, f"VAE in {DTYPE_NAMES[dtype]}: like the UNet"
    if spot.bf16:
        return torch.bfloat16, "VAE in bf16: fp16 has too small a range for SDXL's, and bf16 has fp32's"
    if need.vae_fp16_safe:
        return torch.float16, "VAE in fp16: this one is made for it"
    return torch.float16, (
        "VAE in fp16: there is no bf16 here, and this VAE may overflow; where it does, a picture is decoded "
        "again in fp32. `hf download madebyollin/sdxl-vae-fp16-fix` gets one for SDXL that does not"
    )


def choose_batch(spot: Device, need: ModelSize) -> tuple[int, str]:
    """Rows per UNet call, of one call or of several that run at once; 0 is any number."""
    if isinstance(spot, Cuda):
        return 0, "whole batches: a GPU is faster so"
    if isinstance(spot, Mps):
        return 1, "pictures one by one: MPS has batch faults (diffusers#3432)"
    if need.small:
        return (
            SMALL_BATCH,
            f"up to {SMALL_BATCH} rows at once: a small UNet takes a third of the time a row so",
        )
    return 1, "pictures one by one: so large a UNet is hardly faster with several"


def choose_layout(spot: Device) -> tuple[bool, str]:
    """Return whether weights are channels last, and why."""
    if isinstance(spot, Mps):
        return False, "channels first: the layout of MPS"
    return True, "channels last: convolutions are faster so"


def choose_offload(
    spot: Device, cpu: Cpu, size: Footprint, offload: str
) -> tuple[str, bool, tuple[str, str]]:
    """Offload and tiling: the fastest way in which the model fits."""
    free, ram = _free_bytes(spot), _free_bytes(cpu)
    ways = _offloads_to_try(spot, offload)
    possible = [way for way in ways if way == "none" or size.weights <= ram]
    for way in possible:
        for tiling in (False, True):
            if size.on_device(way, tiling) <= free:
                return way, tiling, _why_offload(spot, size, way, tiling)
    short = []
    if possible:
        least = size.on_device(possible[-1], True)
        with_offload = f" with offload={possible[-1]!r}" if isinstance(spot, Cuda) else ""
        short += [
            f"the model needs {gib_needed(least)} GiB on {spot.device}{with_offload}, "
            f"and {gib_left(free)} GiB are free"
        ]
    if len(possible) < len(ways):
        short += [
            f"weights that wait in RAM need {gib_needed(size.weights)} GiB of it, of {gib_left(ram)} free"
        ]
    raise TooSmallError("; ".join(short))


def _offloads_to_try(spot: Device, offload: str) -> tuple[str, ...]:
    """The ways to try, the fastest first. Other devices share the CPU's memory, or are it."""
    if offload != "auto":
        return (offload,)
    return OFFLOADS[1:] if isinstance(spot, Cuda) else ("none",)


def _why_offload(spot: Device, size: Footprint, offload: str, tiling: bool) -> tuple[str, str]:
    names = {"none": "no offload", "model": "offload by network", "sequential": "offload by layer"}
    taken = f"takes {gib_needed(size.on_device(offload, tiling))} GiB"
    free = f" of {gib_left(spot.free)} free" if spot.free else ", and nothing tells how much is free"
    instead = (
        "" if offload == "none" else f"; without it, {gib_needed(size.on_device('none', True))} at least"
    )
    tiles = f"tiles in the VAE: with whole pictures, {gib_needed(size.on_device(offload, False))} GiB"
    return (
        f"{names[offload]}: {taken}{free}{instead}",
        tiles if tiling else "no tiles in the VAE: whole pictures fit",
    )


def _free_bytes(spot: Device) -> float:
    """Bytes; without end where a system does not tell how much RAM is free."""
    return math.inf if isinstance(spot, Cpu) and not spot.free else spot.free


def _cuda_capability(gpu: Cuda) -> str:
    return ".".join(map(str, gpu.capability))


def gib_needed(count: float) -> str:
    """Bytes in GiB, to the next tenth above, so that it never reads like what is free."""
    return f"{math.ceil(count / 2**30 * 10) / 10:.1f}"


def gib_left(count: float) -> str:
    """Bytes in GiB, to the next tenth below."""
    return f"{math.floor(count / 2**30 * 10) / 10:.1f}"


_log = logging.getLogger("fewstep")


def limit_threads(placement: Placement) -> None:
    """Lower torch's threads to the cores that this process may use; never raise them.

    torch counts the machine's cores, not a container's quota, and more threads than cores wait for
    each other. The number is the whole process's, which is why only loading a model on the CPU
    changes it.
    """
    threads = torch.get_num_threads()
    if placement.device.type == "cpu" and threads > placement.threads:
        torch.set_num_threads(placement.threads)
        _log.info("torch had %d threads for %d cores, and now has as many", threads, placement.threads)
