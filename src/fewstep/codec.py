"""Pixels ↔ latents, by a full (`AutoencoderKL`) or a tiny (`AutoencoderTiny`) autoencoder."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fewstep.devices import Placement
from fewstep.devices.memory import free_memory
from fewstep.errors import is_out_of_memory, raise_as_memory_error
from fewstep.progress import Notify, ignore
from fewstep.runtimes import Runtime, eager
from fewstep.torch_state import OnMeta

SMALL_VAE = 5_000_000  # parameters: decoding by such a VAE costs less than a step


class Codec:
    """A VAE with its scaling: latents here are what the UNet sees, fp32, (B, 4, H/8, W/8).

    One picture at a time, which bounds memory. `lock` is held while the network runs.
    """

    def __init__(
        self,
        vae: Any,
        placement: Placement,
        lock: AbstractContextManager[Any] | None = None,
        runtime: Runtime = eager.RUNTIME,
    ):
        self._vae, self._placement, self._runtime = vae, placement, runtime
        self._decoder = runtime.decoder(vae)
        self._lock = threading.RLock() if lock is None else lock
        config, device = vae.config, placement.device
        self._scale = float(config.scaling_factor)
        scaling = (config.get("latents_mean") or [0.0] * 4, config.get("latents_std") or [1.0] * 4)
        self._mean, self._std = (
            torch.tensor(each, dtype=torch.float32, device=device).view(1, 4, 1, 1) for each in scaling
        )
        self._cheap = sum(weight.numel() for weight in vae.parameters()) < SMALL_VAE
        self._format = placement.memory_format
        self._colours: Tensor | None = None

    @torch.no_grad()
    def decode(self, latents: Tensor, say: Notify = ignore) -> Tensor:
        """Latents (1, 4, h, w) → uint8 picture (H, W, 3) on the CPU.

        Where memory runs out it is decoded by tiles; where a number is not finite, once more in
        fp32. `say` is told. `FloatingPointError` where that does not help either.
        """
        with self._lock:
            decoded = self._run_or_tile(self._vae, lambda vae: self._decode_raw(vae, latents), say)
            if not decoded.isfinite().all() and self._placement.vae_dtype != torch.float32:
                # SDXL's own VAE overflows in fp16, on some pictures.
                say("the VAE gave numbers that are not finite, and decoded once more in fp32")
                with raise_as_memory_error("beside the VAE, for its copy in fp32"):
                    precise = self._in_fp32()
                decoded = self._run_or_tile(precise, lambda vae: self._decode_raw(vae, latents), say)
        if not decoded.isfinite().all():
            raise FloatingPointError("the VAE gave numbers that are not finite")
        return to_pixels(decoded)[0].cpu()

    @torch.no_grad()
    def encode(self, picture: Tensor, noise: Tensor, say: Notify = ignore) -> Tensor:
        """Picture (1, 3, H, W) in [-1, 1] → latents; `noise` (1, 4, h, w) picks the sample."""
        with self._lock:
            return self._run_or_tile(self._vae, lambda vae: self._encode_raw(vae, picture, noise), say)

    @torch.no_grad()
    def preview(self, latents: Tensor) -> Tensor:
        """Latents (1, 4, h, w) → uint8 picture (H, W, 3): what a small VAE gives, else colours only.

        The colours are a linear map of the latents, fitted to this VAE by flat pictures.
        """
        latents = latents.nan_to_num()  # what is wrong with them is said when the picture is made
        if self._cheap:
            with self._lock:
                decoded = self._run_or_tile(self._vae, lambda vae: self._decode_raw(vae, latents), ignore)
            return to_pixels(decoded.nan_to_num())[0].cpu()
        with self._lock:
            if self._colours is None:
                self._colours = self._fit_colours()
        rows = latents.movedim(1, -1)
        small = (rows @ self._colours[:4] + self._colours[4]).movedim(-1, 1)
        large = F.interpolate(small.clamp(-1, 1), scale_factor=8, mode="bilinear")
        return to_pixels(large)[0].cpu()

    def _run_or_tile(self, vae: Any, run: Callable[[Any], Tensor], say: Notify) -> Tensor:
        """Run on the VAE; where memory runs out, once more by tiles."""
        if not self._placement.tiling:
            try:
                return run(vae)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
            free_memory()
            say("memory ran out: the VAE worked in tiles")
        with raise_as_memory_error("in the VAE, though it worked in tiles"):
            return run(with_tiles(vae))

    def _decode_raw(self, vae: Any, latents: Tensor) -> Tensor:
        raw = (latents * self._std / self._scale + self._mean).to(self._placement.device, vae.dtype)
        decoder = self._decoder if vae is self._vae else self._runtime.decoder(vae)
        return decoder(raw.contiguous(memory_format=self._format))

    def _encode_raw(self, vae: Any, picture: Tensor, noise: Tensor) -> Tensor:
        picture = picture.to(self._placement.device, vae.dtype).contiguous(memory_format=self._format)
        encoded = vae.encode(picture)
        if hasattr(encoded, "latents"):  # AutoencoderTiny has no posterior
            raw: Tensor = encoded.latents.float()
        else:
            posterior = encoded.latent_dist
            raw = posterior.mean.float() + posterior.std.float() * noise.to(self._placement.device)
        return (raw - self._mean) * self._scale / self._std

    def _in_fp32(self) -> Any:
        """A copy of the VAE in fp32; the VAE itself is shared by calls and stays as it is."""
        with OnMeta():  # no random weights are drawn for it
            precise = type(self._vae).from_config(self._vae.config)
        weights = self._vae.state_dict().items()
        exact = {name: weight.to(self._placement.device, torch.float32) for name, weight in weights}
        precise.load_state_dict(exact, assign=True)
        return precise.eval().to(memory_format=self._placement.memory_format)

    def _fit_colours(self) -> Tensor:
        """The linear map from latents to colours, (5, 3): 27 flat pictures, least squares."""
        levels = torch.linspace(-1, 1, 3, dtype=torch.float32, device="cpu")
        flat = torch.cartesian_prod(levels, levels, levels)
        noise = flat.new_zeros(1, 4, 8, 8)
        encoded = [
            self._encode_raw(self._vae, colour.view(1, 3, 1, 1).expand(1, 3, 64, 64), noise).mean(dim=(2, 3))
            for colour in flat
        ]
        latents = torch.cat(encoded).cpu()
        ones = latents.new_ones(27, 1)
        fitted: Tensor = torch.linalg.lstsq(torch.cat([latents, ones], dim=1), flat).solution
        return fitted.to(self._placement.device)


def with_tiles(vae: Any) -> Any:
    """Return the same networks, worked in tiles of about half the side that the VAE was trained at.

    An AutoencoderTiny has the same three settings, and does not say that side: its tiles are of 256 pixels.
    """
    twin = copy.copy(vae)  # shares every weight; only the three settings are its own
    trained = vae.config.get("sample_size", 512)
    trained = max(trained) if isinstance(trained, list | tuple) else trained
    side = max(64, trained // 2 // 32 * 32)  # overlaps are quarters of 8 pixels
    twin.use_tiling, twin.tile_sample_min_size, twin.tile_latent_min_size = True, side, side // 8
    return twin


def to_pixels(pictures: Tensor) -> Tensor:
    """(B, 3, H, W) in [-1, 1] → uint8 (B, H, W, 3), on the same device."""
    scaled = (pictures * 0.5 + 0.5).clamp(0, 1) * 255
    return scaled.round().to(torch.uint8).permute(0, 2, 3, 1)
