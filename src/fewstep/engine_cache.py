"""The engines that `generate` keeps loaded for its next calls, and which of them a call is for."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.request.engine_choice import EngineChoice, choose_engine
from fewstep.request.options import EngineOptions
from fewstep.request.schema import EngineKey

if TYPE_CHECKING:
    from fewstep.budget import CostStore
    from fewstep.engine import Engine

KEPT_SHARE = 0.25  # of the memory that was free: what engines kept beside each other may take
MOST_KEPT = 4


class EngineCache:
    """The engines that `generate` keeps loaded for its next calls: small ones beside each other.

    Together they take at most `KEPT_SHARE` of the memory that was free when they came; those that were not
    used for longest go first. One alone is kept whatever it takes.
    """

    def __init__(self, load: Callable[[EngineChoice], Any], door: Callable[..., Any]):
        """`load` gives an engine for a choice; `door` is `fewstep.generate`, by which results draw again."""
        self.load, self.loaded, self._door = load, dict[EngineKey, Any](), door
        self._choices = dict[tuple[object, ...], EngineChoice]()  # what was asked of the loaded one, decided
        self._evicted: set[EngineKey] | None = set()  # None once it is said that they come back
        self.lock = threading.Lock()
        self._costs: CostStore | None = None

    def costs(self) -> CostStore:
        """Return what calls cost here: kept with the user's files, but for engines of one's own."""
        from fewstep.budget import CostStore, kept_costs

        if self._costs is None:
            self._costs = kept_costs() if self.load is load_engine else CostStore()
        return self._costs

    def choose(self, mode: str | None, steps: int | None, options: EngineOptions) -> EngineChoice:
        """Return the engine for these options; while it is loaded, no name or file is looked at again."""
        arguments = (mode, steps, *options.values())
        hashable = (
            value if isinstance(value, str | Path | int | None) else repr(value) for value in arguments
        )
        key = (*options, *hashable)
        choice = self._choices.get(key)
        if choice is None or choice.key not in self.loaded:
            choice = self._choices[key] = choose_engine(mode, steps, options)
        return choice

    def engine(self, choice: EngineChoice) -> tuple[Any, tuple[str, ...]]:
        """Return the loaded engine, or a new one in its place; and what is to be said of that."""
        notes: tuple[str, ...] = ()
        with self.lock:
            if choice.key not in self.loaded:
                notes = self._make_room(choice.key)
                self.loaded[choice.key] = self.load_new(choice)
            engine = self.loaded[choice.key] = self.loaded.pop(choice.key)  # the last one was used last
            return engine, notes

    def load_new(self, choice: EngineChoice) -> Any:
        """Return a new engine for a choice, which is not kept here."""
        engine = self.load(choice)
        engine.door = self._door
        return engine

    def _make_room(self, new: EngineKey) -> tuple[str, ...]:
        """Let go of engines until another like them has its place; returns what is to be said of that."""
        notes: tuple[str, ...] = ()
        while self.loaded:
            sizes = [engine.weight_bytes for engine in self.loaded.values()]
            room = KEPT_SHARE * max(engine.free_bytes for engine in self.loaded.values())
            if len(sizes) < MOST_KEPT and sum(sizes) + max(sizes) < room:
                break
            oldest = next(iter(self.loaded))
            notes = self._note_change(oldest, new) or notes
            del self.loaded[oldest]  # a call still running on it keeps it until it ends
        kept = {new, *self.loaded}
        self._choices = {key: cached for key, cached in self._choices.items() if cached.key in kept}
        gc.collect()
        return notes

    def unload(self) -> None:
        """Let go of the loaded one, and have its memory back."""
        with self.lock:
            self.loaded.clear()
            self._choices.clear()
        gc.collect()
        if "torch" in sys.modules:
            from fewstep.devices.memory import free_memory

            free_memory()

    def _note_change(self, current: EngineKey, key: EngineKey) -> tuple[str, ...]:
        """Return a sentence, once, where an engine comes back that another had put out."""
        if self._evicted is None:
            return ()
        self._evicted.add(current)
        if key not in self._evicted:
            return ()
        self._evicted = None
        first, second = (
            f"mode={engine_key.mode!r} of model={engine_key.file('model')!r}" for engine_key in (current, key)
        )
        return (
            f"generate has not the memory to keep {first} and {second}, and loads again at each change: "
            "keep both by fewstep.load(), which takes the memory of both",
        )


def load_engine(choice: EngineChoice) -> Engine:
    """Return a new engine; torch is imported now."""
    from fewstep import engine

    return engine.load_engine(choice)
