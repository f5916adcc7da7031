"""The bundled weights: every flipped bit and every missing byte is found before they are used."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from fewstep.catalog.models import TINY
from fewstep.errors import CorruptModelError
from fewstep.loading.parts import verify_checksums

FLIPS, CUTS = 256, 64


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(TINY, tmp_path_factory.mktemp("bundled") / "tiny"))


def listed(folder: Path) -> list[Path]:
    return [folder / line.split("  ", 1)[1] for line in (folder / "SHA256SUMS").read_text().splitlines()]


def found(folder: Path, path: Path) -> bool:
    """Does the check name this file?"""
    with pytest.raises(CorruptModelError, match="damaged") as refused:
        verify_checksums(folder)
    return str(path) in str(refused.value)


def test_every_weight_is_listed() -> None:
    assert {path for path in TINY.rglob("*") if path.suffix == ".safetensors"} <= set(listed(TINY))
    verify_checksums(TINY)


def test_flipped_bits_are_found(copy: Path) -> None:
    chance, tried, caught = random.Random(5), 0, 0
    while tried < FLIPS:
        path = chance.choice(listed(copy))
        place, bit = chance.randrange(path.stat().st_size), 1 << chance.randrange(8)
        with path.open("r+b") as file:
            file.seek(place)
            before = file.read(1)
            file.seek(place)
            file.write(bytes([before[0] ^ bit]))
            file.flush()
            tried, caught = tried + 1, caught + found(copy, path)
            file.seek(place)
            file.write(before)
    assert (tried, caught) == (FLIPS, FLIPS)
    verify_checksums(copy)


def test_truncated_files_are_found(copy: Path) -> None:
    chance, caught = random.Random(6), 0
    for _ in range(CUTS):
        path = chance.choice(listed(copy))
        whole = path.read_bytes()
        path.write_bytes(whole[: chance.randrange(len(whole))])
        caught += found(copy, path)
        path.write_bytes(whole)
    assert caught == CUTS
    verify_checksums(copy)
