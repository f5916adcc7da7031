"""Damaged folders: `check` says which file is wrong, in a `ModelError` of one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fewstep import CorruptModelError, ModelNotFoundError
from fewstep.checking import check

# File, what it is changed to say, and what is told.
DAMAGED: dict[str, tuple[str, dict[str, Any], str]] = {
    "a library without a class": ("model_index.json", {"unet": ["diffusers"]}, "has unet=['diffusers']"),
    "an empty part": ("model_index.json", {"vae": []}, "has vae=[]: it should be a library and a class"),
    "a class that is no name": ("model_index.json", {"vae": ["diffusers", {"a": 1}]}, "has vae="),
    "a padding without content": (
        "tokenizer_2/tokenizer_config.json", {"pad_token": {"a": 1}}, "should be text"
    ),
    "a padding that is a number": ("tokenizer_2/tokenizer_config.json", {"pad_token": 7}, "has pad_token=7"),
    "a scale that is text": ("vae/config.json", {"scaling_factor": "x"}, "scaling_factor='x'"),
    "a scale of nothing": ("vae/config.json", {"scaling_factor": None}, "scaling_factor=None"),
    "widths that are none": (
        "vae/config.json", {"block_out_channels": 7, "scaling_factor": 0.5}, "cannot be read"
    ),
    "a side that is text": ("unet/config.json", {"sample_size": "abc"}, "sample_size='abc'"),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_folder_is_told(copy: Path, what: str) -> None:
    name, changes, told = DAMAGED[what]
    path = copy / name
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**content, **changes}))
    with pytest.raises(CorruptModelError) as refused:
        check(copy, "turbo", steps=4)
    assert told in str(refused.value)
    assert copy.name in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("path", ["~nouser-of-this-name/x", "nowhere", "\0"])
def test_no_folder_is_said_so(path: str) -> None:
    with pytest.raises(ModelNotFoundError, match="not a diffusers folder here"):
        check(path)
