"""How large a model is, before any weight is read; and which VAE it gets in fp16."""

from __future__ import annotations

import json
import shutil
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file

import fewstep
from fewstep import modes
from fewstep.architectures.sdxl import ARCHITECTURE
from fewstep.catalog import vaes
from fewstep.catalog.models import FP16_VAE, FP16_VAE_REVISION, describe_model
from fewstep.devices import place
from fewstep.errors import CorruptModelError
from fewstep.files.untrusted import read_config
from fewstep.loading.footprint import measure_model
from fewstep.loading.parts import load_parts
from fewstep.request.schema import EngineKey
from tests.devices.machines import TINY, gpu, machine

UNET = "unet/diffusion_pytorch_model.safetensors"


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub's."""
    folder = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    return folder


@pytest.fixture
def fixed(hub: Path, sdxl_folder: Path) -> Path:
    """A corrected VAE in that cache: the test model's own, painted black."""
    repo = hub / f"models--{FP16_VAE.replace('/', '--')}"
    snapshot = Path(shutil.copytree(sdxl_folder / "vae", repo / "snapshots" / FP16_VAE_REVISION))
    weights = load_file(snapshot / "diffusion_pytorch_model.safetensors")
    black = {name: tensor * (not name.startswith("decoder.conv_out")) for name, tensor in weights.items()}
    save_file(black, snapshot / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    edit(snapshot / "config.json", force_upcast=False)
    return snapshot


@pytest.fixture
def like_sdxl(sdxl_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test model's VAE passes for SDXL's."""
    config = json.loads((sdxl_folder / "vae" / "config.json").read_text())
    monkeypatch.setattr(vaes, "SDXL_VAE", {key: config[key] for key in vaes.SDXL_VAE})


def test_the_bundled_model() -> None:
    assert measure_model(describe_model("tiny")) == TINY


def test_a_folder_is_counted(sdxl_folder: Path) -> None:
    need = measure_model(describe_model(str(sdxl_folder)))
    with fewstep.load(sdxl_folder, "base", device="cpu", precision="fp32") as engine:
        parts = engine.parts
        counted = [
            sum(p.numel() for p in m.parameters()) for m in (parts.unet, parts.vae, *parts.text.encoders)
        ]
    assert [need.unet, need.vae, need.text] == [*counted[:2], sum(counted[2:])]
    assert (need.side, need.vae_fp16_safe) == (96, False)


@pytest.mark.parametrize("name", ["sdxl", "ssd-1b", "somebody/finetune"])
@pytest.mark.usefixtures("hub")
def test_what_is_not_here_is_known(name: str) -> None:
    need = measure_model(describe_model(name))
    assert (need.unet, need.text, need.vae) == ARCHITECTURE.sizes["ssd-1b" if name == "ssd-1b" else "sdxl"]
    assert (need.side, need.vae_fp16_safe) == (1024, False)


def test_shards_are_added_up_and_variants_are_not(copy: Path) -> None:
    before = measure_model(describe_model(str(copy)))
    tensors = load_file(copy / UNET)
    names = sorted(tensors)
    (copy / UNET).unlink()
    stem = "diffusion_pytorch_model"
    for index, part in enumerate((names[::2], names[1::2]), start=1):
        save_file({n: tensors[n] for n in part}, copy / "unet" / f"{stem}-0000{index}-of-00002.safetensors")
    for variant in (f"{stem}.fp16.safetensors", f"{stem}.non_ema.safetensors", "other.safetensors"):
        save_file(tensors, copy / "unet" / variant)
    assert measure_model(describe_model(str(copy))) == before


def test_missing_weights_count_nothing(copy: Path) -> None:
    (copy / UNET).unlink()
    assert measure_model(describe_model(str(copy))).unet == 0


def header(content: bytes) -> bytes:
    return struct.pack("<Q", len(content)) + content


BROKEN: dict[str, bytes] = {
    "empty": b"",
    "a huge header": struct.pack("<Q", 2**60) + b"{}",
    "cut off": struct.pack("<Q", 1000) + b'{"a": {"shape": [1',
    "no JSON": header(b"hello"),
    "a list": header(b"[1, 2]"),
    "no shape": header(b'{"a": {}}'),
    "odd shapes": header(b'{"a": {"shape": ["x"]}}'),
    "a shape that is none": header(b'{"a": {"shape": 7}}'),
    "a tensor that is none": header(b'{"a": 7}'),
    "deep": header(b"[" * 100_000),
    "no text": header(b"\xff\xfe"),
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_broken_headers_are_named(content: bytes, copy: Path) -> None:
    (copy / UNET).write_bytes(content)
    with pytest.raises(CorruptModelError, match=r"unet.*safetensors"):
        measure_model(describe_model(str(copy)))


# --- the VAE in fp16


@pytest.mark.parametrize(
    ("config", "safe"),
    [
        ({"_class_name": "AutoencoderKL"}, False),
        ({"_class_name": "AutoencoderKL", "force_upcast": True}, False),
        ({"_class_name": "AutoencoderKL", "force_upcast": False}, True),
        ({"_class_name": "AutoencoderTiny"}, True),
    ],
)
def test_what_is_safe_in_fp16(config: dict[str, Any], safe: bool) -> None:
    assert vaes.fp16_safe(config) == safe


def instead(root: Path, dtype: torch.dtype = torch.float16) -> Path | None:
    """The VAE that takes the place of a folder's own."""
    return vaes.replacement_vae(
        read_config(root / "vae" / "config.json"), dtype == torch.float16, describe_model(root)
    )


@pytest.mark.usefixtures("like_sdxl")
def test_the_corrected_vae_serves_fp16_alone(fixed: Path, sdxl_folder: Path) -> None:
    dtypes = (torch.float16, torch.bfloat16, torch.float32)
    assert [instead(sdxl_folder, dtype) for dtype in dtypes] == [fixed, None, None]
    assert measure_model(describe_model(str(sdxl_folder))).vae_fp16_safe


@pytest.mark.usefixtures("fixed")
def test_other_latents_keep_their_vae(sdxl_folder: Path) -> None:
    """The test model's VAE is not SDXL's."""
    assert instead(sdxl_folder) is None
    assert not measure_model(describe_model(str(sdxl_folder))).vae_fp16_safe


@pytest.mark.usefixtures("like_sdxl", "fixed")
def test_a_vae_that_is_safe_is_kept(copy: Path) -> None:
    edit(copy / "vae" / "config.json", force_upcast=False)
    assert instead(copy) is None


@pytest.mark.usefixtures("like_sdxl", "hub")
def test_it_is_never_fetched(sdxl_folder: Path) -> None:
    assert instead(sdxl_folder) is None


@pytest.mark.usefixtures("like_sdxl")
def test_half_a_download_does_not_count(fixed: Path, sdxl_folder: Path) -> None:
    (fixed / "diffusion_pytorch_model.safetensors").unlink()
    assert instead(sdxl_folder) is None


@pytest.mark.usefixtures("like_sdxl", "fixed")
@pytest.mark.parametrize(("dtype", "black"), [(torch.float16, True), (torch.bfloat16, False)])
def test_it_is_what_is_loaded(dtype: torch.dtype, black: bool, sdxl_folder: Path) -> None:
    """And each part has its own dtype."""
    about, recipe = describe_model(str(sdxl_folder)), modes.find_recipe("base")
    placement = replace(
        place(machine(gpu("T4", 14.5, (7, 5))), TINY), device=torch.device("cpu"), vae_dtype=dtype
    )
    parts = load_parts(about, recipe, EngineKey.of("base", model=str(sdxl_folder)), placement)
    assert parts.vae.dtype == dtype
    assert parts.unet.dtype == parts.text.encoders[0].dtype == torch.float16
    assert bool((parts.vae.decoder.conv_out.weight == 0).all()) == black
