"""A safetensors header as files have it: what is read of it, and what of the data."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from fewstep.catalog.models import TINY
from fewstep.errors import CorruptModelError, ModelNotFoundError
from fewstep.files.safetensors import DTYPE_BITS, read_header, read_scalars
from fewstep.files.untrusted import MAX_HEADER, MAX_TENSORS
from tests.files import headers as made


def test_it_is_what_safetensors_reads() -> None:
    for path in sorted(TINY.rglob("*.safetensors")):
        found = read_header(path)
        with safe_open(path, framework="pt") as file:
            theirs = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            assert {name: entry.shape for name, entry in found.tensors.items()} == theirs
            assert found.metadata == (file.metadata() or {})
        assert found.parameters == sum(entry.size for entry in found.tensors.values())
        assert found.bytes == path.stat().st_size


def test_the_data_is_where_it_says(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(0, 4), "c": torch.tensor(7.0)}
    save_file(tensors, tmp_path / "m.safetensors")
    found = read_header(str(tmp_path / "m.safetensors"))
    data = found.path.read_bytes()[-(6 + 1) * 4 :]
    for name, tensor in tensors.items():
        entry = found.tensors[name]
        assert data[entry.begin : entry.end] == tensor.numpy().tobytes()
        assert (entry.dtype, entry.size) == ("F32", tensor.numel())


def test_every_dtype_of_safetensors_is_known(tmp_path: Path) -> None:
    """`Dtype` in the installed reader names those, and no others."""
    path = tmp_path / "m.safetensors"
    start = made.header({"a": (8,)}, "C64")
    path.write_bytes(start.replace(b'"C64"', b'"???"') + bytes(64))
    with pytest.raises(Exception, match="unknown variant") as caught, safe_open(path, "pt"):
        pass
    assert set(re.findall(r"`(\w+)`", str(caught.value))) == DTYPE_BITS.keys()


@pytest.mark.parametrize("dtype", DTYPE_BITS)
def test_each_dtype_is_as_wide_as_safetensors_takes_it(dtype: str, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(made.header({"a": (4, 2)}, dtype) + bytes(DTYPE_BITS[dtype]))
    assert read_header(path).parameters == 8
    with safe_open(path, "pt") as file:
        assert list(file.keys()) == ["a"]


def test_the_largest_that_is_read(tmp_path: Path) -> None:
    names = {f"{i:0>100}": (0,) for i in range(MAX_TENSORS)}
    assert len(read_header(made.write(tmp_path / "m.safetensors", names)).tensors) == MAX_TENSORS
    (tmp_path / "m.safetensors").write_bytes(made.packed("{}".ljust(MAX_HEADER)))
    assert read_header(tmp_path / "m.safetensors").bytes == MAX_HEADER + 8


@pytest.mark.parametrize("length", [640, 640 + 256, 0x10280, 0x20480])
def test_a_length_that_looks_like_a_pickle_is_none(length: int, tmp_path: Path) -> None:
    """80 02 begins a pickle, and a header of 640 bytes."""
    path = tmp_path / "m.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b"{}".ljust(length))
    assert path.read_bytes()[0] == 0x80
    assert read_header(path).tensors == {}


@pytest.mark.parametrize("name", ["m.sft", "m", "m.SAFETENSORS", "a\nb.safetensors"])
def test_the_content_counts_not_the_name(name: str, tmp_path: Path) -> None:
    assert read_header(made.write(tmp_path / name, {"a": (2,)})).parameters == 2


def test_links_are_followed(tmp_path: Path) -> None:
    """As the hub's cache has them."""
    made.write(tmp_path / "blob", {"a": (2,)})
    (tmp_path / "m.safetensors").symlink_to("blob")
    assert read_header(tmp_path / "m.safetensors").parameters == 2


@pytest.mark.parametrize("name", ["nowhere", "nowhere/m", "a\0b", "link", "file/m"])
def test_what_is_missing_is_said(name: str, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nothing")
    (tmp_path / "file").touch()
    with pytest.raises(ModelNotFoundError, match="there is no such file"):
        read_header(tmp_path / name)


def test_a_name_of_two_lines_makes_one_line(tmp_path: Path) -> None:
    (tmp_path / "a\nb.safetensors").touch()
    with pytest.raises(CorruptModelError, match=r"a\\nb") as caught:
        read_header(tmp_path / "a\nb.safetensors")
    assert "\n" not in str(caught.value)


def test_a_home_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    made.write(tmp_path / "m.safetensors", {"a": (2,)})
    assert read_header("~/m.safetensors").path == tmp_path / "m.safetensors"


def test_scalars(tmp_path: Path) -> None:
    dtypes = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int32, torch.int64)
    tensors = {str(dtype): torch.tensor(-3, dtype=dtype) for dtype in dtypes}
    save_file({**tensors, "many": torch.ones(5), "odd": torch.tensor(True)}, tmp_path / "m.safetensors")
    found = read_header(tmp_path / "m.safetensors")
    assert read_scalars(found, found.tensors) == [-3.0] * len(dtypes)
    assert read_scalars(found, []) == []


def test_scalars_of_a_file_that_shrank(tmp_path: Path) -> None:
    found = read_header(made.write(tmp_path / "m.safetensors", {"a.alpha": ()}))
    with found.path.open("rb+") as file:
        file.truncate(found.bytes - 1)
    with pytest.raises(CorruptModelError, match="cut off"):
        read_scalars(found, ["a.alpha"])


def test_it_needs_nothing_heavy() -> None:
    code = (
        "import sys; from fewstep.files import config, identify, safetensors, tensor_names, untrusted; "
        "print({'torch', 'numpy', 'safetensors', 'diffusers'} & {*sys.modules})"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "set()\n"
