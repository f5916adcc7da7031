"""Where ControlNets and IP-Adapters come from, and what is refused: each a sentence, nothing executed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ControlNetModel
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from fewstep import CorruptModelError, Engine, FewstepError, ModelNotFoundError, RequestError
from fewstep.catalog import addons
from tests.addons.conftest import PLUS, SUMMARY

Load = Callable[..., Engine]
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def net(nets: tuple[Path, Path], tmp_path: Path) -> Path:
    """A ControlNet that a test may break."""
    return Path(shutil.copytree(nets[0], tmp_path / "net"))


@pytest.fixture
def adapter(adapters: Path, tmp_path: Path) -> Path:
    """IP-Adapters that a test may break."""
    return Path(shutil.copytree(adapters, tmp_path / "ip"))


def config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def changed(path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    save_file(change(load_file(path)), path)


def drawn(engine: Engine, what: str, source: Path | str, image: Image.Image) -> bytes:
    options: dict[str, Any] = {what: [(source, image, 0.7)]}
    return engine.generate("a red fox", 2, seed=7, **options)[0].tobytes()


def test_one_file_is_its_folder(engine: Load, net: Path, edges: Image.Image) -> None:
    loaded = engine("turbo")
    expected = drawn(loaded, "control", net, edges)
    alone = net.parent / "canny.safetensors"
    shutil.move(net / WEIGHTS, alone)
    assert drawn(loaded, "control", alone, edges) == expected


def test_weights_in_fp16_are_found_and_cast(engine: Load, net: Path, edges: Image.Image) -> None:
    changed(net / WEIGHTS, lambda all_: {name: tensor.half() for name, tensor in all_.items()})
    assert drawn(engine("turbo"), "control", net, edges) == drawn(engine("turbo"), "control", net, edges)
    made = engine("turbo")._loaded.addons._nets([str(net)])[str(net)]
    assert {weight.dtype for weight in made.parameters()} == {torch.float32}


def test_an_adapters_encoder_is_the_one_it_reads(
    engine: Load, adapter: Path, cats: Sequence[Image.Image]
) -> None:
    """Beside the file is ViT-bigG; the Plus model reads ViT-H, which lies in models."""
    loaded = engine("turbo")
    files = [str(adapter / "sdxl_models" / name) for name in (SUMMARY, PLUS)]
    made = loaded._loaded.addons._adapters(files)
    assert [made[file].encoder.config.hidden_size for file in files] == [48, 32]
    flat = adapter / "flat"  # both in one folder, as others publish it
    shutil.copytree(adapter / "models" / "image_encoder", flat / "image_encoder")
    shutil.copy(adapter / "sdxl_models" / PLUS, flat)
    expected = drawn(loaded, "reference", adapter / "sdxl_models" / PLUS, cats[0])
    assert drawn(loaded, "reference", flat, cats[0]) == expected


def test_known_names() -> None:
    assert addons.locate_controlnet("canny").root == "diffusers/controlnet-canny-sdxl-1.0"
    assert addons.locate_ip_adapter("ip-adapter").file == "sdxl_models/ip-adapter_sdxl_vit-h.safetensors"
    where = addons.locate_ip_adapter("h94/IP-Adapter/sdxl_models/ip-adapter_sdxl.safetensors")
    assert where == addons.AddonPlace(root="h94/IP-Adapter", file="sdxl_models/ip-adapter_sdxl.safetensors")
    assert addons.split_controlnet_view("union:depth") == ("union", "depth")
    assert addons.split_controlnet_view("C:/nets/canny") == ("C:/nets/canny", "")


CONTROL: dict[str, tuple[Callable[[Path], Path | str], type[FewstepError], str]] = {
    "no such thing": (lambda _net: "cany", ModelNotFoundError, "neither one of canny, depth, union"),
    "not on this machine": (lambda _net: "nobody/nothing", ModelNotFoundError, "not on this machine"),
    "another class": (
        lambda net: _with(net, _class_name="UNet2DConditionModel"), CorruptModelError, "holds a 'UNet2D"
    ),
    "made for SD 1.5": (
        lambda net: _with(net, cross_attention_dim=768, addition_embed_type=None), CorruptModelError,
        "was made for sd-1.x: it reads prompts of width 768, and this model's have 80",
    ),
    "another base": (
        lambda net: _with(net, block_out_channels=[32, 64, 128]), CorruptModelError,
        r"made for another base: its block_out_channels is \[32, 64, 128\]",
    ),
    "too many layers": (
        lambda net: _with(net, transformer_layers_per_block=10**9), CorruptModelError,
        "transformer_layers_per_block=1000000000",
    ),
    "layers in lists": (
        lambda net: _with(net, transformer_layers_per_block=[[10**6] * 3] * 3), CorruptModelError, "."
    ),
    "long lists": (
        lambda net: _with(net, conditioning_embedding_out_channels=[16] * 10**5), CorruptModelError, "."
    ),
    "not a number": (lambda net: _with(net, norm_eps=float("nan")), CorruptModelError, "."),
    "code of its own": (lambda net: _with(net, auto_map={"AutoModel": "x.Y"}), CorruptModelError, "auto_map"),
    "an unknown activation": (lambda net: _with(net, act_fn="os.system"), CorruptModelError, "is not one of"),
    "no weights": (lambda net: _without(net, WEIGHTS), CorruptModelError, "no weights|safetensors"),
    "no configuration": (lambda net: _without(net, "config.json"), CorruptModelError, "config.json"),
    "a pickle": (lambda net: _pickled(net / "net.bin"), CorruptModelError, "pickle"),
    "a pickle by another name": (lambda net: _pickled(net / "net.safetensors"), CorruptModelError, "pickle"),
    "a missing tensor": (
        lambda net: _changed(net, lambda t: {k: v for k, v in t.items() if k != "conv_in.bias"}),
        CorruptModelError, "lacks conv_in.bias",
    ),
    "a surplus tensor": (
        lambda net: _changed(net, lambda t: {**t, "extra": torch.zeros(1)}), CorruptModelError,
        "has extra, for",
    ),
    "a tensor of another shape": (
        lambda net: _changed(net, lambda t: {**t, "conv_in.bias": torch.zeros(7)}), CorruptModelError,
        r"conv_in.bias is \(7,\), and ControlNetModel needs \(32,\)",
    ),
    "a view of no union": (lambda net: f"{net}:depth", RequestError, "no union of ControlNets"),
}  # fmt: skip


def _with(folder: Path, **changes: Any) -> Path:
    config(folder, **changes)
    return folder


def _without(folder: Path, name: str) -> Path:
    (folder / name).unlink()
    return folder


def _changed(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Path:
    changed(folder / WEIGHTS, change)
    return folder


def _pickled(path: Path) -> Path:
    path.write_bytes(b"\x80\x04cposix\nsystem\n(S'touch executed'\ntR.")
    return path


@pytest.mark.parametrize("case", CONTROL)
def test_a_mistaken_control_is_refused(case: str, engine: Load, net: Path, edges: Image.Image) -> None:
    make, kind, said = CONTROL[case]
    with pytest.raises(kind, match=said) as caught:
        drawn(engine("turbo"), "control", make(net), edges)
    assert "\n" not in str(caught.value)


def test_a_union_must_be_told_what_it_sees(engine: Load, union: Path, edges: Image.Image) -> None:
    with pytest.raises(RequestError, match=r"what the picture shows, for example '.*:depth'; it may be pose"):
        drawn(engine("turbo"), "control", union, edges)
    with pytest.raises(RequestError, match="say what"):  # only the larger of the published ones has it
        drawn(engine("turbo"), "control", f"{union}:tile", edges)


def test_a_picture_of_another_shape_is_refused(engine: Load, net: Path, edges: Image.Image) -> None:
    with pytest.raises(RequestError, match="control is 96x48, which has another shape"):
        drawn(engine("turbo"), "control", net, edges.resize((96, 48)))


REFERENCE: dict[str, tuple[Callable[[Path], Path | str], type[FewstepError], str]] = {
    "no such thing": (lambda _root: "ip-adaptor", ModelNotFoundError, "neither one of ip-adapter, "),
    "a repository alone": (lambda _root: "h94/IP-Adapter", ModelNotFoundError, "owner/name/file.safetensors"),
    "several in a folder": (lambda root: root / "sdxl_models", CorruptModelError, "holds 2 "),
    "an empty folder": (lambda root: root / "models", CorruptModelError, "holds 0 "),
    "a pickle": (lambda root: _pickled(root / "ip-adapter_sdxl.bin"), CorruptModelError, "pickle"),
    "something else": (
        lambda root: _renamed(root, lambda _t: {"x.weight": torch.zeros(2, 2)}), CorruptModelError,
        "is no IP-Adapter",
    ),
    "FaceID": (
        lambda root: _renamed(
            root, lambda t: {**_attention(t), "image_proj.proj.0.weight": torch.zeros(2, 512),
                             "image_proj.norm.weight": torch.zeros(80)}
        ), CorruptModelError, "reads faces",
    ),
    "no image encoder": (
        lambda root: _bare(root), ModelNotFoundError, "needs a CLIP image encoder with projection_dim=40"
    ),
    "made for SD 1.5": (
        lambda root: _renamed(root, lambda t: {k: _sd15(k, v) for k, v in t.items()}), CorruptModelError,
        "was made for sd-1.x: its tokens have width 768, and this model reads 80",
    ),
    "another base": (
        lambda root: _renamed(root, lambda t: {k: v for k, v in t.items() if ".1.to" not in k}),
        CorruptModelError, "made for another base",
    ),
    "a damaged projection": (
        lambda root: _renamed(root, lambda t: {k: v for k, v in t.items() if k != "image_proj.norm.bias"}),
        CorruptModelError, "cannot be read",
    ),
    "an encoder of another kind": (
        lambda root: _encoder(root, model_type="siglip_vision_model"), CorruptModelError, "a CLIP is needed"
    ),
    "an encoder without end": (
        lambda root: _encoder(root, num_hidden_layers=10**9), CorruptModelError, "hidden_layers=1000000000"
    ),
    "an encoder of huge pictures": (
        lambda root: _encoder(root, image_size=131_072, patch_size=65_536), CorruptModelError,
        "image_size=131072 and patch_size=65536: it should have at most 1024 pixels",
    ),
    "an encoder of many patches": (
        lambda root: _encoder(root, image_size=1024, patch_size=1), CorruptModelError, "64 patches a side"
    ),
    "an encoder of no pictures": (
        lambda root: _encoder(root, image_size=0), CorruptModelError, "image_size=0 and"
    ),
    "an encoder with code": (
        lambda root: _encoder(root, auto_map={"AutoModel": "x.Y"}), CorruptModelError, "auto_map"
    ),
    "an encoder that does not fit": (
        lambda root: _encoder(root, intermediate_size=128), CorruptModelError, "WithProjection needs"
    ),
    "an encoder without weights": (
        lambda root: _weightless(root), CorruptModelError, "no weights"
    ),
}  # fmt: skip


def _renamed(root: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Path:
    path = root / "sdxl_models" / SUMMARY
    changed(path, change)
    return path


def _attention(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name.startswith("ip_adapter.")}


def _sd15(name: str, tensor: Tensor) -> Tensor:
    return torch.zeros(len(tensor), 768) if "_ip.weight" in name else tensor


def _bare(root: Path) -> Path:
    shutil.rmtree(root / "sdxl_models" / "image_encoder")
    return root / "sdxl_models" / SUMMARY


def _encoder(root: Path, **changes: Any) -> Path:
    config(root / "sdxl_models" / "image_encoder", **changes)
    return root / "sdxl_models" / SUMMARY


def _weightless(root: Path) -> Path:
    (root / "sdxl_models" / "image_encoder" / "model.safetensors").unlink()
    return root / "sdxl_models" / SUMMARY


@pytest.mark.parametrize("case", REFERENCE)
def test_a_mistaken_reference_is_refused(
    case: str, engine: Load, adapter: Path, cats: Sequence[Image.Image]
) -> None:
    make, kind, said = REFERENCE[case]
    with pytest.raises(kind, match=said) as caught:
        drawn(engine("turbo"), "reference", make(adapter), cats[0])
    assert "\n" not in str(caught.value)


def test_an_encoder_cannot_ask_for_kernels_of_the_hub(
    engine: Load, adapter: Path, cats: Sequence[Image.Image]
) -> None:
    """transformers would fetch and run the repository that "attn_implementation" names."""
    other = Path(shutil.copytree(adapter, adapter.parent / "kernels"))
    _encoder(other, attn_implementation="somebody/kernels")
    with pytest.raises(CorruptModelError, match="wants code of its own"):
        drawn(engine("turbo"), "reference", other / "sdxl_models" / SUMMARY, cats[0])


def test_what_was_refused_can_be_mended(engine: Load, net: Path, edges: Image.Image) -> None:
    """A failed load is not kept."""
    whole = (net / WEIGHTS).read_bytes()
    (net / WEIGHTS).write_bytes(whole[:-100])
    with pytest.raises(CorruptModelError):
        drawn(engine("turbo"), "control", net, edges)
    (net / WEIGHTS).write_bytes(whole)
    assert drawn(engine("turbo"), "control", net, edges)


def test_weights_that_change_on_disk_are_read_again(
    engine: Load, net: Path, adapter: Path, edges: Image.Image
) -> None:
    loaded = engine("turbo")
    file = adapter / "sdxl_models" / SUMMARY
    for what, source, path in (("control", net, net / WEIGHTS), ("reference", file, file)):
        before = drawn(loaded, what, source, edges)
        assert drawn(loaded, what, source, edges) == before
        changed(path, lambda state: {name: 3 * value for name, value in state.items()})
        assert drawn(loaded, what, source, edges) != before


def test_loading_draws_no_random_number(engine: Load, adapter: Path, net: Path) -> None:
    before = torch.get_rng_state()
    engine("turbo")._loaded.addons._nets([str(net)])
    engine("turbo")._loaded.addons._adapters([str(adapter / "sdxl_models" / PLUS)])
    assert torch.equal(torch.get_rng_state(), before)


def test_a_net_is_diffusers_own(engine: Load, net: Path) -> None:
    made, theirs = (
        engine("turbo")._loaded.addons._nets([str(net)])[str(net)],
        ControlNetModel.from_pretrained(net),
    )
    assert made.config.items() >= {k: v for k, v in theirs.config.items() if k[0] != "_"}.items()
    assert all(map(torch.equal, made.parameters(), theirs.parameters()))
