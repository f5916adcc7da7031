"""A UNet that several calls share: one at a time, and each can be stopped."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor

from fewstep.cancel import CancelToken
from fewstep.denoiser import Unet
from fewstep.text import Conditioning


def in_turn(unet: Unet, lock: AbstractContextManager[Any]) -> Unet:
    """`unet`, with `lock` held while it runs."""

    def call(x: Tensor, timestep: Tensor, conditioning: Conditioning, embedding: Tensor | None) -> Tensor:
        with lock:
            return unet(x, timestep, conditioning, embedding)

    return call


def stoppable(unet: Unet, token: CancelToken) -> Unet:
    """`unet`, not called any more once `token` is cancelled."""

    def call(x: Tensor, timestep: Tensor, conditioning: Conditioning, embedding: Tensor | None) -> Tensor:
        token.check()
        return unet(x, timestep, conditioning, embedding)

    return call
