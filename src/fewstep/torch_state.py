"""torch as a fresh thread has it: what a host program has set is out of reach of our numbers.

Every public call that computes runs in here: loading, drawing, previews, encoding, training, evaluation.
Only what belongs to a thread is switched, and put back: gradients, inference mode, autocast, and by a
function mode the default device and dtype for what is made here. The default dtype itself, determinism,
matmul precision and the number of threads are the whole process's, where other threads would see them
change: they are left alone, and our own code names dtype and device in everything that it makes.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any, ClassVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from fewstep.errors import FewstepError

AUTOCAST_DEVICES = ("cpu", "cuda", "mps")  # each has a switch of its own
# What takes device and dtype from the defaults where it is told none; and the dtype too from its content.
_OF_SIZE = frozenset(
    (
        torch.empty, torch.empty_strided, torch.zeros, torch.ones, torch.eye, torch.rand, torch.randn,
        torch.linspace, torch.logspace,
    )
)  # fmt: skip
_OF_CONTENT = frozenset(
    (torch.tensor, torch.as_tensor, torch.asarray, torch.scalar_tensor, torch.full, torch.arange)
)
_FIRST_VALUES = frozenset(
    (
        torch.Tensor.normal_, torch.Tensor.uniform_,
        nn.init.constant_, nn.init.kaiming_uniform_, nn.init.normal_, nn.init.uniform_,
    )
)  # fmt: skip
_FACTORIES = _OF_SIZE | _OF_CONTENT | {torch.randint, torch.randperm}

_process = 0  # the one whose torch has worked here


class FreshTorchState(torch.no_grad):
    """A context, and a decorator of functions and generators: gradients off, the host's settings away.

    A generator's consumer has its own settings at every `yield`. Raises `FewstepError` in a process that
    was forked after torch had worked in it.
    """

    grad: ClassVar[bool] = False

    def __enter__(self) -> None:
        self._changes = ExitStack()
        if sys.is_finalizing():  # a stream that nobody ended is collected, and torch can import nothing now
            return
        if os.getpid() != _process:
            _require_own_process()
        with self._changes as changes:
            if torch.is_inference_mode_enabled():
                changes.enter_context(torch.inference_mode(False))
            for device in AUTOCAST_DEVICES:
                if torch.is_autocast_enabled(device):
                    changes.enter_context(torch.autocast(device, enabled=False))
            if torch.get_default_dtype() != torch.float32 or torch.get_default_device().type != "cpu":
                changes.enter_context(_PlainFactories())
            changes.enter_context(torch.set_grad_enabled(self.grad))
            self._changes = changes.pop_all()

    def __exit__(self, *error: object) -> None:
        self._changes.close()


class TrainingTorchState(FreshTorchState):
    """The same with gradients on."""

    grad: ClassVar[bool] = True


class _PlainFactories(TorchFunctionMode):
    """Have what names no device made on the CPU, and what names no dtype in fp32, in this thread."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        keywords = {} if kwargs is None else dict(kwargs)
        content, has_dtype = args[0] if args else keywords.get("data"), keywords.get("dtype") is not None
        if func not in _FACTORIES or isinstance(content, torch.Tensor):
            return func(*args, **keywords)
        if keywords.get("device") is None:
            keywords["device"] = "cpu"
        if func in _OF_SIZE and not has_dtype:
            keywords["dtype"] = torch.float32
        result = func(*args, **keywords)
        by_default = func in _OF_CONTENT and not has_dtype and not hasattr(content, "dtype")
        if by_default and result.is_floating_point():
            return func(*args, **{**keywords, "dtype": torch.float32})
        return result


class OnMeta(TorchFunctionMode):
    """A context in which modules are made on no memory, their random first values left out.

    Those values cost a module on `torch.device("meta")` the import of torch's compiler, and are never there.
    """

    def __enter__(self) -> Any:
        self._device: Any = torch.device("meta")
        self._device.__enter__()
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._device.__exit__(*error)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        keywords = kwargs or {}
        if func in _FIRST_VALUES:
            return args[0] if args else keywords["tensor"]
        if (
            func is torch.arange
        ):  # places of tokens: of it too, the shape alone would cost an import, of sympy
            keywords = {"device": "cpu", **keywords}
        return func(*args, **keywords)


def _require_own_process() -> None:
    """Check that no fork lies between torch's first work here and now; raises `FewstepError`."""
    global _process
    if _process:
        raise FewstepError(
            "torch had worked before a fork made this process, and neither its threads nor CUDA survive "
            "one: load models after the fork (in gunicorn's post_fork, in Celery's worker_process_init), or "
            "start children by multiprocessing.get_context('spawn')"
        )
    _process = os.getpid()
