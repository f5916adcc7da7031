"""The bundled folder: diffusers reads it and draws what fewstep draws; damage is found."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from diffusers import LCMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from torch import nn
from transformers import CLIPTokenizer

import fewstep
from fewstep.errors import CorruptModelError
from fewstep.loading.parts import verify_checksums
from fewstep.train import base, lcm, vae
from fewstep.train.bundled import export

PROMPT, SEED = "an orange cat, 3d style", 11
MEAN, STD = [0.1, -0.2, 0.3, 0.0], [1.5, 0.7, 1.0, 1.2]  # of the latents
Pixels = npt.NDArray[np.float32]
PARTS = {
    "scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "unet_lcm", "vae",
    "model_index.json", "SHA256SUMS",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tokenizer: CLIPTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained networks, with weights changed until prompt and guidance show in the picture."""
    folder = tmp_path_factory.mktemp("export")
    torch.manual_seed(0)
    unet, autoencoder = base.build_unet(), vae.build_vae()
    scale(unet, 3.0, "attn2.to_out.0.weight", "conv_out.weight", "time_embedding.linear_2.weight")
    scale(autoencoder, 0.7, "decoder.conv_out.weight")
    student = lcm.student_of(unet, lcm.GUIDANCE_WIDTH)
    nn.init.normal_(student.get_parameter("time_embedding.cond_proj.weight"), std=0.2)
    export.set_scaling(autoencoder, MEAN, STD)
    export.write_base(folder, unet, autoencoder, base.build_text(tokenizer), tokenizer)
    export.write_network(folder / "unet_lcm", student)
    export.write_sums(folder)
    return folder


def scale(network: Any, gain: float, *ends: str) -> None:
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if name.endswith(ends):
                weight.mul_(gain)


def reference(folder: Path, mode: str, steps: int, guidance: float) -> Pixels:
    """diffusers' own pipeline, (H, W, 3) in [0, 1]."""
    extra = {"unet": UNet2DConditionModel.from_pretrained(folder / "unet_lcm")} if mode == "lcm" else {}
    pipe = StableDiffusionXLPipeline.from_pretrained(folder, dtype=torch.float32, **extra)
    if mode == "lcm":
        pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    picture: Pixels = pipe(
        PROMPT, num_inference_steps=steps, guidance_scale=guidance,
        generator=torch.Generator().manual_seed(SEED), output_type="np",
    ).images[0]  # fmt: skip
    return picture


def ours(folder: Path, mode: str, steps: int, guidance: float, prompt: str = PROMPT) -> tuple[Pixels, Pixels]:
    """fewstep's: before rounding to whole pixels, and the picture itself."""
    accelerator = folder / "unet_lcm" if mode == "lcm" else ""
    with fewstep.load(folder, mode, accelerator=accelerator, device="cpu", precision="fp32") as engine:
        *_, last = engine.stream(prompt, steps, guidance=guidance, seed=SEED)
        latents = last.latents * torch.tensor(STD).view(1, 4, 1, 1) + torch.tensor(MEAN).view(1, 4, 1, 1)
        with torch.no_grad():
            exact = engine.parts.vae.decode(latents).sample[0] * 0.5 + 0.5
        whole = engine.generate(prompt, steps, guidance=guidance, seed=SEED)[0]
    return exact.clamp(0, 1).permute(1, 2, 0).numpy(), np.asarray(whole, np.float32) / np.float32(255)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:diffusers")
@pytest.mark.parametrize(
    ("mode", "steps", "guidance"), [("base", 4, 3.0), ("base", 3, 1.0), ("lcm", 4, 4.0), ("lcm", 1, 6.0)]
)
def test_diffusers_draws_the_same(folder: Path, mode: str, steps: int, guidance: float) -> None:
    expected = reference(folder, mode, steps, guidance)
    exact, whole = ours(folder, mode, steps, guidance)
    assert expected.shape == (128, 128, 3)
    assert expected.std() > 0.05
    assert float(np.abs(exact - expected).max()) < 1e-3
    assert float(np.abs(whole - expected).max()) < 0.5 / 255 + 1e-3


@pytest.mark.parametrize("mode", ["base", "lcm"])
def test_guidance_and_prompt_show(folder: Path, mode: str) -> None:
    """Or the comparison above would prove little."""
    picture = ours(folder, mode, 2, 3.0)[0]
    for other in (ours(folder, mode, 2, 6.0)[0], ours(folder, mode, 2, 3.0, "a red heart")[0]):
        assert float(np.abs(other - picture).max()) > 0.01


def test_generate_takes_the_folder(folder: Path) -> None:
    picture = fewstep.generate(PROMPT, 2, model=folder, device="cpu", precision="fp32", seed=0)[0]
    assert picture.size == (128, 128)


def test_the_folder_is_whole(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == PARTS
    sums = dict(line.split("  ")[::-1] for line in (folder / "SHA256SUMS").read_text().splitlines())
    files = [p for p in folder.rglob("*") if p.is_file() and p.name != "SHA256SUMS"]
    assert sums == {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files
    }
    verify_checksums(folder)


def test_weights_are_half_precision_safetensors(folder: Path) -> None:
    from safetensors.torch import load_file

    weights = sorted(folder.rglob("*.safetensors"))
    assert [path.parent.name for path in weights] == [
        "text_encoder",
        "text_encoder_2",
        "unet",
        "unet_lcm",
        "vae",
    ]
    for path in weights:
        floating = [t for t in load_file(path).values() if t.is_floating_point()]
        assert {t.dtype for t in floating} == {torch.float16}
    assert sum(path.stat().st_size for path in weights) < 45 * 2**20  # the wheel's budget
    assert not [p for p in folder.rglob("*") if p.suffix in (".bin", ".pt", ".ckpt", ".pkl")]


def test_a_flipped_byte_is_found_in_any_file(folder: Path) -> None:
    for path in [p for p in folder.rglob("*") if p.is_file() and p.name != "SHA256SUMS"]:
        whole = path.read_bytes()
        middle = len(whole) // 2
        try:
            path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
            with pytest.raises(CorruptModelError, match=f"{path.parent.name}.{path.name} is damaged"):
                verify_checksums(folder)
        finally:
            path.write_bytes(whole)
    verify_checksums(folder)


def test_a_missing_file_is_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "SHA256SUMS").write_text((folder / "SHA256SUMS").read_text())
    with pytest.raises(CorruptModelError, match="is missing"):
        verify_checksums(tmp_path)


def test_no_trace_of_this_machine(folder: Path, tokenizer_folder: Path) -> None:
    traces = {str(folder), str(tokenizer_folder), str(Path.home()), str(Path.cwd()), str(folder.parent)} - {
        "/"
    }
    for path in (p for p in folder.rglob("*") if p.is_file()):
        content = path.read_bytes().decode("utf-8", "ignore")
        assert not [trace for trace in traces if trace in content], path
        if path.suffix == ".json":
            assert "name_or_path" not in content, path


def test_configs_say_what_is_needed(folder: Path) -> None:
    def read(name: str) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((folder / name).read_text())
        return content

    scheduler, autoencoder = read("scheduler/scheduler_config.json"), read("vae/config.json")
    assert (scheduler["prediction_type"], scheduler["timestep_spacing"]) == ("v_prediction", "trailing")
    assert (autoencoder["latents_mean"], autoencoder["latents_std"]) == (MEAN, STD)
    assert autoencoder["scaling_factor"] == 1.0
    assert read("unet_lcm/config.json")["time_cond_proj_dim"] == lcm.GUIDANCE_WIDTH
    assert read("unet/config.json")["time_cond_proj_dim"] is None
    assert read("model_index.json")["force_zeros_for_empty_prompt"] is False
