"""Runtimes: how a network is executed. What each can do is in `fewstep.catalog.runtimes`, without torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from fewstep.catalog.runtimes import RUNTIMES

if TYPE_CHECKING:
    from torch import Tensor

    from fewstep.denoiser import Network


class Decoder(Protocol):
    """Latents (B, C, h, w) as the VAE has them, in its dtype → pictures (B, 3, H, W) in about [-1, 1]."""

    def __call__(self, latents: Tensor, /) -> Tensor: ...


class Runtime(Protocol):
    """The seam: loaded modules of torch → what the loop calls."""

    name: str

    def network(self, module: Any, /) -> Network:
        """Return a UNet as the denoiser calls it."""

    def decoder(self, vae: Any, /) -> Decoder:
        """Return a VAE's decoder."""

    def supports(self, feature: str, /) -> bool:
        """Return whether calls with this option can run (`fewstep.catalog.runtimes.FEATURES`)."""


def load_runtime(name: str) -> Runtime:
    """Return the runtime of this name, one of `RUNTIMES`."""
    runtime: Runtime = import_module(RUNTIMES[name].module).RUNTIME
    return runtime
