"""fewstep: fast few-step image generation behind one call.

    import fewstep
    fewstep.generate("a smiling cat face, 3d style", steps=4, mode="lcm")[0].save("cat.png")

Importing is cheap: torch is loaded by the first call that needs it.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fewstep.api import generate, load, plan
    from fewstep.engine import Engine, Step
    from fewstep.errors import (
        CorruptModelError,
        FewstepError,
        GenerationError,
        ModelError,
        ModelNotFoundError,
        OutputError,
        RequestError,
    )
    from fewstep.recipe import Guidance, Recipe, Steps, Weights
    from fewstep.request import Plan, Request
    from fewstep.result import Result
    from fewstep.schedulers import Schedule

__version__ = "0.1.0"

_HOMES = {
    "fewstep.api": ("generate", "load", "plan"),
    "fewstep.engine": ("Engine", "Step"),
    "fewstep.errors": (
        "CorruptModelError", "FewstepError", "GenerationError", "ModelError", "ModelNotFoundError",
        "OutputError", "RequestError",
    ),
    "fewstep.recipe": ("Guidance", "Recipe", "Steps", "Weights"),
    "fewstep.request": ("Plan", "Request"),
    "fewstep.result": ("Result",),
    "fewstep.schedulers": ("Schedule",),
}  # fmt: skip
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "CorruptModelError",
    "Engine",
    "FewstepError",
    "GenerationError",
    "Guidance",
    "ModelError",
    "ModelNotFoundError",
    "OutputError",
    "Plan",
    "Recipe",
    "Request",
    "RequestError",
    "Result",
    "Schedule",
    "Step",
    "Steps",
    "Weights",
    "generate",
    "load",
    "plan",
]

logging.getLogger("fewstep").addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'fewstep' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
