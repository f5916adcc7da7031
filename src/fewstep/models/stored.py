"""Tensors that are still in their files: names and shapes now, numbers when they are needed.

Converters between layouts rename, cut and transpose; done on `Stored` tensors, that costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import CorruptModelError
from fewstep.models import header
from fewstep.models.catalog import reading

ALIGNED = 64  # bytes, as torch's own memory: kernels round otherwise where a weight begins elsewhere
MAPPED = 256 * 2**20  # bytes of a file in memory beside what was cast from them


Step = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Stored:
    """One tensor of a file, and what is to be done to it once it is read.

    As much of a tensor as diffusers' converters look at.
    """

    path: Path
    name: str  # in the file
    begin: int  # where in the file
    whole: torch.Size  # in the file
    steps: tuple[Step, ...] = ()

    @cached_property
    def shape(self) -> torch.Size:
        return self.of(torch.empty(self.whole, device="meta")).shape

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def T(self) -> Stored:  # noqa: N802  torch's name
        return self._then(lambda tensor: tensor.T)

    def __getitem__(self, index: Any) -> Stored:
        return self._then(lambda tensor: tensor[index])

    def contiguous(self) -> Stored:
        return self._then(Tensor.contiguous)

    def clone(self) -> Stored:
        return self  # nothing shares what was not read yet

    def detach(self) -> Stored:
        return self

    def of(self, tensor: Tensor) -> Tensor:
        """What becomes of the tensor in the file."""
        return reduce(lambda made, step: step(made), self.steps, tensor)

    def _then(self, step: Step) -> Stored:
        return replace(self, steps=(*self.steps, step))


def listed(paths: Iterable[Path]) -> dict[str, Stored]:
    """Every tensor of these files; `CorruptModelError` where one is there twice."""
    found: dict[str, Stored] = {}
    for path in paths:
        for name, entry in header.read(path).tensors.items():
            if name in found:
                raise CorruptModelError(f"{path}: {name} is in {found[name].path.name} as well")
            found[name] = Stored(path, name, entry.begin, torch.Size(entry.shape))
    return found


def read(
    wanted: Mapping[str, Stored], dtype: torch.dtype, device: torch.device
) -> Iterator[tuple[str, Tensor]]:
    """Each tensor by its new name, cast once.

    What needs neither cast nor copy stays mapped to its file; beside the rest no more than `MAPPED`
    bytes of a file are in memory at a time.
    """
    from safetensors import safe_open

    # Backwards in each file, so that `pop` goes forwards.
    ordered = sorted(wanted.items(), key=lambda item: (str(item[1].path), -item[1].begin))
    for path, group in groupby(ordered, key=lambda item: item[1].path):
        rest = list(group)
        while rest:
            copied = 0
            with reading(path), safe_open(path, framework="pt") as file:
                while rest and copied < MAPPED:
                    name, stored = rest.pop()
                    tensor = file.get_tensor(stored.name)
                    made = _ready(stored, tensor, dtype, device)
                    copied += tensor.nbytes if made.data_ptr() != tensor.data_ptr() else 0
                    yield name, made


def _ready(stored: Stored, tensor: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor of a file as a network's weight."""
    if not tensor.is_floating_point():
        raise ValueError(f"{stored.name} holds {tensor.dtype}: quantised weights cannot be used")
    made = stored.of(tensor).to(device=device, dtype=dtype)
    return made.clone() if made.data_ptr() % ALIGNED else made
