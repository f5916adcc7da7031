"""Hostile headers: refused, in one line and at once; mutated ones are read as safetensors reads them."""

from __future__ import annotations

import json
import os
import random
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from fewstep.files.identify import identify
from fewstep.files.safetensors import read_header
from fewstep.files.untrusted import MAX_HEADER
from tests.files.headers import packed
from tests.files.hostile import HOSTILE, SOUND, TOLD, refused


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_headers(case: str, tmp_path: Path) -> None:
    for content in HOSTILE[case]:
        path = tmp_path / "m.safetensors"
        path.write_bytes(content)
        said = refused(path)
        assert said, content[:200]
        assert TOLD.get(case, "") in said


def test_there_are_classes_enough() -> None:
    assert len(HOSTILE) >= 24
    assert all(HOSTILE.values())


def make_socket(path: Path) -> None:
    os.chdir(path.parent)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)


PLACES: dict[str, Callable[[Path], object]] = {
    "a folder": os.mkdir,
    "a FIFO": os.mkfifo,
    "a socket": make_socket,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a terminal": lambda path: path.symlink_to("/dev/tty"),
    "a circle of links": lambda path: path.symlink_to(path.name),
}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_what_is_no_file_never_blocks(
    place: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    place(tmp_path / "m.safetensors")
    assert refused(tmp_path / "m.safetensors") != ""


def test_a_fifo_put_there_at_the_last_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look and the opening."""
    path = tmp_path / "m.safetensors"
    path.write_bytes(SOUND)
    looked = path.stat()
    path.unlink()
    os.mkfifo(path)
    monkeypatch.setattr(Path, "stat", lambda *_, **__: looked)
    assert refused(path) != ""


# --- ten thousand mutations

MUTATED = 10_000


def base(rng: random.Random) -> dict[str, Any]:
    """A small sound header: whole weights, or a LoRA with its alpha."""
    names = rng.choice(
        (("conv_in.weight", "conv_in.bias"), ("lora_unet_a.lora_down.weight", "lora_unet_a.alpha"))
    )
    return {
        "__metadata__": {"format": "pt", "ss_network_alpha": "8"},
        names[0]: {"dtype": "F16", "shape": [3, 2], "data_offsets": [0, 12]},
        names[1]: {"dtype": "F32", "shape": [], "data_offsets": [12, 16]},
        "empty": {"dtype": "U8", "shape": [0, 4], "data_offsets": [16, 16]},
    }


def flipped(raw: bytearray, rng: random.Random) -> bytes:
    for _ in range(rng.randint(1, 4)):
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    return bytes(raw)


def inserted(raw: bytearray, rng: random.Random) -> bytes:
    at = rng.randrange(len(raw))
    raw[at:at] = rng.choice(
        (rng.randbytes(rng.randint(1, 9)), b"[" * 50, b'"', b"{", b",", b"\\", b"0", b"\0", b"e9")
    )
    return bytes(raw)


def deleted(raw: bytearray, rng: random.Random) -> bytes:
    at = rng.randrange(len(raw))
    del raw[at : at + rng.randint(1, 9)]
    return bytes(raw)


def relengthened(raw: bytearray, rng: random.Random) -> bytes:
    lengths = (
        0,
        1,
        len(raw) - 9,
        len(raw),
        MAX_HEADER,
        MAX_HEADER + 1,
        2**32,
        2**64 - 1,
        rng.getrandbits(64),
        rng.randrange(400),
    )
    raw[:8] = struct.pack("<Q", rng.choice(lengths))
    return bytes(raw)


VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1,
    2,
    12,
    16,
    2**31,
    2**63,
    2**64,
    10**30,
    1.5,
    1e308,
    "",
    "F32",
    "F8_E8M0",
    [],
    {},
    [0, 16],
    [[0]],
)


def rewritten(raw: bytearray, rng: random.Random) -> bytes:
    """Sound JSON with one value changed, taken out, or put in another's place; data as long as before."""
    content = base(rng)
    place: Any = content
    while True:
        key = rng.choice(list(place) if isinstance(place, dict) else range(len(place)))
        if not isinstance(place[key], dict | list) or not place[key] or rng.random() < 0.3:
            break
        place = place[key]
    action = rng.randrange(3)
    if action == 0:
        place[key] = rng.choice(VALUES)
    elif action == 1:
        del place[key]
    elif isinstance(place, dict):
        place[rng.choice(("__metadata__", "dtype", "shape", "data_offsets", "x"))] = place.pop(key)
    return packed(json.dumps(content)) + bytes(16)


MUTATIONS = (flipped, inserted, deleted, relengthened, rewritten)


def mutants() -> Iterator[bytes]:
    rng = random.Random(20)
    for i in range(MUTATED):
        start = bytearray(packed(json.dumps(base(rng))))
        mutated = MUTATIONS[i % len(MUTATIONS)](start, rng)
        yield mutated if MUTATIONS[i % len(MUTATIONS)] is rewritten else mutated + bytes(16)


def test_ten_thousand_mutations(tmp_path: Path) -> None:
    """Each is read or refused; what is read, safetensors reads too, and its kind can be told."""
    path = tmp_path / "m.safetensors"
    tried = accepted = 0
    with path.open("wb", buffering=0) as target:  # opened once: making files is what takes the time
        for content in mutants():
            target.truncate(len(content))
            os.pwrite(target.fileno(), content, 0)
            tried += 1
            if refused(path) == "":
                accepted += 1
                found = read_header(path)
                with safe_open(path, "pt") as file:
                    assert set(file.keys()) == found.tensors.keys(), content
                identify(found)
    assert tried == MUTATED
    assert 100 < accepted < MUTATED // 4  # both happen


def test_every_truncation_is_found(tmp_path: Path) -> None:
    content = packed(json.dumps(base(random.Random(0)))) + bytes(16)
    path = tmp_path / "m.safetensors"
    lengths = {len(content) * i // 64 for i in range(64)}
    found = 0
    for length in lengths:
        path.write_bytes(content[:length])
        found += refused(path) != ""
    assert (len(lengths), found) == (64, 64)
