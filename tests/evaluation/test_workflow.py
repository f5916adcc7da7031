"""The workflow measured: drafts, the best of them, refined, beside the base model in all its steps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fewstep.evaluation import Way, measure_workflow, measures, workflow, workflow_table
from tests.evaluation.conftest import network_file


def test_each_way_has_a_row(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workflow, "REFERENCE", ("base", 1))
    (tmp_path / "data").symlink_to(work / "data")
    way = Way(prompts=2, drafts=2, repeats=2, refine=("base", 1), features=network_file(work))
    rows = measure_workflow(tmp_path, way)
    assert [row.way for row in rows] == [
        "base 1", "a draft, turbo 1", "best of 2 drafts, turbo 1",
        "best of 2 drafts, turbo 1, refined by base 1",
    ]  # fmt: skip
    for row in rows:
        assert 0 <= row.name_1 <= 1
        assert row.sharpness > 0
        assert 0 < row.milliseconds_low <= row.milliseconds <= row.milliseconds_high
    assert rows[2].milliseconds < rows[3].milliseconds
    table = workflow_table(rows).splitlines()
    assert len(table) == 7
    assert len({line.index("±") for line in table[1:5]}) == 1
    assert "threads" in table[6]


def test_sharpness_falls_with_blur_and_rises_with_edges() -> None:
    edge = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    edge[..., 16:] = 255
    blurred = torch.nn.functional.avg_pool2d(edge.float(), 5, stride=1).round().to(torch.uint8)
    flat = torch.full((1, 3, 32, 32), 99, dtype=torch.uint8)
    sharp, soft, none = (float(measures.sharpness(picture)) for picture in (edge, blurred, flat))
    assert sharp > 3 * soft > 0
    assert none == pytest.approx(0, abs=1e-9)
