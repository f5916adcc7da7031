"""What a host program has set in torch reaches no number of ours, and is found as it was.

Each state holds around a load and calls of three tasks, around the calls alone, or around the load alone.
What only the whole process can have (default dtype, determinism, precision of matmul) is in force for our
code too, which must give the same bits all the same.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

import fewstep
from fewstep import CancelToken, Engine, GenerationCancelledError

TASKS = ("text", "image", "inpaint")


class PassingMode(TorchFunctionMode):
    """A host's own mode, such as a profiler's."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@contextmanager
def switched(change: Callable[[Any], object], value: Any, before: Any) -> Iterator[None]:
    """A setting of the whole process, or of the thread."""
    change(value)
    try:
        yield
    finally:
        change(before)


def default_dtype(dtype: torch.dtype) -> AbstractContextManager[Any]:
    return switched(torch.set_default_dtype, dtype, torch.float32)


@contextmanager
def seeded() -> Iterator[None]:
    """A host in the middle of its own draws."""
    torch.manual_seed(99)
    random.seed(99)
    np.random.seed(99)
    torch.rand(3)
    yield


@contextmanager
def learning() -> Iterator[None]:
    """A host between its forward and its backward."""
    weight = torch.ones(3, requires_grad=True)
    loss = (weight * 2).sum()
    with torch.enable_grad():
        yield
    loss.backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [2.0] * 3


@contextmanager
def strict_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


STATES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "default dtype float64": lambda: default_dtype(torch.float64),
    "default dtype float16": lambda: default_dtype(torch.float16),
    "default dtype bfloat16": lambda: default_dtype(torch.bfloat16),
    "set_default_device": lambda: switched(torch.set_default_device, "meta", None),
    "torch.device": lambda: torch.device("meta"),
    "autocast bfloat16": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "autocast float16": lambda: torch.autocast("cpu", dtype=torch.float16),
    "inference_mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "set_grad_enabled(False)": lambda: switched(torch.set_grad_enabled, False, True),
    "enable_grad, before backward": learning,
    "deterministic": lambda: switched(torch.use_deterministic_algorithms, True, False),
    "matmul precision medium": lambda: switched(torch.set_float32_matmul_precision, "medium", "highest"),
    "anomaly mode": lambda: torch.autograd.set_detect_anomaly(True, check_nan=True),
    "flush denormal": lambda: switched(torch.set_flush_denormal, True, False),
    "other seeds": seeded,
    "function mode": PassingMode,
    "dispatch mode": lambda: FlopCounterMode(display=False),
    "warnings are errors": strict_warnings,
}


def host_state() -> dict[str, Any]:
    """All that a host could have set."""
    return {
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "autocast": [(torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in ("cpu", "cuda")],
        "autocast cache": torch.is_autocast_cache_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "grad": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul": torch.get_float32_matmul_precision(),
        "anomaly": torch.is_anomaly_enabled(),
        "mkldnn": torch.backends.mkldnn.enabled,  # type: ignore[attr-defined]
        "threads": torch.get_num_threads(),
        "torch draws": torch.get_rng_state().sum().item(),
        "random": random.getstate(),
        "numpy": np.random.get_state()[1].tolist(),  # type: ignore[index]
        "modes": len(torch.overrides._get_current_function_mode_stack()),
        "warnings": list(warnings.filters),
    }


@pytest.fixture(scope="session")
def loaded(sdxl_folder: Path, lcm_unet_folder: Path) -> Callable[[], Engine]:
    return lambda: fewstep.load(
        sdxl_folder, "lcm", accelerator=lcm_unet_folder, device="cpu", precision="fp32"
    )


@pytest.fixture(scope="session")
def draw(drawing: Image.Image) -> Callable[..., dict[str, bytes]]:
    mask = Image.radial_gradient("L").resize(drawing.size)
    given: dict[str, Any] = {
        "text": {},
        "image": {"image": drawing},
        "inpaint": {"image": drawing, "mask": mask},
    }

    def run(engine: Engine, prompt: str = "a red fox") -> dict[str, bytes]:
        return {task: engine.generate(prompt, 1, seed=3, **given[task])[0].tobytes() for task in TASKS}

    return run


@pytest.fixture(scope="session")
def plain(loaded: Callable[[], Engine], draw: Callable[..., dict[str, bytes]]) -> dict[str, bytes]:
    with loaded() as engine:
        pictures = draw(engine)
    assert len({*pictures.values()}) == len(TASKS)
    return pictures


@pytest.mark.parametrize("name", STATES)
def test_pictures_are_the_same(
    name: str, loaded: Callable[[], Engine], draw: Callable[..., dict[str, bytes]], plain: dict[str, bytes]
) -> None:
    """Around all, then around the load alone, then around the call alone; what is cached serves both."""
    first = host_state()
    with STATES[name]():
        before = host_state()
        engine = loaded()
        assert draw(engine) == plain
        assert host_state() == before
    assert draw(engine) == plain
    engine.close()
    with loaded() as other, STATES[name]():
        assert draw(other) == plain
    if name != "other seeds":
        assert host_state() == first
