"""Memory told beforehand: the meta device counts what a real pass holds, and SDXL's sizes are right."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fewstep.architectures.sdxl import ARCHITECTURE
from fewstep.catalog import hub
from fewstep.errors import RequestError
from fewstep.train import encode, estimate, meta_networks, run, stages
from fewstep.train.config import make_config
from fewstep.train.loop import Draw


@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_are_those_of_a_real_pass(tmp_path: Path, checkpointing: bool) -> None:
    """fp32 on the CPU, every tensor of loss and backward pass counted while it lives."""
    asked = make_config("lcm-lora", tmp_path, "elsewhere", bf16=False, batch=4, checkpointing=checkpointing)
    draft = meta_networks.build_meta_networks(asked)
    told = estimate.peak(asked, estimate._task_on_meta(asked, draft))

    parts = run._load_undistilled(asked, run._placement(asked, torch.device("cpu")))
    values = torch.zeros(4, 4, 16, 16).half()
    source = encode.EncodedPictures(values=values, captions=["a", "b", "c", "d"])
    task, *_ = stages.make_task(asked, parts, source)
    with estimate.Live() as live:
        loss = task.loss(Draw.of(0, 0))
        loss.backward()
    held = sum(p.grad.nbytes for _, p in task.modules["lora"].named_parameters() if p.grad is not None)
    assert told == pytest.approx(live.peak - held, rel=0.2)


def test_recomputing_spares(tmp_path: Path) -> None:
    def told(**given: Any) -> int:
        asked = make_config("lcm", tmp_path, "elsewhere", batch=4, **given)
        return estimate.peak(asked, estimate._task_on_meta(asked, meta_networks.build_meta_networks(asked)))

    assert told(checkpointing=True) < 0.7 * told() < told()


@pytest.mark.parametrize("stage", ["vae", "base", "add"])
def test_every_stage_is_told(tmp_path: Path, stage: str) -> None:
    found = estimate.estimate(make_config(stage, tmp_path, "elsewhere", batch=2))
    assert found.total > 0
    assert "GiB" in str(found)
    assert str(found).count("\n") == len(found.rows) + 1 + len(found.free)


def test_sdxl_is_known_without_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "cached_folder", lambda *_: None)
    draft = meta_networks.build_meta_networks(make_config("lcm", tmp_path, "elsewhere", model="sdxl"))
    assert (draft.unet, draft.text, draft.vae) == ARCHITECTURE.sizes["sdxl"]
    assert (draft.context, draft.pooled) == (2048, 1280)
    with pytest.raises(RequestError, match="fewstep models pull ssd-1b"):
        meta_networks.build_meta_networks(make_config("lcm", tmp_path, "elsewhere", model="ssd-1b"))


def test_it_says_whether_it_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, cpu = SimpleNamespace(device="cuda:0", free=2**30), SimpleNamespace(device="cpu", free=2**40)
    monkeypatch.setattr(estimate, "probe", lambda: SimpleNamespace(cuda=[gpu], mps=None, cpu=cpu))
    assert list(estimate._free_memory()) == [("cuda:0", 2**30)]
    made = estimate.Estimate(title="a", rows=(("weights", 2**31),), free=(("cuda:0", 2**30),))
    assert "free on cuda:0: too little" in str(made)
