"""Weights on their way from files into networks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fewstep.errors import CorruptModelError
from fewstep.loading import build as rooms
from fewstep.loading.build import ALIGNMENT, allocate
from fewstep.loading.lazy_tensors import DTYPES, list_tensors, read_into

CPU = torch.device("cpu")
SHAPES = {
    "a": torch.Size([3, 5, 3, 3]),
    "b": torch.Size([7]),
    "c": torch.Size([2, 3]),
    "none": torch.Size([0]),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_file({name: torch.randn(shape) for name, shape in SHAPES.items()}, tmp_path / "x.safetensors")
    return tmp_path / "x.safetensors"


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_room_has_a_place_for_each(
    dtype: torch.dtype, layout: torch.memory_format, large: bool, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rooms, "HUGE_PAGES_FROM", 1 if large else 2**40)
    slots = allocate(SHAPES, dtype, CPU, layout)
    stored = list_tensors([file])
    read_into(slots, stored)
    for name, tensor in load_file(file).items():
        assert torch.equal(slots[name], tensor.to(dtype))
        assert slots[name].data_ptr() % ALIGNMENT == 0 or not slots[name].numel()
        assert tensor.ndim != 4 or slots[name].is_contiguous(memory_format=layout)


def test_what_is_done_on_names_is_done_on_numbers(file: Path) -> None:
    """As diffusers' converters do it: cut, transposed, squeezed."""
    stored, loaded = list_tensors([file]), load_file(file)
    made = {
        "rows": stored["c"][1:, :].clone().detach(),
        "turned": stored["c"].T.contiguous(),
        "flat": stored["a"][:, :, 0, 0],
    }
    assert {name: tuple(one.shape) for name, one in made.items()} == {
        "rows": (1, 3), "turned": (3, 2), "flat": (3, 5)
    }  # fmt: skip
    slots = {name: torch.zeros(one.shape) for name, one in made.items()}
    read_into(slots, made)
    assert torch.equal(slots["rows"], loaded["c"][1:])
    assert torch.equal(slots["turned"], loaded["c"].T)
    assert torch.equal(slots["flat"], loaded["a"][:, :, 0, 0])


@pytest.mark.parametrize("dtype", [*DTYPES.values()], ids=[*DTYPES])
def test_every_float_is_read(dtype: torch.dtype, tmp_path: Path) -> None:
    given = torch.tensor([0.5, -2.0, 448.0 if dtype == torch.float8_e4m3fn else 3.0]).to(dtype)
    save_file({"x": given}, tmp_path / "x.safetensors")
    slots = {"x": torch.zeros(3)}
    read_into(slots, list_tensors([tmp_path / "x.safetensors"]))
    assert torch.equal(slots["x"], given.float())


def test_whole_numbers_are_refused(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(3, dtype=torch.int8)}, tmp_path / "x.safetensors")
    with pytest.raises(CorruptModelError, match=r"x\.safetensors: x holds I8: quantised"):
        read_into({"x": torch.zeros(3)}, list_tensors([tmp_path / "x.safetensors"]))


def test_a_file_cut_off_meanwhile_is_named(file: Path) -> None:
    stored = list_tensors([file])
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(CorruptModelError, match="is cut off"):
        read_into(allocate(SHAPES, torch.float32, CPU, torch.contiguous_format), stored)


def test_a_name_in_two_files_is_refused(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "y.safetensors"
    other.write_bytes(file.read_bytes())
    with pytest.raises(CorruptModelError, match=r"y\.safetensors: \w+ is in x\.safetensors as well"):
        list_tensors([file, other])
