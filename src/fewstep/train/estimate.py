"""What a run would hold in memory, told before it starts; no weight is read.

Networks are built from their configurations on torch's meta device, whose tensors have sizes and no
memory, and the task's own loss and backward pass run on them: every tensor is counted from its birth to its
death. Attention counts as fused. Under bf16 the casts of CUDA's autocast are made as it makes them. What is
not seen is the room of kernels and holes between blocks; `RESERVE` stands for it.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from fewstep.architectures.text import Size, size_ids
from fewstep.denoiser import Conditioning
from fewstep.devices import probe
from fewstep.noise_process import SDXL_NOISE
from fewstep.prompts import WINDOW
from fewstep.train import stages
from fewstep.train.config import TrainConfig
from fewstep.train.loop import Draw, Task
from fewstep.train.meta_networks import MetaNetworks, build_meta_networks

RESERVE = 0.1  # of all the rest
ADAM = 2  # numbers for each that learns


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Bytes of each kind."""

    title: str
    rows: tuple[tuple[str, int], ...]
    free: tuple[tuple[str, int], ...]  # of the devices here

    @property
    def total(self) -> int:
        return sum(size for _, size in self.rows)

    def __str__(self) -> str:
        lines = [
            self.title,
            *(_estimate_line(name, size) for name, size in self.rows),
            _estimate_line("total", self.total),
        ]
        lines += [
            _estimate_line(f"free on {name}: {'enough' if self.total <= size else 'too little'}", size)
            for name, size in self.free
        ]
        return "\n".join(lines)


def estimate(config: TrainConfig) -> Estimate:
    """Return what one device would hold at the most, and what there is here."""
    meta = build_meta_networks(config)
    task = _task_on_meta(config, meta)
    learning = _learning_weights(task)
    count = sum(p.numel() for p in learning.values())
    rows = (
        *_frozen_weights(config, meta),
        (f"what learns, {count / 1e6:,.1f} M parameters", 4 * count),
        ("its average", _bytes_of_averages(task)),
        ("gradients", 4 * count),
        ("optimiser", 4 * ADAM * count),
        (f"activations, {_how(config)}", peak(config, task)),
    )
    reserve = int(RESERVE * sum(size for _, size in rows))
    return Estimate(
        title=f"{config.stage} on {config.model}: {config.size} pixels, batch {config.batch}",
        rows=(*rows, (f"reserve, {RESERVE:.0%}", reserve)),
        free=tuple(_free_memory()),
    )


def _frozen_weights(config: TrainConfig, meta: MetaNetworks) -> list[tuple[str, int]]:
    """Weights that do not learn; on a GPU a teacher's and the text encoders' are bf16 where that is asked."""
    half = 2 if config.bf16 else 4
    if config.stage == "vae":
        return [("the encoder, which stays", 4 * (meta.vae - meta.decoder))]
    rows = [("text encoders", half * meta.text), ("autoencoder", 4 * meta.vae)]
    if config.stage in ("lcm", "add"):
        rows.append(("the teacher", half * meta.unet))
    if config.stage == "lcm-lora":
        rows.append(("UNet", half * meta.unet))
    return rows


def _bytes_of_averages(task: Task) -> int:
    """Bytes of the running averages, in fp32."""
    return sum(4 * p.numel() for network in task.averages.values() for _, p in network.named_parameters())


def _learning_weights(task: Task) -> dict[str, Any]:
    by_network = (network.named_parameters() for network in task.modules.values())
    return {
        f"{i}.{key}": p for i, parameters in enumerate(by_network) for key, p in parameters if p.requires_grad
    }


def peak(config: TrainConfig, task: Task) -> int:
    """The most bytes alive at once in a batch's loss and backward pass, gradients of weights left out."""
    hooks = [p.register_post_accumulate_grad_hook(_forget) for p in _learning_weights(task).values()]
    try:
        with Live() as live, _counted_kernels(config):
            task.loss(Draw.of(0, 0)).backward()
    finally:
        for hook in hooks:
            hook.remove()
    peak_bytes: int = live.peak
    return peak_bytes


class Live(TorchDispatchMode):
    """Counts the bytes of all tensors made inside, while they are alive; `peak` is the most at once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._sizes: dict[int, int] = {}
        self._alive = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        storages = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in storages:
                self._tensor_born(tensor.untyped_storage())
        return result

    def _tensor_born(self, storage: Any) -> None:
        if storage._cdata not in self._sizes:
            self._sizes[storage._cdata] = storage.nbytes()
            self._alive += storage.nbytes()
            self.peak = max(self.peak, self._alive)
            weakref.finalize(storage, self._tensor_died, storage._cdata)

    def _tensor_died(self, key: int) -> None:
        self._alive -= self._sizes.pop(key)


class Fused(torch.autograd.Function):
    """Attention that keeps what fused kernels keep: its inputs, its result, and a number for each row."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = torch.empty_like(query)
        ctx.save_for_backward(
            query, key, value, output, query.new_empty(query.shape[:-1], dtype=torch.float32)
        )
        return output

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        query, key, value, _output, _rows = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _forget(p: Tensor) -> None:
    p.grad = None


@contextmanager
def _counted_kernels(config: TrainConfig) -> Iterator[None]:
    """Fused attention and, under bf16, autocast's casts: matrices in bf16, norms in fp32.

    Put in torch's own place for the while: a mode of torch is not seen by what is recomputed in the
    backward pass.
    """
    low = torch.bfloat16 if config.bf16 else torch.float32

    def attend(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
        apply: Any = Fused.apply
        output: Tensor = apply(query.to(low), key.to(low), value.to(low))
        return output

    casts = {"linear": low, "conv2d": low, "group_norm": torch.float32, "layer_norm": torch.float32}
    originals = {name: getattr(F, name) for name in ("scaled_dot_product_attention", *casts)}
    try:
        F.scaled_dot_product_attention = attend
        for name, dtype in casts.items():
            setattr(F, name, _cast(originals[name], dtype))
        yield
    finally:
        for name, function in originals.items():
            setattr(F, name, function)


def _cast(function: Any, dtype: torch.dtype) -> Any:
    def fit(value: Any) -> Any:
        return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    return lambda *args, **kwargs: function(*map(fit, args), **tree_map(fit, kwargs))


class _Empty:
    """Stands for pictures and for text encoders: tensors of the right shapes, on no memory."""

    def __init__(self, config: TrainConfig, meta: MetaNetworks):
        self.size: Size = (config.size, config.size)
        self._config, self._meta = config, meta
        self.encoders = (nn.Module(), nn.Module())  # without weights: what they give is not computed
        self.encoders[1].config = SimpleNamespace(projection_dim=meta.pooled)  # type: ignore[assignment]
        self._dtype = torch.bfloat16 if config.bf16 else torch.float32

    def batch(self, count_or_prompts: Any, *_: Any) -> Any:
        """Latents and prompts of a number of pictures, or what prompts are encoded to."""
        if isinstance(count_or_prompts, int):
            side = self._config.size // 8
            return torch.empty(count_or_prompts, 4, side, side, device="meta"), [""] * count_or_prompts
        rows, device = len(count_or_prompts), torch.device("meta")
        tokens = torch.empty(rows, WINDOW, self._meta.context, device=device, dtype=self._dtype)
        pooled = torch.empty(rows, self._meta.pooled, device=device, dtype=self._dtype)
        return Conditioning(tokens, {"text_embeds": pooled, "time_ids": size_ids(self.size, rows, device)})


def _task_on_meta(config: TrainConfig, meta: MetaNetworks) -> Task:
    """The very task that would run, on networks of no memory."""
    empty: Any = _Empty(config, meta)
    unet: Any = meta.networks["unet"]
    parts: Any = SimpleNamespace(unet=unet, vae=meta.networks["vae"], text=empty, process=SDXL_NOISE)
    blank: Any = SimpleNamespace(tensor=lambda side, _noted: torch.empty(1, 3, side, side, device="meta"))
    with torch.device("meta"):
        if config.stage == "vae":
            return stages.vae_run(config, parts, [blank]).task
        task, *_ = stages.make_task(config, parts, empty)
    for p in unet.parameters():
        if config.bf16 and not p.requires_grad:
            p.data = p.data.bfloat16()
    return task


def _how(config: TrainConfig) -> str:
    kind = "bf16" if config.bf16 else "fp32"
    return f"{kind}, recomputed (checkpointing)" if config.checkpointing else f"{kind}, all kept"


def _estimate_line(name: str, size: int) -> str:
    return f"  {name:<46}{size / 2**30:8.2f} GiB"


def _free_memory() -> Iterator[tuple[str, int]]:
    """Yield the free memory of each GPU; of main memory where there is none."""
    machine = probe()
    gpus = [(gpu.device, gpu.free) for gpu in machine.cuda]
    gpus += [] if machine.mps is None else [(machine.mps.device, machine.mps.free)]
    yield from gpus or [(machine.cpu.device, machine.cpu.free)]
