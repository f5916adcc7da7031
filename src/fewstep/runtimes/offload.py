"""Weights that wait in RAM and visit the device while they are used: less memory, more time, equal bits.

Inference writes no weight, so that copies on the device are dropped after use and the originals put
back; nothing is copied to RAM. accelerate's hooks would copy both ways (`CpuOffload`), or leave
tensors without memory behind, which do not say where they are (`AlignDevicesHook`).

The networks of one engine must be used one at a time, as `Parts.lock` sees to. What changes the
weights calls `leave` first, and finds the ones in RAM in their places.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from fewstep.devices import Placement


def apply_offload(networks: Sequence[nn.Module], vae: nn.Module, placement: Placement) -> None:
    """Do what `placement.offload` says to text encoders and UNet, and to the VAE."""
    if placement.offload == "model":
        offload_networks([*networks, vae], placement.device)
    elif placement.offload == "sequential":
        offload_layers(networks, placement.device)
        vae.to(placement.device)  # small enough


def offload_networks(networks: Sequence[nn.Module], device: torch.device) -> None:
    """One network at a time is on the device: it comes when it is called and leaves when another is."""
    waiting = [_Waiting(network.modules()) for network in networks]
    for network, tensors in zip(networks, waiting, strict=True):
        turn = _Turn(tensors, waiting, device)
        network.register_forward_pre_hook(turn.pre_forward)
        network.register_forward_pre_hook(_inputs_sent_to(device), with_kwargs=True)
        network._hf_hook = turn  # type: ignore[assignment]  # a VAE's `decode` and `encode` call it


def offload_layers(networks: Sequence[nn.Module], device: torch.device) -> None:
    """One layer at a time is on the device, while it runs."""
    for network in networks:
        network.register_forward_pre_hook(_inputs_sent_to(device), with_kwargs=True)
        for layer in network.modules():
            tensors = _Waiting([layer])
            layer.register_forward_pre_hook(partial(tensors.fetch, device))
            layer.register_forward_hook(tensors.release, always_call=True)


def bring_home(network: nn.Module) -> None:
    """Have a network's own tensors in it, in RAM, where it visits the device: now they may be changed."""
    turn = getattr(network, "_hf_hook", None)
    if isinstance(turn, _Turn):
        turn.leave()


class _Waiting:
    """Modules' own tensors in RAM, which copies on the device can stand in for."""

    def __init__(self, modules: Iterable[nn.Module]):
        self._originals = [
            (module, name, tensor)
            for module in modules
            for name, tensor in chain(
                module.named_parameters(recurse=False), module.named_buffers(recurse=False)
            )
        ]

    def fetch(self, device: torch.device, *_: Any) -> None:
        for module, name, original in self._originals:
            if getattr(module, name).device != device:
                copy = original.to(device, non_blocking=True)
                learned = isinstance(original, nn.Parameter)
                setattr(module, name, nn.Parameter(copy, requires_grad=False) if learned else copy)

    def release(self, *_: Any) -> None:
        for module, name, original in self._originals:
            setattr(module, name, original)


class _Turn:
    """When one network is used, the others leave. The method's name is diffusers' (`apply_forward_hook`)."""

    def __init__(self, tensors: _Waiting, all_tensors: Sequence[_Waiting], device: torch.device):
        self._tensors, self._others = tensors, [waiting for waiting in all_tensors if waiting is not tensors]
        self._device = device

    def pre_forward(self, *_: Any) -> None:
        for other in self._others:
            other.release()
        self._tensors.fetch(self._device)

    def leave(self) -> None:
        self._tensors.release()


def _inputs_sent_to(device: torch.device) -> Callable[[nn.Module, Any, Any], Any]:
    """A hook that sends what a network is given to the device."""

    def send(_network: nn.Module, args: Any, kwargs: Any) -> Any:
        return tree_map_only(Tensor, lambda tensor: tensor.to(device), (args, kwargs))

    return send
