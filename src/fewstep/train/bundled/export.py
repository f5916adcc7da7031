"""Finished runs → the bundled folder: SDXL's own layout, fp16, with model card and sha256."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTokenizer

from fewstep.architectures.text import TextEncoder
from fewstep.loading.build import with_text_prefix
from fewstep.noise_process import BETA_END, BETA_START, TRAIN_STEPS
from fewstep.train.base import PROCESS
from fewstep.train.bundled.data import sha256

# trailing: with few steps the first one must see pure noise (arXiv:2305.08891).
SCHEDULER_CONFIG: dict[str, object] = {
    "_class_name": "EulerDiscreteScheduler",
    "num_train_timesteps": TRAIN_STEPS,
    "beta_schedule": "scaled_linear",
    "beta_start": BETA_START,
    "beta_end": BETA_END,
    "prediction_type": PROCESS.prediction,
    "timestep_spacing": "trailing",
}
UNET_FOLDERS = {"lcm": "unet_lcm", "add": "unet_turbo"}  # by stage: folders beside the base's
FEATURES = "features.safetensors"
LORA_FOLDERS = {"lcm-lora": "lcm_lora", "style": "style_fx"}
MODEL_INDEX: dict[str, object] = {
    "_class_name": "StableDiffusionXLPipeline",
    "force_zeros_for_empty_prompt": False,
    "add_watermarker": False,
    "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def write_base(
    folder: Path, unet: UNet2DConditionModel, vae: AutoencoderKL, text: TextEncoder, tokenizer: CLIPTokenizer
) -> None:
    """A folder that `StableDiffusionXLPipeline.from_pretrained` reads."""
    first, second = text.encoders
    networks: dict[str, Any] = {"unet": unet, "vae": vae, "text_encoder": first, "text_encoder_2": second}
    for name, network in networks.items():
        write_network(folder / name, network)
    for name in ("tokenizer", "tokenizer_2"):
        tokenizer.save_pretrained(folder / name)
        words = folder / name / "tokenizer.json"
        words.write_text(json.dumps(json.loads(words.read_text()), ensure_ascii=False, separators=(",", ":")))
    (folder / "scheduler").mkdir(exist_ok=True)
    write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER_CONFIG)
    write_json(folder / "model_index.json", MODEL_INDEX)


def write_network(folder: Path, network: Any) -> None:
    """One network in fp16, without traces of this machine."""
    copy.deepcopy(network).half().save_pretrained(folder, safe_serialization=True)
    if isinstance(network, CLIPTextModel):
        write_long_names(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config.pop("_name_or_path", None)
    # transformers would load in the file's precision, diffusers in fp32: say fp32 to both.
    config |= {"dtype": "float32"} if "dtype" in config else {}
    write_json(folder / "config.json", config)


def write_long_names(path: Path) -> None:
    """Name a text encoder's tensors as all readers know them: transformers 5 leaves "text_model." out."""
    save_file(with_text_prefix(load_file(path)), path, metadata={"format": "pt"})


def set_scaling(vae: AutoencoderKL, mean: list[float], std: list[float]) -> None:
    """Say in the VAE's own configuration how its latents are normalised."""
    vae.register_to_config(latents_mean=mean, latents_std=std, scaling_factor=1.0)


def write_features(work: Path, folder: Path) -> None:
    """The network that evaluation looks through, where it is trained."""
    path = work / "features" / FEATURES
    if path.exists():
        (folder / "features").mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / "features" / FEATURES)


def write_sums(folder: Path) -> None:
    """`SHA256SUMS` over every file that is loaded; `fewstep` checks them at load."""
    files = [folder / "model_index.json", *sorted(p for p in folder.glob("*/*") if p.is_file())]
    lines = (f"{sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in files)
    (folder / "SHA256SUMS").write_text("".join(lines))


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
