"""Tensors that are still in their files: names and shapes now, numbers when they are needed.

Converters between layouts rename, cut and transpose; done on `LazyTensor`s, that costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from io import FileIO
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import CorruptModelError
from fewstep.files import safetensors
from fewstep.files.untrusted import raise_as_corrupt

# Of which networks are made; whole numbers would be quantised weights.
DTYPES: MappingProxyType[str, torch.dtype] = MappingProxyType(
    {
        "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
        "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    }
)  # fmt: skip

Step = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class LazyTensor:
    """One tensor of a file, and what is to be done to it once it is read.

    As much of a tensor as diffusers' converters look at.
    """

    path: Path
    name: str  # in the file
    begin: int  # where in the file, bytes
    dtype: str  # as safetensors calls it
    file_shape: torch.Size  # in the file
    steps: tuple[Step, ...] = ()

    @property
    def bytes(self) -> int:
        """Return its bytes in the file; raises `CorruptModelError` for what no network is made of."""
        if self.dtype not in DTYPES:
            raise CorruptModelError(
                f"{self.path}: {self.name} holds {self.dtype}: quantised weights cannot be used"
            )
        return math.prod(self.file_shape) * DTYPES[self.dtype].itemsize

    @cached_property
    def shape(self) -> torch.Size:
        return self.of(torch.empty(self.file_shape, device="meta")).shape

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def T(self) -> LazyTensor:  # noqa: N802  torch's name
        return self._with_step(lambda tensor: tensor.T)

    def __getitem__(self, index: Any) -> LazyTensor:
        return self._with_step(lambda tensor: tensor[index])

    def contiguous(self) -> LazyTensor:
        return self._with_step(Tensor.contiguous)

    def clone(self) -> LazyTensor:
        return self  # nothing shares what was not read yet

    def detach(self) -> LazyTensor:
        return self

    def of(self, tensor: Tensor) -> Tensor:
        """Return what becomes of the tensor in the file."""
        return reduce(lambda changed, step: step(changed), self.steps, tensor)

    def _with_step(self, step: Step) -> LazyTensor:
        return replace(self, steps=(*self.steps, step))


def list_tensors(paths: Iterable[Path]) -> dict[str, LazyTensor]:
    """Return every tensor of these files; raises `CorruptModelError` where one is there twice."""
    tensors: dict[str, LazyTensor] = {}
    for path in paths:
        content = safetensors.read_header(path)
        start = content.bytes - max((entry.end for entry in content.tensors.values()), default=0)
        for name, entry in content.tensors.items():
            if name in tensors:
                raise CorruptModelError(f"{path}: {name} is in {tensors[name].path.name} as well")
            tensors[name] = LazyTensor(path, name, start + entry.begin, entry.dtype, torch.Size(entry.shape))
    return tensors


def read_into(slots: Mapping[str, Tensor], tensors: Mapping[str, LazyTensor]) -> None:
    """Read each tensor into the slot of its new name: cast, laid out and moved in one copy.

    Files are read, not mapped: pages come in one by one otherwise, at twice the time where all are
    needed, and a file may be changed while its weights are in use.
    """
    in_files = sorted(tensors.items(), key=lambda item: (str(item[1].path), item[1].begin))
    size = max((stored.bytes for stored in tensors.values()), default=0)
    buffer = torch.empty(size, dtype=torch.uint8, device="cpu")
    for path, group in groupby(in_files, key=lambda item: item[1].path):
        with raise_as_corrupt(path), path.open("rb", buffering=0) as file:
            for name, stored in group:
                slots[name].copy_(stored.of(_read_tensor(file, stored, buffer)))


def _read_tensor(file: FileIO, stored: LazyTensor, buffer: Tensor) -> Tensor:
    """Return the tensor as it is in the file, until the buffer is used again."""
    data = buffer[: stored.bytes]
    raw: Any = data.numpy()  # numpy's types do not say that it is a buffer
    remaining = memoryview(raw)
    file.seek(stored.begin)
    while remaining:
        count = file.readinto(remaining)  # at most 2 GiB at a time on Linux
        if not count:
            raise ValueError(f"{stored.name} is cut off")
        remaining = remaining[count:]
    return data.view(DTYPES[stored.dtype]).view(stored.file_shape)
