"""What a host program has set in torch reaches no number of ours, and is found as it was.

Each state holds around a load and calls of three tasks, around the calls alone, or around the load alone.
What only the whole process can have (default dtype, determinism, precision of matmul) is in force for our
code too, which must give the same bits all the same.
"""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

import fewstep
from fewstep import CancelToken, CorruptModelError, Engine, GenerationCancelledError, ModelError
from fewstep.files.untrusted import raise_as_corrupt
from fewstep.loading import build
from fewstep.loading.build import NETWORK_CLASSES, Blueprint


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
def at_once(*states: AbstractContextManager[Any]) -> Iterator[None]:
    with ExitStack() as stack:
        for state in states:
            stack.enter_context(state)
        yield


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
    "autocast without cache": lambda: torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False),
    "grad in inference_mode": lambda: at_once(torch.inference_mode(), torch.enable_grad()),
    "device in inference_mode": lambda: at_once(torch.inference_mode(), torch.device("meta")),
    "float16 under autocast": lambda: at_once(
        default_dtype(torch.float16), torch.autocast("cpu", dtype=torch.bfloat16)
    ),
    "all at once": lambda: at_once(
        default_dtype(torch.float64), torch.device("meta"), torch.autocast("cpu", dtype=torch.bfloat16),
        torch.inference_mode(), PassingMode(),
    ),
}  # fmt: skip


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
        "mkldnn": torch.backends.mkldnn.enabled,
        "threads": torch.get_num_threads(),
        "torch draws": torch.get_rng_state().sum().item(),
        "random": random.getstate(),
        "numpy": np.random.get_state()[1].tolist(),  # type: ignore[index]
        "modes": len(torch.overrides._get_current_function_mode_stack()),
        "warnings": list(warnings.filters),
    }


SMALL: dict[str, Any] = {"seed": 3, "width": 64, "height": 64}
Draw = Callable[..., dict[str, bytes]]


@pytest.fixture(scope="module")
def load(sdxl_folder: Path, lcm_unet_folder: Path) -> Callable[[], Engine]:
    def load_lcm() -> Engine:
        return fewstep.load(sdxl_folder, "lcm", accelerator=lcm_unet_folder, device="cpu", precision="fp32")

    return load_lcm


@pytest.fixture(scope="module")
def draw(drawing: Image.Image) -> Draw:
    picture = drawing.resize((64, 64))
    mask = Image.radial_gradient("L").resize((64, 64))
    given: dict[str, Any] = {
        "text": {},
        "image": {"image": picture},
        "inpaint": {"image": picture, "mask": mask},
    }

    def draw_tasks(engine: Engine, prompt: str = "a red fox") -> dict[str, bytes]:
        return {
            task: engine.generate(prompt, 1, reproducible=True, **SMALL, **more)[0].tobytes()
            for task, more in given.items()
        }

    return draw_tasks


@pytest.fixture(scope="module")
def plain(load: Callable[[], Engine], draw: Draw) -> dict[str, bytes]:
    with load() as engine:
        pictures = draw(engine)
    assert len({*pictures.values()}) == 3
    return pictures


@pytest.fixture(scope="module")
def known(load: Callable[[], Engine]) -> Iterator[Engine]:
    """An engine that was loaded in no state at all."""
    with load() as engine:
        yield engine


@pytest.mark.parametrize("name", STATES)
def test_pictures_are_the_same(
    name: str, load: Callable[[], Engine], known: Engine, draw: Draw, plain: dict[str, bytes]
) -> None:
    """Loaded and called in a state; loaded in it and called outside; loaded outside and called in it."""
    known.parts.text.forget()
    with STATES[name]():
        before = host_state()
        engine = load()
        assert draw(engine) == draw(known) == plain
        for step in engine.stream("a red fox", 1, **SMALL):
            assert host_state() == before  # the host's turn
            step.preview()
            assert not step.latents.is_inference()
        assert host_state() == before
    assert draw(engine) == draw(known) == plain  # by prompts encoded in there
    assert not any(weight.is_inference() for weight in engine.parts.unet.parameters())


def test_errors_and_cancelling_leave_the_state(known: Engine, draw: Draw, plain: dict[str, bytes]) -> None:
    def fail(_: object) -> None:
        assert torch.is_inference_mode_enabled()
        raise ZeroDivisionError

    token = CancelToken()
    with STATES["all at once"]():
        before = host_state()
        with pytest.raises(ZeroDivisionError):
            known.generate("a fox", 1, progress=fail, **SMALL)
        with pytest.raises(GenerationCancelledError):
            known.generate("a fox", 2, progress=lambda _: token.cancel(), cancel=token, **SMALL)
        with pytest.raises(ModelError):
            fewstep.load("nowhere/at-all", "base", device="cpu")
        assert host_state() == before
        assert draw(known) == plain


def test_threads_in_different_states(known: Engine, draw: Draw, plain: dict[str, bytes]) -> None:
    """One of them changes the whole process's default dtype."""

    def draw_in(name: str) -> dict[str, bytes]:
        with STATES[name]():
            return draw(known)

    names = ("autocast bfloat16", "set_default_device", "default dtype float64", "no_grad")
    with ThreadPoolExecutor(4) as pool:
        assert [*pool.map(draw_in, names)] == [plain] * 4


@pytest.mark.parametrize(("optimize", "mend"), [(0, "install them again"), (2, "type python -O")])
def test_libraries_that_cannot_be_imported(
    optimize: int, mend: str, load: Callable[[], Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under python -OO, where transformers misses its docstrings."""
    monkeypatch.setitem(sys.modules, "diffusers", None)
    monkeypatch.setattr(build, "sys", SimpleNamespace(flags=SimpleNamespace(optimize=optimize)))
    with pytest.raises(ModelError, match=mend) as caught:
        load()
    assert not isinstance(caught.value, CorruptModelError)


@pytest.mark.parametrize("kind", NETWORK_CLASSES)
def test_who_is_to_blame(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A class that cannot be built with its own defaults is no file's fault."""
    spoilt = {"norm_num_groups": 7} if not NETWORK_CLASSES[kind] else {"num_attention_heads": 7}
    drawn = Blueprint(kind=kind, config=spoilt, weights={}, source="a file")
    if kind != "AutoencoderTiny":  # whose configuration has no such entry
        with pytest.raises(CorruptModelError, match="a file: its configuration"):
            build._build_on_meta(drawn)
    monkeypatch.setattr(build, "_of_class", lambda *_: 1 / 0)
    with pytest.raises(ModelError, match="can be built in this process") as caught:
        build._build_on_meta(drawn)
    assert not isinstance(caught.value, CorruptModelError)


@pytest.mark.parametrize("error", [ImportError("no such library"), DeprecationWarning("old"), NameError("x")])
def test_what_no_file_can_cause(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="by no fault of its own") as caught, raise_as_corrupt(tmp_path):
        raise error
    assert not isinstance(caught.value, CorruptModelError)
