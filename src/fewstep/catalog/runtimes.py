"""What each runtime is and can do, in words: `plan` asks here, before torch is there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from fewstep.errors import RequestError

# Options of a call that change the network it runs: weights, residuals, attention.
FEATURES = ("loras", "control", "reference")


@dataclass(frozen=True, kw_only=True)
class RuntimeInfo:
    """A runtime in words; `module` has the code, as `RUNTIME`."""

    name: str
    title: str
    module: str
    features: frozenset[str] = frozenset()  # which of FEATURES it can run


# The first that can do what is asked for is what "auto" takes.
RUNTIMES: Mapping[str, RuntimeInfo] = MappingProxyType(
    {
        "eager": RuntimeInfo(
            name="eager",
            title="plain torch, one kernel at a time",
            module="fewstep.runtimes.eager",
            features=frozenset(FEATURES),
        ),
    }
)
NAMES = ("auto", *RUNTIMES)


def choose_runtime(runtime: str, features: Iterable[str] = ()) -> RuntimeInfo:
    """Return the runtime called `runtime`, one of `NAMES`, which must have these of `FEATURES`.

    "auto" is the first that can; `RequestError` where a named one cannot.
    """
    needed = set(features)
    if runtime == "auto":
        return next(info for info in RUNTIMES.values() if needed <= info.features)
    lacking = sorted(needed - RUNTIMES[runtime].features)
    if lacking:
        capable = [name for name, info in RUNTIMES.items() if needed <= info.features]
        raise RequestError(
            f"runtime={runtime!r} cannot run {lacking[0]}=: leave {lacking[0]} out, or choose "
            f"runtime='auto' or one of {', '.join(capable)}"
        )
    return RUNTIMES[runtime]
