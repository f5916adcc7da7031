"""A UNet that several calls share."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor

from fewstep.cancel import CancelToken
from fewstep.denoiser import Unet
from fewstep.text import Conditioning


def in_turn(unet: Unet, lock: AbstractContextManager[Any], token: CancelToken) -> Unet:
    """`unet`, with `lock` held while it runs, and not called any more once `token` is cancelled."""

    def call(x: Tensor, timestep: Tensor, conditioning: Conditioning, embedding: Tensor | None) -> Tensor:
        with lock:
            token.check()  # after the wait, which may be long
            return unet(x, timestep, conditioning, embedding)

    return call
