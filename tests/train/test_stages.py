"""The command's stages, from packages that are there to the folder that ships, in a few steps."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import fewstep
from fewstep.errors import RequestError
from fewstep.loading.parts import verify_checksums
from fewstep.train import add, base, lcm, lora, vae
from fewstep.train.bundled import data, feature_training, latents, stages, tasks, tiny_vae
from fewstep.train.bundled.data import Caption
from fewstep.train.loop import Progress

STEPS = 2
TRAINED = ("decoder", "base", "lcm", "lcm-lora", "add", "style", "features")


@pytest.fixture
def work(tmp_path: Path, captions: list[Caption], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A work folder with rendered sprites, and runs of two steps, nothing compiled."""
    folder = tmp_path / "data"
    folder.mkdir()
    for package in data.PACKAGES:
        (folder / package.tarball).write_bytes(b"tar")
    sprites = torch.randint(0, 255, (len(captions), 4, 128, 128), generator=torch.Generator().manual_seed(0))
    for end, style_word in (("", None), ("-fx", "fx")):
        save_file({"sprites": sprites.to(torch.uint8)}, folder / f"sprites{end}.safetensors")
        rows = [{**vars(c), "tags": list(c.tags), "style": style_word or c.style} for c in captions]
        (folder / f"captions{end}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for module in (vae, base, lcm, add, tiny_vae, feature_training):
        monkeypatch.setattr(module, "HYPER", replace(module.HYPER, steps=STEPS, batch=2, warmup=1))
    monkeypatch.setattr(lora, "STYLE_HYPER", replace(lora.STYLE_HYPER, steps=STEPS, batch=2, warmup=1))
    monkeypatch.setattr(lcm, "LORA_HYPER", replace(lcm.LORA_HYPER, steps=STEPS, batch=2, warmup=1))
    monkeypatch.setattr(latents, "VARIANTS", 1)
    monkeypatch.setattr(torch, "compile", _uncompiled)
    return tmp_path


def _uncompiled(module: Any) -> Any:
    return module


def counts(steps: Iterator[Progress]) -> list[int]:
    return [progress.step for progress in steps]


def test_every_stage_in_order_gives_a_family_that_draws(work: Path, captions: list[Caption]) -> None:
    assert counts(stages.run_stage("data", work)) == [1]
    assert counts(stages.run_stage("vae", work)) == [1, 2, len(captions), len(captions)]
    for name in TRAINED:
        assert counts(stages.run_stage(name, work)) == [1, 2]
    assert counts(stages.run_stage("export", work)) == [1]
    for name in ("vae", *TRAINED):
        assert counts(stages.run_stage(name, work)) == []  # finished
        assert len((work / name / "losses.csv").read_text().splitlines()) == STEPS
    _check_records(work)
    _check_export(work / "export", work)


def _check_records(work: Path) -> None:
    def read(name: str) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((work / name / "run.json").read_text())
        return content

    assert set(read("data")["packages"]) == {package.tarball for package in data.PACKAGES}
    assert read("data")["sprites"] == data.sha256(work / "data" / "sprites.safetensors")
    assert read("vae")["psnr_db"] > 0
    assert read("base")["hyper"]["steps"] == STEPS
    assert read("decoder")["psnr_db"] > 0
    assert all("torch" in read(name)["versions"] for name in ("data", "vae", *TRAINED))


def _check_export(folder: Path, work: Path) -> None:
    verify_checksums(folder)
    assert not [p for p in folder.rglob("*.json") if str(work) in p.read_text()]
    own = {"lcm": "unet_lcm", "turbo": "unet_turbo", "lcm-lora": "lcm_lora/pytorch_lora_weights.safetensors"}
    for mode in ("base", *own):
        given = str(folder / own[mode]) if mode in own else ""
        with fewstep.load(folder, mode, accelerator=given, device="cpu", precision="fp32") as engine:
            style_file = folder / "style_fx" / "pytorch_lora_weights.safetensors"
            drawn = engine.generate("a red heart", 2, seed=0, loras=[(style_file, 0.8)])
            assert drawn[0].size == (128, 128)
    assert fewstep.generate("a heart", 1, "turbo", model=folder, accelerator=folder / "unet_turbo",
                            vae=folder / "vae_tiny", device="cpu")[0].size == (128, 128)  # fmt: skip


def test_an_unknown_stage_is_an_error_that_names_them(tmp_path: Path) -> None:
    with pytest.raises(
        RequestError, match="data, vae, decoder, base, lcm, lcm-lora, add, style, features, export"
    ):
        stages.run_stage("turbo", tmp_path)


@pytest.mark.parametrize("make", [tasks.base_task, tasks.vae_task])
def test_a_task_starts_the_same_each_time(work: Path, make: Callable[[Path], Any]) -> None:
    list(stages.run_stage("data", work))
    values = {"values": torch.zeros(8, 4, 16, 16), "backdrops": torch.zeros(8, dtype=torch.int64)}
    save_file(values | {"mean": torch.zeros(4), "std": torch.ones(4)}, work / "latents.safetensors")
    one, again = (next(iter(make(work).modules.values())) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), again.parameters(), strict=True))
