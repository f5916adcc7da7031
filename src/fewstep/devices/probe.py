"""`probe()`: what this machine has, and how much of it is free for this process."""

from __future__ import annotations

import logging
import math
import os
import platform
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from fewstep.devices import cgroup

_log = logging.getLogger("fewstep")


@dataclass(frozen=True, kw_only=True)
class Cuda:
    """An NVIDIA GPU, or an AMD one under ROCm."""

    index: int
    name: str
    capability: tuple[int, int]
    total: int  # bytes
    free: int  # bytes

    @property
    def device(self) -> str:
        return f"cuda:{self.index}"

    @property
    def bf16(self) -> bool:
        """Computed by the hardware, from Ampere on; older GPUs emulate it."""
        return self.capability >= (8, 0)


@dataclass(frozen=True, kw_only=True)
class Mps:
    """The GPU of an Apple computer, which shares the memory of the CPU."""

    name: str
    total: int  # bytes: what Metal recommends as the most
    free: int  # bytes of it that this process does not use
    bf16: bool  # from macOS 14 on

    @property
    def device(self) -> str:
        return "mps"


@dataclass(frozen=True, kw_only=True)
class Cpu:
    """The processor, as far as this process may use it."""

    name: str
    cores: int  # within affinity and container quota
    free: int  # bytes of RAM that can still be had; 0 where the system does not tell
    amx_bf16: bool
    avx512_bf16: bool
    bf16_speedup: float  # seconds of a convolution in fp32 / in bf16; 0 where not measured

    @property
    def device(self) -> str:
        return "cpu"

    @property
    def bf16(self) -> bool:
        """Instructions, not emulation."""
        return self.amx_bf16 or self.avx512_bf16


Device = Cuda | Mps | Cpu


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What was seen."""

    platform: str
    torch: str  # version
    cuda: tuple[Cuda, ...]
    mps: Mps | None
    cpu: Cpu


def probe(device: str = "auto", root: Path = Path("/")) -> Probe:
    """Look at the machine; changes nothing. `root` is where /proc and /sys are found.

    `device` is what `place` will be asked for. GPUs are passed over where that is "cpu": asking one
    for its free memory opens a context on it, which takes some of it and forbids forks.
    """
    return Probe(
        platform=platform.platform(),
        torch=torch.__version__,
        cuda=tuple(_probe_cudas()) if device != "cpu" and torch.cuda.is_available() else (),
        mps=_probe_mps() if torch.backends.mps.is_available() else None,
        cpu=_probe_cpu(root),
    )


def _probe_cudas() -> Iterator[Cuda]:
    for index in range(torch.cuda.device_count()):
        try:
            yield _probe_cuda(index)
        except RuntimeError as error:  # in exclusive mode, and another process's
            _log.info("cuda:%d cannot be opened: %s", index, str(error).partition("\n")[0])


def _probe_cuda(index: int) -> Cuda:
    properties = torch.cuda.get_device_properties(index)
    free, total = torch.cuda.mem_get_info(index)
    # What torch's allocator keeps for later is ours as well.
    cached = torch.cuda.memory_reserved(index) - torch.cuda.memory_allocated(index)
    return Cuda(
        index=index,
        name=properties.name,
        capability=(properties.major, properties.minor),
        total=total,
        free=free + cached,
    )


def _probe_mps() -> Mps:
    total = torch.mps.recommended_max_memory()
    return Mps(
        name=platform.processor() or "Apple GPU",
        total=total,
        free=total - torch.mps.current_allocated_memory(),
        bf16=torch.backends.mps.is_macos_or_newer(14, 0),
    )


def _probe_cpu(root: Path) -> Cpu:
    amx, avx512 = torch.cpu._is_amx_tile_supported(), torch.cpu._is_avx512_bf16_supported()
    return Cpu(
        name=cpu_name(root),
        cores=cores(root),
        free=free_ram(root),
        amx_bf16=amx,
        avx512_bf16=avx512,
        bf16_speedup=bf16_speedup() if amx or avx512 else 0.0,
    )


def has_bf16(device: torch.device) -> bool:
    """Return whether this device computes bf16 itself; emulated, it takes ten times as long as fp32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "mps":
        return torch.backends.mps.is_macos_or_newer(14, 0)
    # torch's own names for this are public from 2.13 on only; its floor here is 2.10.
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def cpu_name(root: Path) -> str:
    """What the processor calls itself."""
    lines = cgroup.text(root / "proc" / "cpuinfo").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


@cache
def processor_name(device: torch.device) -> str:
    """Return what computes: the GPU, or the CPU and the instructions that torch uses of it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{cpu_name(Path('/'))}, {torch.backends.cpu.get_cpu_capability()}"


def cores(root: Path) -> int:
    """Cores that this process may use: its affinity, within the container's quota rounded up."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return math.ceil(min(allowed, cgroup.cores(root)))


def free_ram(root: Path) -> int:
    """Bytes of RAM that can still be had, within the container's limit; 0 where the system does not tell."""
    fields = cgroup.text(root / "proc" / "meminfo").split()
    if "MemAvailable:" in fields:
        available = int(fields[fields.index("MemAvailable:") + 1]) * 1024  # written in kB
        return int(min(available, cgroup.memory(root)))
    if platform.system() == "Darwin":  # the share that Metal recommends of the same memory
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * 2 // 3
    return 0


_measuring = threading.Lock()  # two at once would each find the other's number of threads


@cache
def bf16_speedup() -> float:
    """How many times as fast a convolution of SDXL's VAE runs in bf16 as in fp32, on one core.

    The instructions alone promise nothing: the gain depends on processor and torch build. Measured
    once per process, in 0.1 s.
    """
    with _measuring, ThreadPoolExecutor(1) as executor:
        return executor.submit(_measure_speedup, torch.get_num_threads()).result()


@torch.no_grad()
def _measure_speedup(threads: int) -> float:
    """Return bf16's speedup; to be called in a thread of its own, which has its own number of OpenMP threads.

    One, because on a busy machine several wait for each other, and the waiting would be measured.
    """
    torch.set_num_threads(1)
    try:
        operands = {dtype: _convolution_operands(dtype) for dtype in (torch.float32, torch.bfloat16)}
        best = dict.fromkeys(operands, math.inf)
        end = time.perf_counter() + 0.1
        while time.perf_counter() < end:
            for dtype, (x, weight) in operands.items():
                started = time.perf_counter()
                F.conv2d(x, weight, padding=1)
                best[dtype] = min(best[dtype], time.perf_counter() - started)
    finally:
        torch.set_num_threads(threads)  # what threads to come will start with
    return best[torch.float32] / best[torch.bfloat16]


def _convolution_operands(dtype: torch.dtype) -> list[Tensor]:
    """A picture of 32x32 with 128 channels and a 3x3 kernel: 1 ms, shorter than a turn of the scheduler's."""
    shapes = (1, 128, 32, 32), (128, 128, 3, 3)
    ones = (torch.ones(shape, dtype=dtype, device="cpu") for shape in shapes)
    return [operand.contiguous(memory_format=torch.channels_last) for operand in ones]
