"""Machines that `place` is asked about, and what it should answer for SDXL.

python -m tests.devices.machines        prints the table with every reason
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace

from fewstep.devices import Cpu, Cuda, ModelSize, Mps, Probe, place
from fewstep.devices.place import DTYPE_NAMES
from fewstep.errors import RequestError

GIB = 2**30
SDXL = ModelSize(unet=2_567_463_684, text=817_720_320, vae=83_653_863, side=1024, vae_fp16_safe=False)
TINY = ModelSize(unet=5_850_020, text=1_142_272, vae=3_274_055, side=128, vae_fp16_safe=True)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What is decided, as one reads it aloud; `says` is part of a reason, or of the refusal."""

    device: str = "refused"
    dtypes: str = ""  # of UNet and VAE
    offload: str = "none"
    tiling: bool = False
    says: str


def cpu(free: float = 48, *, speedup: float = 0.0) -> Cpu:
    """A processor with so many GiB free."""
    return Cpu(
        name="CPU", cores=8, free=math.ceil(free * GIB),
        amx_bf16=speedup > 0, avx512_bf16=False, bf16_speedup=speedup,
    )  # fmt: skip


def gpu(
    name: str, free: float, capability: tuple[int, int] = (8, 6), *, index: int = 0, used: float = 0.6
) -> Cuda:
    """A GPU with so many GiB free, and so many used by others."""
    return Cuda(
        index=index, name=name, capability=capability,
        total=math.ceil((free + used) * GIB), free=math.ceil(free * GIB),
    )  # fmt: skip


def machine(*gpus: Cuda, ram: Cpu | None = None, mps: Mps | None = None) -> Probe:
    return Probe(platform="test", torch="2.13.0", cuda=gpus, mps=mps, cpu=cpu() if ram is None else ram)


def apple(total: float, *, bf16: bool = True) -> Mps:
    """Of the computer's memory Metal recommends two thirds."""
    size = int(total * 2 / 3 * GIB)
    return Mps(name="Apple M2", total=size, free=size, bf16=bf16)


MACHINES: dict[str, tuple[Probe, Answer]] = {
    "GTX 1650 4 GB": (
        machine(gpu("GTX 1650", 3.4, (7, 5))),
        Answer(device="cuda:0", dtypes="fp16 fp16", offload="sequential", says="hf download madebyollin"),
    ),
    "RTX 3050 4 GB, half taken": (
        machine(gpu("RTX 3050", 1.9, used=2.1)),
        Answer(device="cuda:0", dtypes="bf16 bf16", offload="sequential", tiling=True, says="pictures, 3.0"),
    ),
    "RTX 2060 6 GB": (
        machine(gpu("RTX 2060", 5.3, (7, 5))),
        Answer(device="cuda:0", dtypes="fp16 fp16", offload="sequential", says="this GPU has 7.5"),
    ),
    "RTX 4060 8 GB": (
        machine(gpu("RTX 4060", 7.1, (8, 9))),
        Answer(device="cuda:0", dtypes="bf16 bf16", offload="model", says="5.8 GiB of 7.1 free; without"),
    ),
    "RTX 4060 8 GB, no screen": (
        machine(gpu("RTX 4060", 7.7, (8, 9))),
        Answer(device="cuda:0", dtypes="bf16 bf16", tiling=True, says="with whole pictures, 9.3 GiB"),
    ),
    "RTX 4060 8 GB, 6 GB of RAM": (
        machine(gpu("RTX 4060", 7.1, (8, 9)), ram=cpu(5)),
        Answer(says="wait in RAM need 6.5 GiB of it, of 5.0 free"),
    ),
    "RTX 3060 12 GB": (
        machine(gpu("RTX 3060", 11.2)),
        Answer(device="cuda:0", dtypes="bf16 bf16", says="takes 9.3 GiB of 11.2 free"),
    ),
    "T4 16 GB": (
        machine(gpu("T4", 14.5, (7, 5)), ram=cpu(11)),
        Answer(device="cuda:0", dtypes="fp16 fp16", says="no bf16 here, and this VAE may overflow"),
    ),
    "RTX 4090 24 GB": (
        machine(gpu("RTX 4090", 22.9, (8, 9))),
        Answer(device="cuda:0", dtypes="bf16 bf16", says="capability 8.9"),
    ),
    "RTX A6000 48 GB": (
        machine(gpu("RTX A6000", 47.2)),
        Answer(device="cuda:0", dtypes="bf16 bf16", says="whole batches"),
    ),
    "H100 80 GB": (
        machine(gpu("H100", 78.9, (9, 0))),
        Answer(device="cuda:0", dtypes="bf16 bf16", says="H100 with 78.9 of 79.5 GiB free"),
    ),
    "H200 141 GB": (
        machine(gpu("H200", 139.3, (9, 0))),
        Answer(device="cuda:0", dtypes="bf16 bf16", says="channels last"),
    ),
    "two GPUs, one busy": (
        machine(gpu("RTX 3090", 2.0, used=21.7), gpu("RTX 3090", 23.1, index=1)),
        Answer(device="cuda:1", dtypes="bf16 bf16", says="23.1 of 23.7 GiB free, the most of 2 GPUs"),
    ),
    "a full GPU": (
        machine(gpu("RTX 3090", 0.8, used=22.9), ram=cpu(30)),
        Answer(device="cpu", dtypes="fp32 fp32", says="cpu: the model needs 1.3 GiB on cuda:0 with offload="),
    ),
    "Mac 16 GB": (
        machine(mps=apple(16), ram=cpu(32 / 3)),
        Answer(device="mps", dtypes="fp16 bf16", says="takes 9.3 GiB of 10.6 free"),
    ),
    "Mac 16 GB, macOS 13": (
        machine(mps=apple(16, bf16=False), ram=cpu(32 / 3)),
        Answer(device="mps", dtypes="fp16 fp16", says="this VAE may overflow"),
    ),
    "Mac 8 GB": (
        machine(mps=apple(8), ram=cpu(16 / 3)),
        Answer(says="7.6 GiB on mps, and 5.3 GiB are free; the model needs 14.6 GiB on cpu"),
    ),
    "CPU 64 GB": (
        machine(),
        Answer(device="cpu", dtypes="fp32 fp32", says="no bf16 instructions"),
    ),
    "CPU 64 GB, bf16": (
        machine(ram=cpu(speedup=4.2)),
        Answer(device="cpu", dtypes="bf16 bf16", says="ran 4.20 times as fast"),
    ),
    "CPU 64 GB, slow bf16": (
        machine(ram=cpu(speedup=1.05)),
        Answer(device="cpu", dtypes="fp32 fp32", says="not worth its rounding"),
    ),
    "CPU 16 GB": (
        machine(ram=cpu(15)),
        Answer(device="cpu", dtypes="fp32 fp32", tiling=True, says="tiles in the VAE"),
    ),
    "CPU 8 GB, bf16": (
        machine(ram=cpu(7.6, speedup=4.2)),
        Answer(device="cpu", dtypes="bf16 bf16", tiling=True, says="takes 7.6 GiB of 7.6 free"),
    ),
    "CPU 4 GB": (
        machine(ram=cpu(3.5)),
        Answer(says="needs 14.6 GiB on cpu, and 3.5 GiB are free: free some memory"),
    ),
    "RAM of unknown size": (
        machine(ram=replace(cpu(), free=0)),
        Answer(device="cpu", dtypes="fp32 fp32", says="nothing tells how much is free"),
    ),
}  # fmt: skip


def answer(probe: Probe, need: ModelSize = SDXL) -> tuple[str, str, str, bool, tuple[str, ...]]:
    """Device, dtypes, offload, tiling and reasons, or "refused" and why."""
    try:
        made = place(probe, need)
    except RequestError as error:
        return "refused", "", "none", False, (str(error),)
    dtypes = f"{DTYPE_NAMES[made.dtype]} {DTYPE_NAMES[made.vae_dtype]}"
    return str(made.device), dtypes, made.offload, made.tiling, made.reasons


def main() -> None:
    for name, (probe, _) in MACHINES.items():
        device, dtypes, offload, tiling, reasons = answer(probe)
        rows = [f"{name:28} {device:8} {dtypes:10} offload {offload:11} tiles {'yes' if tiling else 'no'}"]
        rows += [f"{'':28} - {reason}" for reason in reasons]
        sys.stdout.write("\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
