"""fewstep: fast few-step image generation behind one call.

    import fewstep
    fewstep.generate("a smiling cat face, 3d style", steps=4, mode="lcm")[0].save("cat.png")

Importing is cheap: torch is loaded by the first call that needs it.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fewstep.api import agenerate, astream, generate, load, plan, stream, unload
    from fewstep.cancel import CancelToken
    from fewstep.checking import Finding, Report, check
    from fewstep.comparison import Comparison, compare
    from fewstep.engine import Engine
    from fewstep.errors import (
        BackendError,
        CorruptModelError,
        DeviceMemoryError,
        Failure,
        FewstepError,
        GenerationCancelledError,
        GenerationError,
        JobLockedError,
        ModelError,
        ModelNotFoundError,
        OutputError,
        RequestError,
    )
    from fewstep.inspection import Inspection, inspect
    from fewstep.loop import Step
    from fewstep.prompts import Embedding
    from fewstep.recipe import Guidance, Recipe, Steps, Weights
    from fewstep.reproduction import Replay, replay
    from fewstep.request import Plan, Request
    from fewstep.result import Result
    from fewstep.schedulers import Schedule
    from fewstep.streaming import Stream

__version__ = "0.1.0"

_HOMES = {
    "fewstep.api": ("agenerate", "astream", "generate", "load", "plan", "stream", "unload"),
    "fewstep.cancel": ("CancelToken",),
    "fewstep.checking": ("Finding", "Report", "check"),
    "fewstep.comparison": ("Comparison", "compare"),
    "fewstep.engine": ("Engine",),
    "fewstep.errors": (
        "BackendError", "CorruptModelError", "DeviceMemoryError", "Failure", "FewstepError",
        "GenerationCancelledError", "GenerationError", "JobLockedError", "ModelError", "ModelNotFoundError",
        "OutputError", "RequestError",
    ),
    "fewstep.inspection": ("Inspection", "inspect"),
    "fewstep.loop": ("Step",),
    "fewstep.prompts": ("Embedding",),
    "fewstep.recipe": ("Guidance", "Recipe", "Steps", "Weights"),
    "fewstep.reproduction": ("Replay", "replay"),
    "fewstep.request": ("Plan", "Request"),
    "fewstep.result": ("Result",),
    "fewstep.schedulers": ("Schedule",),
    "fewstep.streaming": ("Stream",),
}  # fmt: skip
# Modules that are used as such: `fewstep.metadata.read` works after `import fewstep` alone.
_MODULES = (
    "batch", "catalog", "devices", "errors", "evaluation", "metadata", "modes", "notebook", "recipe",
    "samplers", "schedulers", "testing", "train",
)  # fmt: skip
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "BackendError",
    "CancelToken",
    "Comparison",
    "CorruptModelError",
    "DeviceMemoryError",
    "Embedding",
    "Engine",
    "Failure",
    "FewstepError",
    "Finding",
    "GenerationCancelledError",
    "GenerationError",
    "Guidance",
    "Inspection",
    "JobLockedError",
    "ModelError",
    "ModelNotFoundError",
    "OutputError",
    "Plan",
    "Recipe",
    "Replay",
    "Report",
    "Request",
    "RequestError",
    "Result",
    "Schedule",
    "Step",
    "Steps",
    "Stream",
    "Weights",
    "agenerate",
    "astream",
    "check",
    "compare",
    "generate",
    "inspect",
    "load",
    "plan",
    "replay",
    "stream",
    "unload",
]

logging.getLogger("fewstep").addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _MODULES:
        return import_module(f"fewstep.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'fewstep' has no attribute {name!r}")
    globals()[name] = value = getattr(import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*(name for name in globals() if name.startswith("__")), *_MODULES, *__all__})
