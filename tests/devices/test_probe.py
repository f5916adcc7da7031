"""What is seen: containers of both kinds, and the machine as it was before."""

from __future__ import annotations

import logging
import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from threading import Event
from types import SimpleNamespace

import pytest
import torch

from fewstep.devices import Cpu, Cuda, Probe, cgroup, limit_threads, place
from fewstep.devices import probe as look
from tests.devices.machines import SDXL, TINY, cpu, gpu, machine

probing = import_module("fewstep.devices.probe")  # the module: the package's name is the function's
GIB = 2**30
V1_NONE = "9223372036854771712\n"  # what v1 writes where there is no limit


def tree(root: Path, files: dict[str, str]) -> Path:
    """A root with /proc and cgroup files in it; names without a slash at the front are of cgroups."""
    for name, content in files.items():
        path = root / name.lstrip("/") if name.startswith("/") else root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


V2 = {"/proc/self/cgroup": "0::/\n"}
V2_NESTED = {"/proc/self/cgroup": "0::/user.slice/job 7.scope\n"}
V1 = {"/proc/self/cgroup": "5:cpuset:/\n4:cpu,cpuacct:/docker/1f\n3:memory:/docker/1f\n1:name=systemd:/x\n"}

QUOTAS = {
    "nothing known": ({}, math.inf),
    "v2": ({**V2, "cpu.max": "150000 100000\n"}, 1.5),
    "v2 without": ({**V2, "cpu.max": "max 100000\n"}, math.inf),
    "v2 nested, the upper is tighter": (
        {
            **V2_NESTED,
            "user.slice/cpu.max": "200000 100000\n",
            "user.slice/job 7.scope/cpu.max": "400000 100000\n",
        },
        2.0,
    ),
    "v2 nested, the lower is tighter": (
        {
            **V2_NESTED,
            "user.slice/cpu.max": "max 100000\n",
            "user.slice/job 7.scope/cpu.max": "50000 100000\n",
        },
        0.5,
    ),
    "v2, the host's path": (
        {"/proc/self/cgroup": "0::/../../docker/1f\n", "cpu.max": "300000 100000\n"},
        3.0,
    ),
    "v1": (
        {**V1, "cpu/docker/1f/cpu.cfs_quota_us": "250000\n", "cpu/docker/1f/cpu.cfs_period_us": "100000\n"},
        2.5,
    ),
    "v1, the host's path": (
        {**V1, "cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "50000\n"},
        1.0,
    ),
    "v1 without": (
        {**V1, "cpu/docker/1f/cpu.cfs_quota_us": "-1\n", "cpu/docker/1f/cpu.cfs_period_us": "100000\n"},
        math.inf,
    ),
    "v1, the group of another controller": (
        {**V1, "cpu/x/cpu.cfs_quota_us": "50000\n", "cpu/x/cpu.cfs_period_us": "50000\n"},
        math.inf,
    ),
}


@pytest.mark.parametrize(("files", "cores"), QUOTAS.values(), ids=QUOTAS)
def test_cpu_quota(files: dict[str, str], cores: float, tmp_path: Path) -> None:
    assert cgroup.cores(tree(tmp_path, files)) == cores


LIMITS = {
    "nothing known": ({}, math.inf),
    "v2": ({**V2, "memory.max": "1000\n", "memory.current": "400\n"}, 600),
    "v2, caches are given back": (
        {
            **V2, "memory.max": "1000\n", "memory.current": "900\n",
            "memory.stat": "anon 300\ninactive_file 250\nactive_file 9\n",
        },
        350,
    ),
    "v2 without": ({**V2, "memory.max": "max\n", "memory.current": "400\n"}, math.inf),
    "v2 overdrawn": ({**V2, "memory.max": "1000\n", "memory.current": "1400\n"}, 0),
    "v2 nested": (
        {
            **V2_NESTED,
            "user.slice/memory.max": "5000\n", "user.slice/memory.current": "4900\n",
            "user.slice/job 7.scope/memory.max": "2000\n", "user.slice/job 7.scope/memory.current": "100\n",
        },
        100,
    ),
    "v1": (
        {
            **V1,
            "memory/docker/1f/memory.limit_in_bytes": "3000\n",
            "memory/docker/1f/memory.usage_in_bytes": "1000\n",
            "memory/docker/1f/memory.stat": "inactive_file 1\ntotal_inactive_file 500\n",
            "memory/memory.limit_in_bytes": V1_NONE, "memory/memory.usage_in_bytes": "9000\n",
        },
        2500,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("files", "left"), LIMITS.values(), ids=LIMITS)
def test_memory_limit(files: dict[str, str], left: float, tmp_path: Path) -> None:
    assert cgroup.memory(tree(tmp_path, files)) == left


def test_a_container_of_v1_without_limits(tmp_path: Path) -> None:
    files = {"memory/memory.limit_in_bytes": V1_NONE, "memory/memory.usage_in_bytes": "9000\n"}
    available = {"/proc/meminfo": "MemTotal: 9999 kB\nMemAvailable:    2048 kB\n"}
    assert probing.free_ram(tree(tmp_path, {**V1, **files, **available})) == 2 * 2**20


def test_the_tighter_of_machine_and_container(tmp_path: Path) -> None:
    files = {**V2, "memory.max": str(8 * GIB), "memory.current": str(5 * GIB)}
    assert (
        probing.free_ram(tree(tmp_path, {**files, "/proc/meminfo": "MemAvailable: 4194304 kB\n"})) == 3 * GIB
    )
    assert (
        probing.free_ram(tree(tmp_path, {**files, "/proc/meminfo": "MemAvailable: 2097152 kB\n"})) == 2 * GIB
    )


def test_cores_are_rounded_up_and_at_least_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8))
    assert probing.cores(tmp_path) == 8
    for quota, cores in (("150000", 2), ("5000", 1), ("9900000", 8), ("max", 8)):
        assert probing.cores(tree(tmp_path, {**V2, "cpu.max": f"{quota} 100000\n"})) == cores


def test_a_system_that_tells_nothing(tmp_path: Path) -> None:
    assert probing.free_ram(tmp_path) == 0
    assert probing.cpu_name(tmp_path)


def test_the_processors_name(tmp_path: Path) -> None:
    root = tree(
        tmp_path, {"/proc/cpuinfo": "processor : 0\nmodel name\t: Some CPU @ 2 GHz\nmodel name\t: x\n"}
    )
    assert probing.cpu_name(root) == "Some CPU @ 2 GHz"


def test_this_machine() -> None:
    seen = look()
    assert isinstance(seen, Probe)
    assert seen.torch == torch.__version__
    assert seen.cpu.cores >= 1
    assert len(seen.cuda) <= torch.cuda.device_count()
    assert (seen.cpu.bf16_speedup > 0) == seen.cpu.bf16
    assert place(seen, TINY).reasons


def test_looking_changes_nothing() -> None:
    def state() -> list[object]:
        return [
            torch.get_default_dtype(), torch.get_num_threads(), torch.get_num_interop_threads(),
            torch.is_grad_enabled(), torch.get_rng_state().sum().item(), torch.backends.mkldnn.is_available(),
            torch.get_float32_matmul_precision(), logging.getLogger().handlers, dict(os.environ), os.getcwd(),
        ]  # fmt: skip

    probing.bf16_speedup.cache_clear()
    before = state()
    look()
    assert state() == before


def test_measuring_bf16_leaves_other_threads_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    """While it runs on one thread, the caller's number is what it was."""
    seen: list[int] = []
    operands = probing._convolution_operands

    def note(dtype: torch.dtype) -> object:
        seen.append(torch.get_num_threads())
        release.set()
        assert looked.wait(10)
        return operands(dtype)

    release, looked = Event(), Event()
    monkeypatch.setattr(probing, "_convolution_operands", note)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        probing.bf16_speedup.cache_clear()
        with ThreadPoolExecutor(1) as pool:
            measured = pool.submit(probing.bf16_speedup)
            assert release.wait(10)
            assert torch.get_num_threads() == 2
            looked.set()
            assert measured.result() > 0
        assert torch.get_num_threads() == 2
        with ThreadPoolExecutor(1) as new:
            assert new.submit(torch.get_num_threads).result() == 2
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {1}


def test_bf16_is_measured_once_and_only_with_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def speedup(given: int) -> float:
        calls.append(given)
        return 2.0

    probing.bf16_speedup.cache_clear()
    monkeypatch.setattr(probing, "_measure_speedup", speedup)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    for there, wanted in ((False, 0.0), (True, 2.0), (True, 2.0)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda there=there: there)
        assert look().cpu.bf16_speedup == wanted
    assert len(calls) == 1
    probing.bf16_speedup.cache_clear()


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with two GPUs, of which the first cannot be opened."""

    def free(index: int) -> tuple[int, int]:
        if index == 0:
            raise RuntimeError("CUDA-capable device(s) is/are busy or unavailable\nmore")
        return 5 * GIB, 8 * GIB

    about = SimpleNamespace(name="A2", major=8, minor=6)
    for name, fake in {
        "is_available": lambda: True, "device_count": lambda: 2, "mem_get_info": free,
        "get_device_properties": lambda _: about, "memory_reserved": lambda _: 3 * GIB,
        "memory_allocated": lambda _: 2 * GIB,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, fake)


@pytest.mark.usefixtures("two_gpus")
def test_a_gpu_that_cannot_be_opened_is_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    """And what torch keeps unused of another counts as free."""
    caplog.set_level(logging.INFO, "fewstep")
    wanted = Cuda(index=1, name="A2", capability=(8, 6), total=8 * GIB, free=6 * GIB)
    assert look().cuda == (wanted,)
    assert "cuda:0 cannot be opened: CUDA-capable device(s) is/are busy or unavailable" in caplog.text


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("device", "opened"), [("auto", 1), ("cuda", 1), ("cuda:1", 1), ("mps", 1), ("cpu", 0)]
)
def test_gpus_are_opened_only_for_those_who_may_use_them(device: str, opened: int) -> None:
    assert len(look(device).cuda) == opened


@pytest.mark.parametrize(("given", "allowed", "left"), [(8, 2, 2), (2, 8, 2), (3, 3, 3)])
def test_threads_are_lowered_and_never_raised(
    given: int, allowed: int, left: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fewstep")
    threads = [given]
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads[-1])
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    few: Cpu = replace(cpu(), cores=allowed)
    limit_threads(place(machine(ram=few), TINY))
    assert threads[-1] == left
    assert ("torch had 8 threads for 2 cores" in caplog.text) == (left < given)
    threads.append(given)
    limit_threads(place(machine(gpu("A10", 22), ram=few), SDXL))
    assert threads[-1] == given  # on a GPU the CPU's threads are left alone
