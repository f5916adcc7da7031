"""The LoRAs that a model wears: put on, changed and taken off without a trace.

A weight with adapters is W + Σ share · ΔW (`fewstep.addons.lora_deltas`), always computed from the W
that the engine began with, in fp32, and cast once: what was on before leaves nothing behind. The W of
every changed weight is kept, in RAM; where the model itself is there, that is the tensor itself.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from fewstep.addons import lora, lora_targets
from fewstep.addons.lora import Lora
from fewstep.addons.lora_deltas import WeightDelta
from fewstep.catalog import addons
from fewstep.errors import raise_as_memory_error
from fewstep.loading.from_pipe import JointLock
from fewstep.loading.parts import Parts
from fewstep.runtimes import offload

ActiveLoras = tuple[tuple[Lora, float], ...]  # each with its weight
_Deltas = tuple[tuple[WeightDelta, float], ...]  # what goes on one weight

MAX_READ = 8  # read ones that are kept for their next use; they stay mapped, which takes no memory
_CHANGING: _Deltas = ()  # is neither what was on a weight nor what will be


class EngineLoras:
    """Of one engine. All but `read` under `Parts.lock`."""

    def __init__(self, parts: Parts):
        """The mode's own adapter is put on for good: what calls change, and put back, has it on."""
        networks = (getattr(n, "_orig_mod", n) for n in (parts.unet, *parts.text.encoders))  # if compiled
        self._networks: dict[str, nn.Module] = dict(zip(lora_targets.LORA_NETWORKS, networks, strict=False))
        self._text, self._config = parts.text, parts.unet.config
        # Only a pipeline's networks have such a lock: they are its owner's, who may change them too.
        self._borrowed = parts.lock if isinstance(parts.lock, JointLock) else None
        self._files: OrderedDict[tuple[Any, ...], Lora] = OrderedDict()
        self._reading = threading.Lock()
        self._layers: lora_targets.LoraTargets | None = None
        if parts.accelerator is not None:
            with parts.lock:
                self.apply(self.read((parts.accelerator,)))
            with _guard:
                for network in self._networks.values():
                    _loras_by_network.pop(network, None)  # what it was loaded with need not be kept
            self._files.clear()

    def read(self, loras: Sequence[tuple[str, float]]) -> ActiveLoras:
        """Return LoRAs with their weights, read where not known; raises `ModelError` where one misfits."""
        with self._reading:
            return tuple((self._read_cached(source), weight) for source, weight in loras if weight != 0)

    @torch.no_grad()
    def apply(self, loras: ActiveLoras) -> None:
        """Have exactly these on; a network where that fails stays as it was."""
        untouched = self._borrowed is None and not any(
            n in _loras_by_network for n in self._networks.values()
        )
        if untouched and not loras:
            return
        with self._text.lock, raise_as_memory_error("while LoRAs were put on"):
            for name, network in self._networks.items():
                changed = _loras_of(network).change(network, loras, name)
                if (changed and name != lora_targets.UNET) or self._borrowed is not None:
                    self._text.forget()

    def restore(self) -> None:
        """Leave borrowed networks as they were, and others as they are, at the end of a call.

        Not where a stream that nobody holds is collected in the middle of another call: that one
        puts on what it needs, and leaves them in its turn.
        """
        if self._borrowed is not None and not self._borrowed.held:
            with self._borrowed:
                self.apply(())

    def _read_cached(self, source: str) -> Lora:
        """Return a LoRA from those kept where its file is unchanged, else read it."""
        path = addons.addon_file(source) or addons.fetch_addon(source)
        stat = os.stat(path)
        key = (path, stat.st_size, stat.st_mtime_ns)
        cached = self._files.pop(key, None)
        if self._layers is None:
            self._layers = lora_targets.find_lora_targets(self._networks, self._config)
        self._files[key] = cached = lora.read_lora(path, self._layers) if cached is None else cached
        while len(self._files) > MAX_READ:
            self._files.popitem(last=False)
        return cached


class _NetworkLoras:
    """One network's changed weights, whichever engine has them changed."""

    def __init__(self) -> None:
        self._active: ActiveLoras = ()
        self._on: dict[str, _Deltas] = {}  # by weight
        self._loaded: dict[str, Tensor] = {}  # the same weights as they were

    def change(self, network: nn.Module, loras: ActiveLoras, name: str) -> bool:
        """Have exactly these on; True where that changed a weight. If it fails, it was not begun."""
        if loras == self._active:
            return False
        previous = dict(self._on)
        try:
            changed = self._set_deltas(network, _deltas_by_weight(loras, name))
        except BaseException:
            self._set_deltas(network, previous)
            raise
        self._active = loras
        return changed

    def _set_deltas(self, network: nn.Module, deltas: Mapping[str, _Deltas]) -> bool:
        names = [name for name in {**self._on, **deltas} if self._on.get(name) != deltas.get(name)]
        if names:
            offload.bring_home(network)
        for name in names:
            weight, added = network.get_parameter(name), deltas.get(name)
            if name not in self._loaded:
                self._loaded[name] = _original_weight(weight)
            self._on[name] = _CHANGING
            if added is None:
                _set_weight(weight, self._loaded[name])
                del self._loaded[name], self._on[name]
            else:
                _set_weight(weight, merge_weight(self._loaded[name].to(weight.device), added))
                self._on[name] = added
        return bool(names)


_loras_by_network: WeakKeyDictionary[nn.Module, _NetworkLoras] = (
    WeakKeyDictionary()
)  # engines can share a network
_guard = threading.Lock()


def _loras_of(network: nn.Module) -> _NetworkLoras:
    with _guard:
        return _loras_by_network.setdefault(network, _NetworkLoras())


def merge_weight(weight: Tensor, added: _Deltas) -> Tensor:
    """Return a weight plus what is added, computed in fp32, cast once; laid out in memory as it was."""
    total = weight.to(torch.float32, copy=True).reshape(len(weight), -1)
    for delta, share in added:
        total = delta.added_to(total, weight, share)
    return torch.empty_like(weight).copy_(total.view(weight.shape))


def _deltas_by_weight(loras: ActiveLoras, network: str) -> dict[str, _Deltas]:
    """Return what goes on each weight of a network, in the order given."""
    added: dict[str, _Deltas] = {}
    for active_lora, share in loras:
        for (owner, name), delta in active_lora.deltas.items():
            if owner == network:
                added[name] = (*added.get(name, ()), (delta, share))
    return added


def _original_weight(weight: nn.Parameter) -> Tensor:
    """Return a weight as it is: itself in RAM; a copy of one on a device."""
    return weight.data if weight.device.type == "cpu" else weight.data.to("cpu", copy=True)


def _set_weight(weight: nn.Parameter, value: Tensor) -> None:
    """Set a weight's values; on a device in place: it has no room for both, and graphs know the address."""
    if weight.device.type == "cpu":
        weight.data = value
    else:
        weight.data.copy_(value)
