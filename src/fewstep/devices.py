"""The device manager: `probe()` looks at the machine, `place()` decides. Only here is hardware named."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fewstep.errors import RequestError

DEVICES = ("auto", "cuda", "mps", "cpu")
PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What was seen."""

    cuda: bool
    cuda_bf16: bool  # compute capability 8.0 and up
    mps: bool
    cpu_bf16: bool  # instructions, not emulation: bf16 without them is slower than fp32


@dataclass(frozen=True, kw_only=True)
class Placement:
    """What was decided."""

    device: torch.device
    dtype: torch.dtype  # of the weights; latents between steps are always fp32
    batch: int  # pictures per UNet call; 0 is all at once
    channels_last: bool

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format


def probe() -> Probe:
    """Look at the machine; changes nothing."""
    cuda = torch.cuda.is_available()
    return Probe(
        cuda=cuda,
        cuda_bf16=cuda and torch.cuda.get_device_capability()[0] >= 8,
        mps=torch.backends.mps.is_available(),
        cpu_bf16=torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported(),
    )


def place(seen: Probe, device: str = "auto", precision: str = "auto", *, small: bool = False) -> Placement:
    """Choose device and dtype. `small`: a model whose overheads outweigh its arithmetic."""
    kind = _device(seen, device)
    if precision not in ("auto", *PRECISIONS):
        raise RequestError(f"precision={precision!r}: choose one of auto, {', '.join(PRECISIONS)}")
    if kind == "cpu" and precision == "fp16":
        raise RequestError("precision='fp16' on a CPU is slow and incomplete: choose fp32 or bf16")
    dtype = _dtype(seen, kind, small) if precision == "auto" else PRECISIONS[precision]
    return Placement(
        device=torch.device(kind),
        dtype=dtype,
        # One by one where it costs little: the bits of a picture then cannot depend on its
        # neighbours, and MPS has batch faults (diffusers#3432).
        batch=0 if kind == "cuda" else 1,
        channels_last=kind != "mps" and not small,
    )


def _device(seen: Probe, device: str) -> str:
    there = {"cuda": seen.cuda, "mps": seen.mps, "cpu": True}
    if device == "auto":
        return next(name for name, present in there.items() if present)
    if device not in there:
        raise RequestError(f"device={device!r}: choose one of {', '.join(DEVICES)}")
    if not there[device]:
        present = ", ".join(name for name, ok in there.items() if ok)
        raise RequestError(f"device={device!r} is not on this machine: choose auto or one of {present}")
    return device


def _dtype(seen: Probe, kind: str, small: bool) -> torch.dtype:
    if kind == "cuda":
        return torch.bfloat16 if seen.cuda_bf16 else torch.float16
    if kind == "mps":
        return torch.float16
    return torch.bfloat16 if seen.cpu_bf16 and not small else torch.float32
