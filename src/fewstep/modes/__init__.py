"""The registry of modes. Built-ins and third parties enter by the same door.

A mode is a `Recipe` behind an entry point of the group `fewstep.backends`. It is imported, and
checked, only when it is named: a broken plug-in harms nobody who does not ask for it. With
`FEWSTEP_DISABLE_PLUGINS=1` in the environment only the built-in modes are there.
"""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import replace
from difflib import get_close_matches
from functools import cache, lru_cache
from importlib.metadata import Distribution, EntryPoint, entry_points
from pathlib import Path

from fewstep.catalog import models
from fewstep.catalog.models import Model
from fewstep.errors import BackendError, RequestError, describe_error
from fewstep.modes.validate import recipe_faults
from fewstep.recipe import Recipe

GROUP = "fewstep.backends"
PLUGIN_SWITCH = "FEWSTEP_DISABLE_PLUGINS"

_log = logging.getLogger("fewstep")


def mode_names() -> list[str]:
    """The names of all installed modes; imports none of them."""
    return sorted({entry.name for entry in _entry_points()})


def find_recipe(mode: str) -> Recipe:
    """The recipe of a mode: `RequestError` where there is none, `BackendError` where it is broken."""
    entry = _entry_point(mode)
    try:
        loaded = entry.load()
    except (Exception, SystemExit) as error:  # whatever a plug-in does at import
        raise _broken_mode(entry, f"importing {entry.value} failed with {describe_error(error)}") from error
    faults = recipe_faults(loaded)
    if not faults and loaded.mode != mode:
        faults = [f"its recipe calls itself mode={loaded.mode!r}; entry point and recipe must agree"]
    if faults:
        raise _broken_mode(entry, f"{entry.value}: {'; '.join(faults)}")
    return loaded  # type: ignore[no-any-return]  # a Recipe, or it would have a fault


def choose_mode(model: str | Path, mode: str | None, steps: int | None = None) -> tuple[Model, Recipe]:
    """The model that a name means, and the recipe of the mode (None: the model's own) on it.

    Where each number of steps has weights of its own, the recipe is that of `steps` (None: the default).
    """
    described = models.describe_model(model)
    recipe = (
        find_recipe(described.default_mode if mode is None else mode).on(described.family).for_steps(steps)
    )
    weights = recipe.weights.get(described.family)
    if weights is not None and weights.size and not described.foreign:
        described = replace(described, size=weights.size)
    return described, recipe


def _entry_points() -> list[EntryPoint]:
    """Every entry point of the group; with the switch on, fewstep's own."""
    return [
        entry for entry in _installed_modes(_package_folders()) if _built_in(entry) or not _switched_off()
    ]


@lru_cache(maxsize=1)
def _installed_modes(places: tuple[tuple[str, int], ...]) -> tuple[EntryPoint, ...]:
    """Return the modes' entry points, looked for anew when a package comes or goes in these places."""
    return tuple(entry_points(group=GROUP))


def _package_folders() -> tuple[tuple[str, int], ...]:
    """Where packages are, and when each last changed."""
    return tuple((place, os.stat(place).st_mtime_ns) for place in sys.path if os.path.isdir(place))


def _switched_off() -> bool:
    return os.environ.get(PLUGIN_SWITCH, "") not in ("", "0")


def _entry_point(mode: str) -> EntryPoint:
    """The one entry point of a mode: fewstep's own, or the only one there is."""
    if not isinstance(mode, str):
        raise RequestError(f"mode={mode!r}: give a name; choose one of {', '.join(mode_names())}")
    offers = [entry for entry in _entry_points() if entry.name == mode]
    for built_in in filter(_built_in, offers):
        for entry in offers:
            if entry is not built_in:
                _warn_hidden(mode, _package_of(entry))
        return built_in
    if not offers:
        near = get_close_matches(mode, mode_names(), n=1)
        hint = f"; did you mean mode={near[0]!r}?" if near else ""
        note = f" ({PLUGIN_SWITCH} is set: only fewstep's own are there)" if _switched_off() else ""
        raise RequestError(
            f"mode={mode!r} is not installed{note}: choose one of {', '.join(mode_names())}{hint}"
        )
    if len(offers) > 1:
        packages = " and ".join(sorted(map(_package_of, offers)))
        raise BackendError(f"mode={mode!r} is offered by {packages}: pip uninstall all of these but one")
    return offers[0]


def _built_in(entry: EntryPoint) -> bool:
    return entry.dist is not None and _name_of(entry.dist) == "fewstep"


@lru_cache(maxsize=64)
def _name_of(package: Distribution) -> str:
    """Return a package's name, for which its metadata is read: once."""
    return package.name


def _package_of(entry: EntryPoint) -> str:
    """Name and version of the package that brought an entry point."""
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist is not None else "an unknown package"


def _broken_mode(entry: EntryPoint, fault: str) -> BackendError:
    other_modes = ", ".join(mode for mode in mode_names() if mode != entry.name)
    return BackendError(
        f"mode={entry.name!r} of package {_package_of(entry)} is broken: {fault}; "
        f"update or uninstall that package, or choose another mode: {other_modes}"
    )


@cache  # said once a process
def _warn_hidden(mode: str, package: str) -> None:
    _log.warning("mode=%r of package %s is not used: the name is fewstep's own", mode, package)
