"""Pickles, whatever they are called: refused by name and by their first bytes, and never unpickled."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from fewstep.errors import CorruptModelError
from fewstep.files.safetensors import read_header
from fewstep.inspection import inspect
from tests.files.hostile import SOUND, refused

SUFFIXES = (".ckpt", ".pt", ".pth", ".bin", ".pkl", ".pt2", ".safetensors", ".sft")


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def pickles(canary: Path, folder: Path) -> dict[str, bytes]:
    """Protocols 0 to 5, and torch's two formats."""
    made = {f"protocol {n}": pickle.dumps({"state_dict": Touch(canary)}, protocol=n) for n in range(6)}
    for name, zipped in (("torch's zip", True), ("torch's old format", False)):
        torch.save({"state_dict": Touch(canary)}, folder / "t", _use_new_zipfile_serialization=zipped)
        made[name] = (folder / "t").read_bytes()
    return made


def test_no_pickle_is_unpickled(tmp_path: Path) -> None:
    """Six protocols under eight names are 48; torch's two formats under them 16 more."""
    canary, tried, turned_away = tmp_path / "canary", 0, 0
    for content in pickles(canary, tmp_path).values():
        for suffix in SUFFIXES:
            path = tmp_path / f"model{suffix}"
            path.write_bytes(content)
            for look in (read_header, inspect):
                with pytest.raises(CorruptModelError, match=r"model\.\w+.*safetensors") as caught:
                    look(path)
                assert "\n" not in str(caught.value)
            tried += 1
            turned_away += 1
    assert (tried, turned_away, canary.exists()) == (64, 64, False)


def test_the_canary_would_have_sung(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    for content in list(pickles(canary, tmp_path).values())[:6]:
        pickle.loads(content)
        canary.rmdir()
    torch.load(tmp_path / "t", weights_only=False)
    assert canary.exists()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_pickle_by_name_is_not_even_opened(suffix: str, tmp_path: Path) -> None:
    """A sound file under a pickle's name is refused as well; under any other it is read."""
    path = tmp_path / f"model{suffix.upper()}"
    path.write_bytes(SOUND)
    assert (refused(path) == "") == (suffix in (".safetensors", ".sft"))
