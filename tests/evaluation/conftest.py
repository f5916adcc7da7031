"""Eight sprites of plain shapes in three styles, and a feature network that was never trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from fewstep.train.bundled import features
from fewstep.train.bundled.data import PICTURE_SIZE, Caption

LABELS = ("grinning face", "red heart", "orange cat", "apple")
STYLES = ("noto", "flat")


@pytest.fixture(scope="session")
def captions() -> list[Caption]:
    """Each name in each style."""
    return [
        Caption(label=label, style=style, tags=tuple(label.split()), hexcode=f"1f60{i}")
        for i, label in enumerate(LABELS)
        for style in STYLES
    ]


@pytest.fixture(scope="session")
def sprites(captions: list[Caption]) -> Tensor:
    """uint8 (8, 4, 128, 128), premultiplied: an opaque half, top or left, with a colour of its own."""
    generator = torch.Generator().manual_seed(0)
    made = torch.zeros(len(captions), 4, PICTURE_SIZE, PICTURE_SIZE)
    for i, sprite in enumerate(made):
        colour = torch.cat([torch.rand(3, generator=generator), torch.ones(1)]).view(4, 1, 1)
        half = sprite[:, : PICTURE_SIZE // 2] if i % 2 else sprite[..., : PICTURE_SIZE // 2]
        half[:] = 255 * colour
    return made.round().to(torch.uint8)


@pytest.fixture(scope="session")
def work(captions: list[Caption], sprites: Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder with its data and a feature network; tests put their own files in other folders."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "data").mkdir()
    save_file({"sprites": sprites}, folder / "data" / "sprites.safetensors")
    rows = [{**vars(caption), "tags": list(caption.tags)} for caption in captions]
    (folder / "data" / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    torch.manual_seed(0)
    features.write_features(features.FeatureNetwork(), network_file(folder))
    return folder


def network_file(work: Path) -> Path:
    """Where the fixture's feature network is."""
    return work / "features" / "features.safetensors"
