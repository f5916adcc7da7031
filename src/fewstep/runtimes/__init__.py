"""Runtimes: how a network is executed. What each can do is in `fewstep.catalog.runtimes`, without torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from fewstep.catalog.runtimes import RuntimeInfo

if TYPE_CHECKING:
    from torch import Tensor

    from fewstep.denoiser import Network


class Decoder(Protocol):
    """Latents (B, C, h, w) as the VAE has them, in its dtype → pictures (B, 3, H, W) in about [-1, 1]."""

    def __call__(self, latents: Tensor, /) -> Tensor: ...


class Runtime(Protocol):
    """The seam: loaded modules of torch → what the loop calls; what it can run is in its `RuntimeInfo`."""

    def network(self, module: Any, /) -> Network:
        """Return a UNet as the denoiser calls it."""

    def decoder(self, vae: Any, /) -> Decoder:
        """Return a VAE's decoder."""


def load_runtime(info: RuntimeInfo) -> Runtime:
    """Return the code of a runtime, one of `fewstep.catalog.runtimes.RUNTIMES`."""
    runtime: Runtime = import_module(info.module).RUNTIME
    return runtime
