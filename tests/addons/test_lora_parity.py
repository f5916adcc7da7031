"""Pictures with LoRAs against diffusers' `load_lora_weights` and `set_adapters`, in every layout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor

from fewstep import Engine
from tests.addons import loras
from tests.test_parity import FEW, TOLERANCE, ours, theirs

Load = Callable[..., Engine]
WEIGHTS = [0.5, 1.0, -0.7]
TURBO, LCM = FEW["turbo-4"], FEW["lora"]
LAYOUTS = ["diffusers", "diffusers with alpha", "kohya", "kohya, original names"]
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning:diffusers",
    "ignore:Already found a `peft_config`",
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning",  # PEFT asks transformers for it
)


@pytest.fixture(scope="module")
def written(sdxl_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], Path]:
    """`written(layout, seed)`: a LoRA for all three networks."""
    folder, known = tmp_path_factory.mktemp("loras"), dict[tuple[str, int], Path]()

    def write(layout: str, seed: int) -> Path:
        where = folder / f"{layout}-{seed}"
        if (layout, seed) not in known:
            where.mkdir()
            if layout.startswith("diffusers"):
                said = layout.endswith("alpha")
                known[layout, seed] = loras.by_diffusers(sdxl_folder, where, seed, said=said)
            else:
                original = layout.endswith("names")
                states = loras.states(sdxl_folder, seed)
                if not original:  # in these names diffusers loses the layer: it cuts numbers off `emb` ones
                    states["unet"] = {k: v for k, v in states["unet"].items() if "add_embedding" not in k}
                known[layout, seed] = loras.by_kohya(states, where / "a.safetensors", original=original)
        return known[layout, seed]

    return write


def pipeline(folder: Path, files: Sequence[Path]) -> Any:
    """diffusers', with these loaded as "0", "1" …"""
    pipe = StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)
    for number, path in enumerate(files):
        pipe.load_lora_weights(path.parent, weight_name=path.name, adapter_name=str(number))
    return pipe


def difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_alone(layout: str, sdxl_folder: Path, written: Callable[..., Path], engine: Load) -> None:
    path = written(layout, 11)
    pipe = pipeline(sdxl_folder, [path])
    bare, _ = ours(engine("turbo"), TURBO)
    for weight in WEIGHTS:
        pipe.set_adapters(["0"], [weight])
        reference, _ = theirs(pipe, TURBO)
        pictures, _ = ours(engine("turbo"), TURBO, loras=[(path, weight)])
        assert difference(pictures, reference) < TOLERANCE
        assert difference(pictures, bare) > 100 * TOLERANCE


@pytest.mark.parametrize("weights", [(0.5, 1.0), (1.0, -0.7), (0.3, 0.3)])
def test_two_together(
    weights: tuple[float, float], sdxl_folder: Path, written: Callable[..., Path], engine: Load
) -> None:
    files = [written("kohya, original names", 11), written("diffusers with alpha", 12)]
    pipe = pipeline(sdxl_folder, files)
    pipe.set_adapters(["0", "1"], list(weights))
    reference, _ = theirs(pipe, TURBO)
    pictures, _ = ours(engine("turbo"), TURBO, loras=[*zip(files, weights, strict=True)])
    assert difference(pictures, reference) < TOLERANCE


def test_beside_the_accelerator(
    sdxl_folder: Path, lora_file: Path, written: Callable[..., Path], engine: Load
) -> None:
    """LCM-LoRA with a style has the weights [1.0, 0.8], of its model card, where none is given."""
    style = written("kohya", 11)
    pipe = pipeline(sdxl_folder, [lora_file, style])
    pipe.set_adapters(["0", "1"], [1.0, 0.8])
    reference, _ = theirs(pipe, LCM)
    for given in (style, (style, 0.8)):
        pictures, _ = ours(engine("lcm-lora"), LCM, loras=[given])
        assert difference(pictures, reference) < TOLERANCE


@pytest.mark.parametrize("scaling", ["alpha", "rsLoRA", "own alphas"])
@pytest.mark.parametrize("network", ["unet", "text_encoder_2"])
def test_pefts_own(network: str, scaling: str, sdxl_folder: Path, tmp_path: Path, engine: Load) -> None:
    """`save_pretrained` of one network, whose alpha is in adapter_config.json."""
    layers = ("attn2.to_k", "conv1") if network == "unet" else ("0.mlp.fc1", "out_proj")
    more: Any = {
        "alpha": {},
        "rsLoRA": {"use_rslora": True},
        "own alphas": {"alpha_pattern": dict.fromkeys(layers, 9.0)},
    }[scaling]
    path, model = loras.by_peft(sdxl_folder, tmp_path, 13, network, **more)
    for module in model.modules():
        if hasattr(module, "set_scale"):
            module.set_scale("default", 0.6)
    merged = {network: model.merge_and_unload()}
    pipe = StableDiffusionXLPipeline.from_pretrained(sdxl_folder, **merged, add_watermarker=False)
    reference, _ = theirs(pipe, TURBO)
    bare, _ = ours(engine("turbo"), TURBO)
    for given in (path, tmp_path):  # the file, or the folder
        pictures, _ = ours(engine("turbo"), TURBO, loras=[(given, 0.6)])
        assert difference(pictures, reference) < TOLERANCE
        assert difference(pictures, bare) > 100 * TOLERANCE


def test_every_layer_is_changed(sdxl_folder: Path, written: Callable[..., Path], engine: Load) -> None:
    """As many weights change as the file has layers, and no other."""
    path = written("kohya, original names", 11)
    parts = engine("turbo").parts
    networks = (parts.unet, *parts.text.encoders)
    engine("turbo").generate("a fox", 1, seed=1)
    before = [{k: v.clone() for k, v in network.state_dict().items()} for network in networks]
    engine("turbo").generate("a fox", 1, seed=1, loras=[path])
    changed = [
        sum(not torch.equal(now, then[name]) for name, now in network.state_dict().items())
        for network, then in zip(networks, before, strict=True)
    ]
    layers = [len(state) // 2 for state in loras.states(sdxl_folder, 11).values()]
    assert changed == layers
