"""Placement is a pure function of what was seen."""

from __future__ import annotations

import pytest
import torch

from fewstep.devices import Placement, Probe, place, probe
from fewstep.errors import RequestError


def seen(*, cuda: bool = False, cuda_bf16: bool = False, mps: bool = False, cpu_bf16: bool = False) -> Probe:
    return Probe(cuda=cuda, cuda_bf16=cuda_bf16, mps=mps, cpu_bf16=cpu_bf16)


MACHINES = [
    (seen(cuda=True, cuda_bf16=True, cpu_bf16=True), "cuda", torch.bfloat16, 0),
    (seen(cuda=True), "cuda", torch.float16, 0),
    (seen(mps=True), "mps", torch.float16, 1),
    (seen(cpu_bf16=True), "cpu", torch.bfloat16, 1),
    (seen(), "cpu", torch.float32, 1),
]


@pytest.mark.parametrize(("machine", "device", "dtype", "batch"), MACHINES)
def test_auto_takes_the_best(machine: Probe, device: str, dtype: torch.dtype, batch: int) -> None:
    made = place(machine)
    assert (made.device.type, made.dtype, made.batch) == (device, dtype, batch)
    assert made.channels_last == (device != "mps")


def test_small_models_stay_in_fp32_on_a_cpu() -> None:
    made = place(seen(cpu_bf16=True), small=True)
    assert made.dtype == torch.float32
    assert made.memory_format == torch.contiguous_format


def test_what_is_asked_is_what_is_done() -> None:
    made = place(seen(cuda=True, cuda_bf16=True), "cpu", "bf16")
    assert (made.device.type, made.dtype) == ("cpu", torch.bfloat16)


@pytest.mark.parametrize(
    ("device", "precision", "says"),
    [
        ("tpu", "auto", "auto, cuda, mps, cpu"),
        ("cuda", "auto", "choose auto or one of cpu"),
        ("cpu", "fp16", "fp32 or bf16"),
        ("cpu", "int8", "fp32, fp16, bf16"),
    ],
)
def test_what_cannot_be_is_refused(device: str, precision: str, says: str) -> None:
    with pytest.raises(RequestError, match=says):
        place(seen(), device, precision)


def test_probing_changes_nothing() -> None:
    before = torch.get_default_dtype(), torch.get_num_threads(), torch.initial_seed()
    assert isinstance(place(probe()), Placement)
    assert (torch.get_default_dtype(), torch.get_num_threads(), torch.initial_seed()) == before
