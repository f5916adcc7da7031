"""Placement is a pure function of what was seen and what is needed."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from typing import Any

import pytest
import torch

from fewstep.catalog.models import FP16_VAE
from fewstep.devices import ModelSize, Placement, Probe, place
from fewstep.errors import RequestError
from tests.devices.machines import MACHINES, SDXL, TINY, Answer, answer, apple, cpu, gpu, machine

AMPERE, TURING = gpu("A10", 22), gpu("T4", 14.5, (7, 5))


@pytest.mark.parametrize(("probe", "wanted"), MACHINES.values(), ids=MACHINES)
def test_sdxl_on_every_machine(probe: Probe, wanted: Answer) -> None:
    device, dtypes, offload, tiling, reasons = answer(probe)
    assert (device, dtypes, offload, tiling) == (wanted.device, wanted.dtypes, wanted.offload, wanted.tiling)
    assert any(wanted.says in reason for reason in reasons), reasons


@pytest.mark.parametrize("probe", [probe for probe, _ in MACHINES.values()], ids=MACHINES)
def test_reasons_are_one_line_each(probe: Probe) -> None:
    *_, reasons = answer(probe)
    assert len(reasons) in (1, 8)  # the refusal, or a sentence for each decision
    assert all(reason and "\n" not in reason for reason in reasons)
    assert len(set(reasons)) == len(reasons)


@pytest.mark.parametrize("probe", [probe for probe, _ in MACHINES.values()], ids=MACHINES)
def test_it_is_pure(probe: Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    def looked(*_: object, **__: object) -> None:
        raise AssertionError("place looked at the machine")

    for module in (torch.cuda, torch.mps, torch.cpu, torch.backends.mps):
        for name in dir(module):
            found = getattr(module, name)
            if callable(found) and not isinstance(found, type):
                monkeypatch.setattr(module, name, looked)
    monkeypatch.setattr(import_module("fewstep.devices.probe"), "bf16_speedup", looked)
    assert answer(probe) == answer(replace(probe))


def test_more_memory_is_never_worse() -> None:
    """Along rising memory a GPU goes from refusal over offloads to none, and never back."""
    order = ["refused", "sequential", "model", "none"]
    ranks = []
    for tenth in range(5, 150):
        device, _, offload, _, _ = answer(machine(gpu("GPU", tenth / 10), ram=cpu(8)))
        ranks.append(order.index(offload if device == "cuda:0" else "refused"))
    assert ranks == sorted(ranks)
    assert set(ranks) == {0, 1, 2, 3}


def test_weights_and_activations_stay_below_what_is_free() -> None:
    """The arithmetic, by hand: SDXL in bf16 is 6.46 GiB; a 1024x1024 decode 1.5 GiB, times 1.5."""
    assert answer(machine(gpu("GPU", 9.3)))[2:4] == ("none", False)
    assert answer(machine(gpu("GPU", 9.1)))[2:4] == ("none", True)
    assert answer(machine(gpu("GPU", 7.4)))[2:4] == ("model", False)
    assert answer(machine(gpu("GPU", 5.7)))[2:4] == ("sequential", False)


@pytest.mark.parametrize("how", ["model", "sequential"])
def test_offloaded_weights_wait_on_the_cpu(how: str) -> None:
    made = place(machine(AMPERE), SDXL, offload=how)
    assert (made.offload, made.device.type, made.home.type) == (how, "cuda", "cpu")
    assert place(machine(AMPERE), SDXL).home == torch.device("cuda:0")


def test_offload_none_is_obeyed() -> None:
    with pytest.raises(RequestError, match=r"7\.6 GiB on cuda:0 with offload='none'.*type offload='auto'"):
        place(machine(gpu("RTX 4060", 7.1), ram=cpu(8)), SDXL, offload="none")


@pytest.mark.parametrize("device", ["auto", "cpu", "mps"])
def test_offload_is_for_cuda(device: str) -> None:
    with pytest.raises(RequestError, match=r"between RAM and a CUDA GPU.* leave offload out"):
        place(machine(mps=apple(16)), SDXL, device, offload="model")


def test_offloading_needs_ram_for_the_weights() -> None:
    with pytest.raises(RequestError, match=r"weights that wait in RAM need 6\.5 GiB of it, of 5\.0 free"):
        place(machine(gpu("RTX 4060", 7.1), ram=cpu(5)), SDXL, "cuda", offload="model")


@pytest.mark.parametrize(
    ("probe", "device", "wanted"),
    [
        (machine(gpu("a", 9), gpu("b", 20, index=1)), "auto", "cuda:1"),
        (machine(gpu("a", 9), gpu("b", 20, index=1)), "cuda", "cuda:1"),
        (machine(gpu("a", 9), gpu("b", 20, index=1)), "cuda:0", "cuda:0"),
        (machine(gpu("a", 9), gpu("b", 9, index=1)), "auto", "cuda:0"),
        (machine(AMPERE, mps=apple(64)), "mps", "mps"),
        (machine(AMPERE), "cpu", "cpu"),
        (machine(mps=apple(64)), "auto", "mps"),
    ],
)
def test_devices(probe: Probe, device: str, wanted: str) -> None:
    made = place(probe, SDXL, device)
    assert str(made.device) == wanted
    assert (made.reasons[0] == f"{wanted}: asked for") == (device == wanted)


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "mps"])
def test_a_device_asked_for_is_not_replaced(device: str) -> None:
    probe = machine(gpu("old", 0.5), mps=apple(1))
    with pytest.raises(RequestError, match="are free: type device='auto'"):
        place(probe, SDXL, device)
    assert place(probe, SDXL).device.type == "cpu"


@pytest.mark.parametrize(
    ("spot", "precision", "dtypes"),
    [
        (AMPERE, "auto", (torch.bfloat16, torch.bfloat16)),
        (AMPERE, "fp16", (torch.float16, torch.bfloat16)),  # SDXL's VAE overflows in fp16
        (AMPERE, "fp32", (torch.float32, torch.float32)),
        (TURING, "auto", (torch.float16, torch.float16)),
        (TURING, "fp32", (torch.float32, torch.float32)),
    ],
)
def test_precisions_on_cuda(spot: Any, precision: str, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    made = place(machine(spot), SDXL, precision=precision)
    assert (made.dtype, made.vae_dtype) == dtypes
    assert (f"{precision}: asked for" in made.reasons) == (precision != "auto")


def test_the_fp16_vae_is_named_where_it_is_missing() -> None:
    unsafe = place(machine(TURING), SDXL)
    assert any(f"hf download {FP16_VAE}" in reason for reason in unsafe.reasons)
    safe = place(machine(TURING), replace(SDXL, vae_fp16_safe=True))
    assert "VAE in fp16: this one is made for it" in safe.reasons


@pytest.mark.parametrize(
    ("probe", "precision", "says"),
    [
        (machine(), "fp16", "on a CPU is slow and incomplete: choose fp32 or bf16"),
        (machine(TURING), "bf16", r"needs capability 8\.0; cuda:0, T4, has 7\.5: choose fp16 or fp32"),
        (machine(mps=apple(64, bf16=False)), "bf16", "on MPS needs macOS 14: choose fp16 or fp32"),
    ],
)
def test_precisions_that_are_refused(probe: Probe, precision: str, says: str) -> None:
    with pytest.raises(RequestError, match=says):
        place(probe, SDXL, precision=precision)


def test_a_fallback_cannot_hide_the_reason() -> None:
    """fp16 does not run on the CPU, but what is wrong here is the GPU's memory."""
    with pytest.raises(RequestError, match=r"on cuda:0.* 0\.5 GiB are free: type precision='auto'"):
        place(machine(gpu("old", 0.5)), SDXL, precision="fp16")


def test_half_the_memory_is_offered_on_a_cpu() -> None:
    with pytest.raises(RequestError, match=r"14\.0 GiB are free: type precision='bf16'"):
        place(machine(ram=cpu(14)), SDXL)
    assert place(machine(ram=cpu(14)), SDXL, precision="bf16").dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("probe", "dtype"),
    [
        (machine(ram=cpu(1, speedup=9.0)), torch.float32),
        (machine(gpu("GPU", 1)), torch.bfloat16),
        (machine(mps=apple(8)), torch.float16),
    ],
)
def test_small_models(probe: Probe, dtype: torch.dtype) -> None:
    made = place(probe, TINY)
    assert (made.dtype, made.offload, made.tiling) == (dtype, "none", False)


@pytest.mark.parametrize(("need", "small"), [(TINY, True), (SDXL, False), (replace(TINY, text=10**8), False)])
def test_what_is_small(need: ModelSize, small: bool) -> None:
    assert need.small == small


@pytest.mark.parametrize(
    ("probe", "need", "batch", "channels_last"),
    [
        (machine(AMPERE), SDXL, 0, True),
        (machine(mps=apple(64)), SDXL, 1, False),
        (machine(mps=apple(64)), TINY, 1, False),
        (machine(), SDXL, 1, True),
        (machine(), TINY, 16, True),
    ],
)
def test_batch_and_layout(probe: Probe, need: ModelSize, batch: int, channels_last: bool) -> None:
    made = place(probe, need)
    assert (made.batch, made.channels_last) == (batch, channels_last)
    assert made.memory_format == (torch.channels_last if channels_last else torch.contiguous_format)


@pytest.mark.parametrize(
    ("device", "precision", "offload", "says"),
    [
        ("tpu", "auto", "auto", "auto, cuda, mps, cpu, or a GPU such as cuda:1"),
        ("cuda:", "auto", "auto", "auto, cuda, mps, cpu"),
        ("cpu:0", "auto", "auto", "auto, cuda, mps, cpu"),
        ("cuda:-1", "auto", "auto", "auto, cuda, mps, cpu"),
        (None, "auto", "auto", "device=None"),
        ("cuda", "auto", "auto", "device='cuda' is not on this machine: choose auto or one of cpu"),
        ("cuda:7", "auto", "auto", "device='cuda:7' is not on this machine"),
        ("cpu", "int8", "auto", "auto, fp32, fp16, bf16"),
        ("cpu", "auto", "disk", "auto, none, model, sequential"),
    ],
)
def test_names(device: Any, precision: str, offload: str, says: str) -> None:
    with pytest.raises(RequestError, match=says):
        place(machine(), SDXL, device, precision, offload)


def test_threads_are_the_cores() -> None:
    made = place(machine(ram=replace(cpu(), cores=3)), TINY)
    assert isinstance(made, Placement)
    assert made.threads == 3
