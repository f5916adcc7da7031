"""Imports of diffusers and transformers that leave out what importing them alone would bring.

Their modules import torch's compiler, peft, scipy and every model there is, for a decorator here and an
`isinstance` there: more than half the time until the first picture. Inside `light_imports` these modules are
stand-ins, and what is taken from one imports the real module when it is used. Afterwards none is left where
another could find it: whoever imports such a module gets the real one.
"""

from __future__ import annotations

import functools
import importlib
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import spec_from_file_location
from types import ModuleType
from typing import Any

COMPILER = "torch._dynamo"
_PARALLEL = ("checkpoint", "expert_parallel", "fsdp", "parallel_utils", "pipeline_parallel", "sharding_utils",
             "tensor_parallel")  # fmt: skip
HELD = (  # with all below them
    COMPILER, "peft", "scipy", *(f"transformers.distributed.{name}" for name in _PARALLEL),
)  # fmt: skip
# Packages whose own body imports every model of theirs: their submodules are imported, and the body is run
# when a name is looked for in them.
OPEN = (
    "diffusers.models.autoencoders", "diffusers.models.controlnets", "diffusers.models.transformers",
    "diffusers.models.unets", "transformers.models",
)  # fmt: skip
# What the import system looks for in a module, and is right not to find.
_OPTIONAL = frozenset({"__all__", "__cached__", "__file__", "__path__", "__wrapped__"})
_lock, _body_lock = threading.RLock(), threading.RLock()


@contextmanager
def light_imports() -> Iterator[None]:
    """Inside, the modules of `HELD` are not imported but for those that are there already."""
    with _lock:
        hold = _Hold(tuple(name for name in HELD if name not in sys.modules))
        sys.meta_path.insert(0, hold)
        try:
            yield
        finally:
            sys.meta_path.remove(hold)
            for name in hold.held:
                hold.release(name)


class _Hold(MetaPathFinder, Loader):
    """Finds stand-ins for modules that are held back."""

    def __init__(self, held: tuple[str, ...]):
        self.held = held

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if target is None and name in OPEN:
            real = PathFinder.find_spec(name, path)
            if real is not None and real.origin is not None:
                folders = real.submodule_search_locations
                return spec_from_file_location(
                    name, real.origin, loader=self, submodule_search_locations=folders
                )
        return ModuleSpec(name, self, is_package=True) if self._root(name) else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _OpenPackage(spec.name) if spec.name in OPEN else _StandIn(spec.name, self)

    def exec_module(self, module: ModuleType) -> None:
        """Run nothing: that is left for when it is needed."""

    def _root(self, name: str) -> str:
        return next((held for held in self.held if f"{name}.".startswith(f"{held}.")), "")

    def release(self, name: str) -> None:
        """Take the stand-ins away for a module and its kin: it is no longer held back."""
        root = self._root(name)
        if not root:
            return
        self.held = tuple(held for held in self.held if held != root)
        for place, module in list(sys.modules.items()):
            if isinstance(module, _StandIn) and f"{place}.".startswith(f"{root}."):
                sys.modules.pop(place, None)
                parent, _, leaf = place.rpartition(".")
                if vars(sys.modules.get(parent, module)).get(leaf) is module:
                    delattr(sys.modules[parent], leaf)


class _StandIn(ModuleType):
    """In the place of a module while others are imported."""

    def __init__(self, name: str, hold: _Hold):
        super().__init__(name)
        self._hold = hold

    def __getattr__(self, name: str) -> Any:
        if name in _OPTIONAL:
            raise AttributeError(f"{self.__name__} has no {name}")
        if self.__name__ == COMPILER and name in _DECORATORS:
            return _DECORATORS[name]
        return getattr(self.load(), name) if name.startswith("__") else _Member(self, name)

    def load(self) -> ModuleType:
        """Return the real one."""
        self._hold.release(self.__name__)
        return importlib.import_module(self.__name__)


class _Member:
    """What was taken from a stand-in, a class or a function or a module: fetched when it is used."""

    def __init__(self, owner: _StandIn, name: str):
        self._owner, self._name = owner, name

    def _load(self) -> Any:
        return getattr(self._owner.load(), self._name)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return self._load()(*arguments, **keywords)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._load(), name)

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self._load(),)

    def __instancecheck__(self, instance: object) -> bool:
        module = sys.modules.get(self._owner.__name__)
        if module is None or isinstance(module, _StandIn):
            return False  # there are none of a class that was never made
        return isinstance(instance, getattr(module, self._name))


class _OpenPackage(ModuleType):
    """A package whose body was not run yet; it stays in its place, and becomes an ordinary one."""

    def __getattr__(self, name: str) -> Any:
        if name in _OPTIONAL - {"__all__"}:
            raise AttributeError(f"{self.__name__} has no {name}")
        real = self._run_body()
        if real is not self:
            return getattr(real, name)
        try:
            return vars(self)[name]
        except KeyError:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}") from None

    def __dir__(self) -> list[str]:
        real = self._run_body()
        return list(vars(self)) if real is self else dir(real)

    def _run_body(self) -> ModuleType:
        """Return the module that the body makes: this one, or another that it puts in its place."""
        # Another thread that runs it may wait for a module that this one imports: no wait for ever.
        is_mine = _body_lock.acquire(timeout=60)
        try:
            real = sys.modules[self.__name__]
            if real is self and type(self) is _OpenPackage:
                real = importlib.reload(self)  # returns at once where this body is under way
                if real is self:
                    self.__class__ = ModuleType  # type: ignore[assignment]
                else:
                    parent, _, leaf = self.__name__.rpartition(".")
                    setattr(sys.modules[parent], leaf, real)
            return real
        finally:
            if is_mine:
                _body_lock.release()


# Decorators of torch's compiler: what they say is said when it is imported, and means nothing before.
_unsaid: list[Callable[[Any], None]] = []


class _CompilerFinder(MetaPathFinder):
    """Tells torch's compiler, as soon as someone imports it, what was decorated without it."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != COMPILER or target is not None:
            return None
        spec = PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_and_tell(module: ModuleType) -> None:
                run(module)
                sys.meta_path.remove(self)
                while _unsaid:
                    _unsaid.pop(0)(module)

            spec.loader.exec_module = run_and_tell  # type: ignore[method-assign]
        return spec


def _allow_in_graph(function: Any) -> Any:
    _tell_later(lambda compiler: compiler.allow_in_graph(function))
    return function


def _assume_constant_result(function: Any) -> Any:
    _tell_later(lambda compiler: compiler.assume_constant_result(function))
    return function


def _disable(function: Any = None, recursive: bool = True, **keywords: Any) -> Any:
    if function is None:
        return functools.partial(_disable, recursive=recursive, **keywords)
    current = function  # the compiler's own wrapper of it, once there is a compiler

    @functools.wraps(function)
    def call(*arguments: Any, **words: Any) -> Any:
        return current(*arguments, **words)

    def wrap(compiler: Any) -> None:
        nonlocal current
        current = compiler.disable(function, recursive, **keywords)
        vars(call).update(vars(current))

    _tell_later(wrap)
    return call


def _tell_later(tell: Callable[[Any], None]) -> None:
    """Tell the compiler when it is imported; at once where it has been, by modules that come after it."""
    compiler = sys.modules.get(COMPILER)
    if compiler is not None and not isinstance(compiler, _StandIn):
        tell(compiler)
        return
    if not _unsaid:
        sys.meta_path.insert(0, _CompilerFinder())
    _unsaid.append(tell)


_DECORATORS: dict[str, Callable[..., Any]] = {
    "allow_in_graph": _allow_in_graph,
    "assume_constant_result": _assume_constant_result,
    "disable": _disable,
}
