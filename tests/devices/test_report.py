"""`fewstep env`: one look tells where models run, and why."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from fewstep import cli
from fewstep.devices import Probe
from fewstep.devices.report import device_report, report_as_text
from tests.devices.machines import MACHINES, SDXL, TINY, apple, cpu, gpu, machine

NEEDS = {"tiny": TINY, "sdxl": SDXL}


@pytest.mark.parametrize("probe", [probe for probe, _ in MACHINES.values()], ids=MACHINES)
def test_every_machine_has_the_same_keys(probe: Probe) -> None:
    wanted = device_report(machine(), NEEDS)
    found = json.loads(json.dumps(device_report(probe, NEEDS)))
    assert found.keys() == wanted.keys()
    for part in ("versions", "machine", "threads", "models"):
        assert found[part].keys() == wanted[part].keys()
    assert {frozenset(model) for model in found["models"].values()} == {frozenset(wanted["models"]["sdxl"])}
    assert all(len(line) < 300 for line in report_as_text(found).splitlines())


def test_a_machine_with_everything() -> None:
    found = device_report(machine(gpu("T4", 14.5, (7, 5)), mps=apple(8), ram=cpu(5, speedup=2)), NEEDS)
    text = report_as_text(found)
    for line in (
        "cuda:0    T4, 14.5 of 15.1 GiB free, capability 7.5",
        "mps       Apple M2, 5.3 of 5.3 GiB free",
        "cpu       CPU, 8 cores, 5.0 GiB free, bf16: AMX, 2.00 times as fast as fp32",
        "sdxl      cuda:0, fp16, VAE fp16",
        "          - fp16: bf16 needs capability 8.0, and this GPU has 7.5",
    ):
        assert line in text.splitlines()


def test_what_does_not_fit_is_said() -> None:
    found = device_report(machine(ram=cpu(1)), NEEDS)["models"]["sdxl"]
    assert (found["device"], found["reasons"]) == (None, [])
    assert "14.6 GiB" in found["error"]
    assert (
        f"sdxl      {found['error']}"
        in report_as_text(device_report(machine(ram=cpu(1)), NEEDS)).splitlines()
    )


def test_offload_and_tiles_are_said() -> None:
    assert "sdxl      cuda:0, bf16, VAE bf16, tiles, offload=sequential" in report_as_text(
        device_report(machine(gpu("A2", 1.9)), NEEDS)
    )
    unknown = report_as_text(device_report(machine(ram=replace(cpu(), free=0)), NEEDS))
    assert "free memory unknown, bf16: none" in unknown


@pytest.mark.parametrize(("given", "says"), [(8, "; loading on the CPU lowers torch's to 8"), (9, "lowers")])
def test_more_threads_than_cores_are_said(given: int, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: given)
    text = report_as_text(device_report(machine(), NEEDS))
    assert (says in text) == (given > 8)
    assert f"threads   torch has {given}, for 8 cores" in text


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["env", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["models"]["tiny"]["error"] == ""
    assert found["versions"]["torch"] == torch.__version__
    assert cli.main(["env"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("tiny ") for line in lines)
    assert sum(line.startswith("          - ") for line in lines) >= 8
