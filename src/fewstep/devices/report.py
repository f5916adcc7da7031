"""What `fewstep env` says: the machine, what was decided for a model on it, and why."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import torch

from fewstep.devices.memory import ModelSize
from fewstep.devices.place import DTYPE_NAMES, Placement, gib_left, place
from fewstep.devices.probe import Probe
from fewstep.errors import RequestError

PACKAGES = ("fewstep", "torch", "diffusers", "transformers", "safetensors", "huggingface_hub")


def device_report(probe: Probe, needs: Mapping[str, ModelSize]) -> dict[str, Any]:
    """One JSON object with the same keys on every machine; `needs` is by model name."""
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "machine": asdict(probe),
        "threads": {"torch": torch.get_num_threads(), "cores": probe.cpu.cores},
        "models": {name: _decisions(probe, need) for name, need in needs.items()},
    }


def report_as_text(report: Mapping[str, Any]) -> str:
    """Return `device_report`'s object as lines to be read at a glance."""
    machine = report["machine"]
    rows = [
        ("versions", ", ".join(f"{name} {number}" for name, number in report["versions"].items())),
        ("system", machine["platform"]),
        ("cpu", _cpu_text(machine["cpu"])),
        *(("cuda:" + str(gpu["index"]), _gpu_text(gpu)) for gpu in machine["cuda"]),
    ]
    if machine["mps"] is not None:
        rows.append(("mps", _memory_text(machine["mps"])))
    rows.append(("threads", _threads_text(**report["threads"])))
    for name, model in report["models"].items():
        rows += [("", ""), (name, model["error"] or _places_text(model))]
        rows += [("", f"- {reason}") for reason in model["reasons"]]
    return "\n".join(f"{label:9} {text}".rstrip() for label, text in rows)


def _decisions(probe: Probe, need: ModelSize) -> dict[str, Any]:
    try:
        placement = place(probe, need)
    except RequestError as error:
        return {**dict.fromkeys(Placement.__dataclass_fields__), "reasons": [], "error": str(error)}
    values = {name: getattr(placement, name) for name in Placement.__dataclass_fields__}
    names = {
        "device": str(placement.device),
        "dtype": DTYPE_NAMES[placement.dtype],
        "vae_dtype": DTYPE_NAMES[placement.vae_dtype],
    }
    return {**values, **names, "reasons": list(placement.reasons), "error": ""}


def _places_text(model: Mapping[str, Any]) -> str:
    tiles = ", tiles" if model["tiling"] else ""
    offload = f", offload={model['offload']}" if model["offload"] != "none" else ""
    return f"{model['device']}, {model['dtype']}, VAE {model['vae_dtype']}{tiles}{offload}"


def _cpu_text(cpu: Mapping[str, Any]) -> str:
    bf16 = [
        name for name, supported in (("AMX", cpu["amx_bf16"]), ("AVX-512", cpu["avx512_bf16"])) if supported
    ]
    gain = f", {cpu['bf16_speedup']:.2f} times as fast as fp32" if bf16 else ""
    memory = f"{gib_left(cpu['free'])} GiB free" if cpu["free"] else "free memory unknown"
    return f"{cpu['name']}, {cpu['cores']} cores, {memory}, bf16: {' and '.join(bf16) or 'none'}{gain}"


def _gpu_text(gpu: Mapping[str, Any]) -> str:
    major, minor = gpu["capability"]
    return f"{_memory_text(gpu)}, capability {major}.{minor}"


def _memory_text(device: Mapping[str, Any]) -> str:
    return f"{device['name']}, {gib_left(device['free'])} of {gib_left(device['total'])} GiB free"


def _threads_text(torch: int, cores: int) -> str:
    more = f"; loading on the CPU lowers torch's to {cores}" if torch > cores else ""
    return f"torch has {torch}, for {cores} cores{more}"
