"""The registry of modes. Built-ins and third parties enter by the same door.

A mode is a `Recipe` behind an entry point of the group `fewstep.backends`; it is imported
only when it is named.
"""

from __future__ import annotations

from dataclasses import replace
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points

from fewstep.errors import RequestError
from fewstep.models import catalog
from fewstep.models.catalog import Model
from fewstep.recipe import Recipe

GROUP = "fewstep.backends"


def modes() -> list[str]:
    """The names of all installed modes; imports none of them."""
    return sorted({entry.name for entry in entry_points(group=GROUP)})


def recipe(mode: str) -> Recipe:
    """The recipe of a mode; `RequestError` names the modes there are."""
    found: list[EntryPoint] = [e for e in entry_points(group=GROUP) if e.name == mode]
    if not found:
        near = get_close_matches(mode, modes(), n=1)
        hint = f"; did you mean mode={near[0]!r}?" if near else ""
        raise RequestError(f"mode={mode!r} is not installed: choose one of {', '.join(modes())}{hint}")
    loaded = found[0].load()
    if not isinstance(loaded, Recipe):
        raise RequestError(f"mode={mode!r}: {found[0].value} is not a fewstep Recipe")
    return loaded


def chosen(model: str, mode: str | None) -> tuple[Model, Recipe]:
    """The model that a name means, and the recipe of the mode (None: the model's own) on it."""
    about = catalog.describe(model)
    rules = recipe(about.default_mode if mode is None else mode).on(about.family)
    weights = rules.weights.get(about.family)
    if weights is not None and weights.size and not about.local:
        about = replace(about, size=weights.size)
    return about, rules
