"""Weights in shards: the index and its files must agree, and stay in their folder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fewstep.errors import CorruptModelError, ModelNotFoundError
from fewstep.files.safetensors import MAX_SHARDS, read_shard_index, weight_files
from fewstep.files.untrusted import MAX_HEADER
from tests.files import headers as made

STEM = "diffusion_pytorch_model"
FIRST, SECOND = (f"{STEM}-0000{i}-of-00002.safetensors" for i in (1, 2))
MAP = {"a": FIRST, "b": FIRST, "c": SECOND}


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """Two shards and a sound index, in a folder of their own."""
    folder = tmp_path / "unet"
    folder.mkdir()
    made.write(folder / FIRST, {"a": (2,), "b": (3,)})
    made.write(folder / SECOND, {"c": (4,)})
    made.write(tmp_path / "outside.safetensors", {"c": (4,)})
    return write(folder / f"{STEM}.safetensors.index.json", MAP)


def write(path: Path, places: object, **more: object) -> Path:
    path.write_text(json.dumps({"metadata": {"total_size": 18}, "weight_map": places, **more}))
    return path


def test_shards_are_listed(index: Path) -> None:
    assert read_shard_index(index) == [index.parent / FIRST, index.parent / SECOND]
    assert weight_files(index.parent) == read_shard_index(str(index))


def test_one_whole_file_goes_first(index: Path) -> None:
    whole = made.write(index.parent / f"{STEM}.safetensors", {"a": (1,)})
    assert weight_files(index.parent) == [whole]
    assert weight_files(index.parent.parent) == []


def test_shards_without_an_index(index: Path) -> None:
    index.unlink()
    assert weight_files(index.parent) == [index.parent / FIRST, index.parent / SECOND]


NAMES = {
    "the folder above": "../outside.safetensors",
    "through a folder": "sub/../../outside.safetensors",
    "a subfolder": "sub/m.safetensors",
    "from the root": "/etc/passwd.safetensors",
    "Windows' separator": "..\\outside.safetensors",
    "a drive": "C:m.safetensors",
    "another host": "\\\\host\\m.safetensors",
    "a stream": "m.safetensors:x.safetensors",
    "NUL": "m\0.safetensors",
    "a line's end": "m\n.safetensors",
    "half a surrogate pair": "m\ud800.safetensors",
    "the folder": ".",
    "two dots": "..",
    "nothing": "",
    "a pickle": "pytorch_model.bin",
    "another suffix": "m.safetensors.ckpt",
    "missing": "m.safetensors",
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_shards_stay_in_their_folder(name: str, index: Path) -> None:
    (index.parent / "pytorch_model.bin").touch()
    with pytest.raises(CorruptModelError, match="unet") as caught:
        read_shard_index(write(index, {**MAP, "c": name}))
    assert "\n" not in str(caught.value)


def fifo(folder: Path) -> None:
    (folder / SECOND).unlink()
    os.mkfifo(folder / SECOND)


def subfolder(folder: Path) -> None:
    (folder / SECOND).unlink()
    (folder / SECOND).mkdir()


def cut(folder: Path) -> None:
    os.truncate(folder / SECOND, (folder / SECOND).stat().st_size - 1)


FILES: dict[str, Callable[[Path], object]] = {
    "a FIFO": fifo,
    "a folder": subfolder,
    "a cut shard": cut,
    "a pickle in a shard's name": lambda folder: (folder / SECOND).write_bytes(b"\x80\x04]\x94."),
    "a shard that lacks a tensor": lambda folder: made.write(folder / FIRST, {"a": (2,)}),
    "a shard with one more": lambda folder: made.write(folder / SECOND, {"c": (4,), "d": (1,)}),
    "a shard with another's": lambda folder: made.write(folder / SECOND, {"c": (4,), "a": (2,)}),
}


@pytest.mark.parametrize("spoil", FILES.values(), ids=FILES)
def test_shards_are_what_the_index_says(spoil: Callable[[Path], object], index: Path) -> None:
    spoil(index.parent)
    with pytest.raises(CorruptModelError, match="unet"):
        read_shard_index(index)


MAPS: dict[str, Any] = {
    "a list": [FIRST],
    "a text": FIRST,
    "none": None,
    "empty": {},
    "numbers": {"a": 1},
    "lists": {"a": [FIRST]},
    "a tensor elsewhere": {"a": FIRST, "b": SECOND, "c": SECOND},
    "an unknown tensor": {**MAP, "d": FIRST},
    "a forgotten tensor": {"a": FIRST, "c": SECOND},
    "too many shards": {str(i): f"{i}.safetensors" for i in range(MAX_SHARDS + 1)},
}


@pytest.mark.parametrize("places", MAPS.values(), ids=MAPS)
def test_maps_that_are_none(places: Any, index: Path) -> None:
    with pytest.raises(CorruptModelError, match=r"index\.json"):
        read_shard_index(write(index, places))


CONTENTS: dict[str, Callable[[], bytes]] = {  # made by their tests: some are large
    "empty": lambda: b"",
    "no JSON": lambda: b"hello",
    "a list": lambda: b"[]",
    "no map": lambda: b"{}",
    "deep": lambda: b'{"weight_map":' + b"[" * 100_000,
    "twice": lambda: b'{"weight_map": {"a": "x", "a": "y"}}',
    "no UTF-8": lambda: b'{"weight_map": {"\xff": "x"}}',
    "UTF-16": lambda: json.dumps({"weight_map": MAP}).encode("utf-16"),
    "huge": lambda: b'{"weight_map": {}}'.ljust(MAX_HEADER + 1),
    "many": lambda: json.dumps({"weight_map": {str(i): FIRST for i in range(400_000)}}).encode(),
}


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_broken_indexes_are_named(content: Callable[[], bytes], index: Path) -> None:
    index.write_bytes(content())
    with pytest.raises(CorruptModelError, match=r"index\.json"):
        read_shard_index(index)


def test_an_index_that_is_missing(index: Path) -> None:
    with pytest.raises(ModelNotFoundError):
        read_shard_index(index.parent / "nowhere.safetensors.index.json")
