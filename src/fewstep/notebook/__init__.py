"""The notebook's studio: type, look, pick, improve. Extra: fewstep[notebook], for anywidget alone.

fewstep.notebook.Studio("a red fox")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fewstep.errors import FewstepError

if TYPE_CHECKING:
    from fewstep.notebook.studio import Studio

__all__ = ["Studio"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'fewstep.notebook' has no attribute {name!r}")
    try:
        from fewstep.notebook.studio import Studio
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("anywidget", "ipywidgets", "traitlets"):
            raise
        raise FewstepError(f"Studio needs {error.name}: pip install 'fewstep[notebook]'") from error
    return Studio
