"""Hostile model folders: each is refused in one line, and nothing of it is imported or run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import fewstep
from fewstep.catalog.models import describe_model
from fewstep.codec import with_tiles
from tests.conftest import SIDE

UNET = "unet/diffusion_pytorch_model.safetensors"
Spoil = Callable[[Path], Any]


def edit(name: str, **changes: Any) -> Spoil:
    """Change a JSON file."""
    return lambda root: (root / name).write_text(json.dumps(json.loads((root / name).read_text()) | changes))


def program(name: str) -> Spoil:
    """Code that would touch the canary, if anybody ran it."""
    return lambda root: (root / name).write_text(f"open({str(root / 'canary')!r}, 'w')\n")


def fifo(name: str) -> Spoil:
    def replace(root: Path) -> None:
        (root / name).unlink(missing_ok=True)
        os.mkfifo(root / name)

    return replace


def device(name: str) -> Spoil:
    """A file without end."""

    def replace(root: Path) -> None:
        (root / name).unlink()
        (root / name).symlink_to("/dev/zero")

    return replace


def shards(weight_map: dict[str, str], make: Spoil | None = None) -> Spoil:
    """The UNet's weights behind an index of the attacker's."""

    def write(root: Path) -> None:
        weights = load_file(root / UNET)
        (root / UNET).unlink()
        save_file(weights, root / "unet" / "diffusion_pytorch_model-00001-of-00001.safetensors")
        places = dict.fromkeys(weights, "diffusion_pytorch_model-00001-of-00001.safetensors") | weight_map
        index = {"metadata": {}, "weight_map": places}
        (root / f"{UNET}.index.json").write_text(json.dumps(index))
        if make is not None:
            make(root)

    return write


def pickled(name: str) -> Spoil:
    """Weights as a pickle that would touch the canary."""

    def write(root: Path) -> None:
        target = root / name
        for other in target.parent.glob("*.safetensors"):
            other.unlink()
        target.write_bytes(b"cbuiltins\nopen\n(V" + str(root / "canary").encode() + b"\nVw\ntR.")

    return write


def renumbered(by: int) -> Spoil:
    """A tokenizer whose words have other numbers."""

    def write(root: Path) -> None:
        path = root / "tokenizer" / "tokenizer.json"
        told = json.loads(path.read_text())
        told["model"]["vocab"] = {word: number + by for word, number in told["model"]["vocab"].items()}
        for token in told["added_tokens"]:
            token["id"] += by
        path.write_text(json.dumps(told))

    return write


def padded(name: str, size: int) -> Spoil:
    """A file with as many bytes of space behind its JSON."""
    return lambda root: (root / name).write_text((root / name).read_text() + " " * size)


def both(*spoils: Spoil) -> Spoil:
    return lambda root: [spoil(root) for spoil in spoils]


REPOS: dict[str, Spoil] = {
    "a list as _class_name": edit("model_index.json", _class_name=["pipeline", "Evil"]),
    "an object as _class_name": edit("model_index.json", _class_name={"evil": 1}),
    "a path as _class_name": edit("model_index.json", _class_name="../evil.Evil"),
    "a pipeline of its own": edit("model_index.json", custom_pipeline="evil/pipeline"),
    "auto_map in the index": edit("model_index.json", auto_map={"AutoModel": "evil.Evil"}),
    "a foreign library for the UNet": both(
        edit("model_index.json", unet=["evil", "Evil"]), program("evil.py")
    ),
    "a file beside it as library": both(
        edit("model_index.json", unet=["unet", "Evil"]), program("unet/evil.py")
    ),
    "subprocess as library": edit("model_index.json", unet=["subprocess", "Popen"]),
    "os as text encoder": edit("model_index.json", text_encoder=["os", "system"]),
    "another class of diffusers": edit("model_index.json", unet=["diffusers", "DiffusionPipeline"]),
    "another class of transformers": edit("model_index.json", text_encoder=["transformers", "AutoModel"]),
    "a tokenizer that fetches code": edit("model_index.json", tokenizer=["transformers", "AutoTokenizer"]),
    "a scheduler of another library": edit("model_index.json", scheduler=["evil", "EvilScheduler"]),
    "a scheduler with a path": edit("model_index.json", scheduler=["diffusers", "../EvilScheduler"]),
    "one part more": edit("model_index.json", evil=["evil", "Evil"]),
    "a safety checker": edit("model_index.json", safety_checker=["evil", "Evil"]),
    "three entries": edit("model_index.json", vae=["diffusers", "AutoencoderKL", "evil"]),
    "auto_map in the UNet": edit("unet/config.json", auto_map={"AutoModel": "evil.Evil"}),
    "auto_map in a tokenizer": edit(
        "tokenizer/tokenizer_config.json", auto_map={"AutoTokenizer": "evil.Evil"}
    ),
    "auto_map in a text encoder": edit("text_encoder/config.json", auto_map={"AutoModel": "evil.Evil"}),
    "another _class_name in the UNet": edit("unet/config.json", _class_name="DiffusionPipeline"),
    "a list as the UNet's _class_name": edit("unet/config.json", _class_name=["os", "system"]),
    "a program in a part": program("unet/modeling_evil.py"),
    "a program beside the tokenizer": program("tokenizer_2/tokenization_evil.py"),
    "a shard outside": shards({"conv_in.bias": "../../secret.safetensors"}),
    "an absolute shard": shards({"conv_in.bias": "/etc/passwd"}),
    "a FIFO as shard": shards(
        {"conv_in.bias": "pipe.safetensors"}, lambda root: os.mkfifo(root / "unet" / "pipe.safetensors")
    ),
    "a FIFO as weights": fifo(UNET),
    "a FIFO as configuration": fifo("vae/config.json"),
    "a FIFO as index": fifo("model_index.json"),
    "a FIFO as vocabulary": fifo("tokenizer/tokenizer.json"),
    "pickled weights": pickled("unet/diffusion_pytorch_model.bin"),
    "a pickle named safetensors": pickled(UNET),
    "a device as weights": device(UNET),
    "a configuration nested deep": lambda root: (root / "unet/config.json").write_text("[" * 100_000),
    "a text encoder of a foreign kernel": edit("text_encoder/config.json", attn_implementation="evil/kernel"),
    "endless layers": edit("unet/config.json", layers_per_block=10**9),
    "endless layers of text": edit("text_encoder_2/config.json", num_hidden_layers=10**9),
    "endless blocks": edit("unet/config.json", block_out_channels=[32] * 10**5),
    "not a number": edit("vae/config.json", norm_num_groups=float("nan")),
    "a huge architecture": edit("unet/config.json", block_out_channels=[320, 640, 10**7]),
    "a negative architecture": edit("unet/config.json", block_out_channels=[-320, 640, 1280]),
    "token numbers beyond the encoder": renumbered(100_000),
    "one token number beyond the encoder": renumbered(1),
    "a tokenizer of 17 MiB": padded("tokenizer/tokenizer.json", 17 * 2**20),
    "merges of 17 MiB": lambda root: (root / "tokenizer_2/merges.txt").write_bytes(bytes(17 * 2**20)),
    "layers in layers": edit("unet/config.json", layers_per_block=24, transformer_layers_per_block=64),
    "layers in layers on the way up": edit(
        "unet/config.json", layers_per_block=[24] * 3, reverse_transformer_layers_per_block=[[64] * 4] * 3
    ),
    "layers in levels of the VAE": edit(
        "vae/config.json", layers_per_block=64, block_out_channels=[32] * 8
    ),
    "a UNet for inpainting": edit("unet/config.json", in_channels=9),
    "a VAE of other latents": edit("vae/config.json", latent_channels=16),
    "a side that is text": edit("unet/config.json", sample_size="abc"),
    "a side that is a fraction": edit("unet/config.json", sample_size=12.5),
    "three sides": edit("unet/config.json", sample_size=[12, 12, 12]),
    "a side of 10^9": edit("unet/config.json", sample_size=10**9),
    "a side below 1": edit("unet/config.json", sample_size=-1),
    "a prediction that nobody has": edit(
        "scheduler/scheduler_config.json", prediction_type="flow_prediction"
    ),
    "a list of predictions": edit("scheduler/scheduler_config.json", prediction_type=["epsilon"]),
    "a scale that is text": edit("vae/config.json", scaling_factor="x"),
    "a scale of 0": edit("vae/config.json", scaling_factor=0),
    "no scale": edit("vae/config.json", scaling_factor=None),
    "a mean of three": edit("vae/config.json", latents_mean=[0.0, 0.0, 0.0]),
    "a deviation of 0": edit("vae/config.json", latents_std=[1.0, 1.0, 0.0, 1.0]),
    "a norm without channels": edit("vae/config.json", norm_num_groups=0),
}  # fmt: skip
# Loads in a process of its own, with bounded memory and time, where nothing may be imported from the folder.
LOADER = """
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_AS, (12 * 2**30,) * 2)
import fewstep, torch, diffusers.loaders.single_file_utils, transformers
from fewstep.engine import Engine
before = set(sys.modules)
for root in sys.argv[1:]:
    sys.path.insert(0, root)
    try:
        fewstep.load(root, "base", device="cpu", precision="fp32")
    except fewstep.FewstepError as error:
        print("refused", len(str(error).splitlines()), str(error)[:200])
    except BaseException as error:
        print("raised", type(error).__name__, str(error)[:200].replace(chr(10), " "))
    else:
        print("loaded")
print("imported", sorted(name for name in set(sys.modules) - before if "evil" in name))
"""


@pytest.fixture(scope="module")
def hostile(sdxl_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for what, spoil in REPOS.items():
        root = Path(shutil.copytree(sdxl_folder, tmp_path_factory.mktemp("hostile") / "repo"))
        spoil(root)
        made[what] = root
    return made


def test_hostile_folders_are_refused(hostile: dict[str, Path], sdxl_folder: Path) -> None:
    """And the folder that they were made from loads, in the same process after them."""
    said = subprocess.run(
        [sys.executable, "-c", LOADER, *map(str, hostile.values()), str(sdxl_folder)],
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    *answers, sound, imported = said.stdout.splitlines()
    told = dict(zip(hostile, answers, strict=True))
    executed = [what for what, root in hostile.items() if (root / "canary").exists()]
    refused = [what for what, answer in told.items() if answer.startswith("refused 1 ")]
    assert told.keys() == set(refused), (told, said.stderr[-2000:])
    assert (len(REPOS), len(refused), executed) == (len(told), len(told), [])
    assert len(told) >= 30
    assert (sound, imported) == ("loaded", "imported []")


# What some are told, so that none is refused for another's reason.
TOLD = {
    "token numbers beyond the encoder": "has a token of number 10",
    "one token number beyond the encoder": "and its text encoder knows",
    "a tokenizer of 17 MiB": "is larger than 16777216 bytes",
    "merges of 17 MiB": "is larger than 16777216 bytes",
    "layers in layers": "has 3 x 24 x 64 levels",
    "layers in layers on the way up": "has 3 x 24 x 64 levels",
    "layers in levels of the VAE": "has 8 x 64 x 1 levels",
    "a side that is text": "sample_size='abc': it should be a whole number",
    "a prediction that nobody has": "prediction_type='flow_prediction', none of epsilon, v_prediction",
    "a scale that is text": "scaling_factor='x': it should be a number above 0",
    "a mean of three": "it should be 4 numbers",
}  # fmt: skip


@pytest.mark.parametrize("what", TOLD)
def test_each_is_told_its_own_fault(hostile: dict[str, Path], what: str) -> None:
    start = time.perf_counter()
    with pytest.raises(fewstep.CorruptModelError) as refused:
        fewstep.load(hostile[what], "base", device="cpu", precision="fp32")
    assert TOLD[what] in str(refused.value)
    assert time.perf_counter() - start < 10  # the layers took 22 s, and 944 MiB


def test_two_sides_are_the_larger(copy: Path) -> None:
    """Legal in diffusers, for the UNet and for the VAE, whose tiles follow it."""
    edit("unet/config.json", sample_size=[8, 12])(copy)
    edit("vae/config.json", sample_size=[64, 96])(copy)
    assert describe_model(copy).size == SIDE
    with fewstep.load(copy, "base", device="cpu", precision="fp32") as engine:
        assert with_tiles(engine.parts.vae).tile_sample_min_size == 64


def test_a_canary_would_sing(tmp_path: Path) -> None:
    """The pickle of these tests does run, where somebody unpickles it."""
    (tmp_path / "unet").mkdir()
    pickled("unet/weights.bin")(tmp_path)
    code = "import pickle, sys; pickle.load(open(sys.argv[1], 'rb'))"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "unet/weights.bin")], check=False)
    assert (tmp_path / "canary").exists()
