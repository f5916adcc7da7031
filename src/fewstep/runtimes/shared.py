"""A UNet that several calls share, each with adapters of its own."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor

from fewstep.cancel import CancelToken
from fewstep.conditioning import Conditioning
from fewstep.denoiser import Unet


def in_turn(
    unet: Unet, lock: AbstractContextManager[Any], token: CancelToken, dress: Callable[[], None]
) -> Unet:
    """`unet`, with `lock` held while it runs, and not called any more once `token` is cancelled.

    Before each run `dress` sees to it that the call's own adapters are on.
    """

    def call(x: Tensor, timestep: Tensor, conditioning: Conditioning, embedding: Tensor | None) -> Tensor:
        with lock:
            token.check()  # after the wait, which may be long
            dress()
            return unet(x, timestep, conditioning, embedding)

    return call
