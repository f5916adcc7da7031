"""Model files by name: the catalog's table, licences, the hub's cache, and the command `fewstep models`.

No network: the cache is written here as huggingface_hub leaves it, and the hub's answers are played.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants
from PIL import Image

import fewstep
from fewstep import cli, modes
from fewstep.catalog import addons, assets, hub, licences, mode_weights
from fewstep.catalog.architectures import SDXL
from fewstep.catalog.assets import ASSETS
from fewstep.catalog.mode_weights import choose_weights
from fewstep.catalog.models import ALIASES, FP16_VAE, FP16_VAE_REVISION, describe_model
from fewstep.errors import ModelNotFoundError, RequestError
from fewstep.testing import fake
from tests.files.headers import PEFT, adapter, modules
from tests.files.headers import write as write_header

COMMIT, OTHER = 40 * "a", 40 * "b"
FILES = ("config.json", "diffusion_pytorch_model.safetensors")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def put(cache: Path, repo: str, names: Sequence[str], commit: str = COMMIT, ref: str = "main") -> Path:
    """A snapshot with these files, as a download leaves it."""
    top = cache / f"models--{repo.replace('/', '--')}"
    for name in names:
        path = top / "snapshots" / commit / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    (top / "refs").mkdir(exist_ok=True)
    (top / "refs" / ref).write_text(commit)
    return top / "snapshots" / commit


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch, cache: Path) -> dict[str, Any]:
    """A hub of one repository; `names` are its files, `asked` what was downloaded."""
    played: dict[str, Any] = {"names": [], "asked": []}

    def info(self: object, repo: str, revision: str | None = None) -> SimpleNamespace:
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in played["names"]])

    def download(repo: str, revision: str | None = None, allow_patterns: Sequence[str] = ()) -> str:
        played["asked"].append((repo, revision, list(allow_patterns)))
        return str(put(cache, repo, allow_patterns, revision or COMMIT))

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return played


# --- the table


def test_every_row_says_where_it_comes_from() -> None:
    for name, asset in ASSETS.items():
        assert asset.name == name
        assert asset.revision == "" or (len(asset.revision) == 40 and int(asset.revision, 16))
        assert all(file.endswith((".safetensors", ".json", "/*")) for file in asset.files)
        assert asset.terms.terms.endswith(".")
        assert asset.files or asset is assets.BASES[0]  # all of the bundled folder
        assert asset.repo or (asset.family, asset.licence) == ("tiny", "Apache-2.0")


def test_revisions_that_are_pinned() -> None:
    assert {name for name, asset in ASSETS.items() if asset.repo and not asset.revision} == {
        "lcm", "lcm-ssd-1b", "lcm-lora-ssd-1b", "tcd", "flash", "pcm-2", "pcm-4", "pcm-8", "pcm-16",
        "pcm-normal-4", "pcm-normal-8", "pcm-normal-16", "pcm-lcm", "canny", "depth", "union",
        "ip-adapter", "ip-adapter-plus", "ip-adapter-plus-face", "ip-adapter-bigg",
        "sd15", "sd-turbo", "lcm-sd15", "lcm-lora-sd15", "tcd-sd15", "tcd-sd21", "pcm-sd15-2",
        "pcm-sd15-4", "pcm-sd15-8", "pcm-sd15-16", "pcm-sd15-normal-4", "pcm-sd15-normal-8",
        "pcm-sd15-normal-16", "taesd",
    }  # fmt: skip
    assert ALIASES["sdxl"].revision == "462165984030d82259a11f4367a4eed129e94a7b"
    assert describe_model("stabilityai/sdxl-turbo").revision == "71153311d3dbb46851df1931d3ca6e939de83304"
    assert describe_model("owner/name").revision == ""
    assert (FP16_VAE, FP16_VAE_REVISION[:8]) == ("madebyollin/sdxl-vae-fp16-fix", "207b116d")


@pytest.mark.parametrize("mode", [mode for mode in modes.mode_names() if mode not in ("merge", "dmd2-1step")])
def test_all_weights_of_a_mode_have_a_name(mode: str) -> None:
    """And the licence of the mode."""
    for count in (None, *modes.find_recipe(mode).steps.only):
        for family, model in (("sdxl", "sdxl"), ("ssd-1b", "ssd-1b")):
            about, recipe = modes.choose_mode(model, mode, count)
            if family in recipe.weights:
                own = choose_weights(about, recipe, "")
                assert own is not None
                asset = assets.asset_for(own.source, own.file)
                assert asset is not None
                assert mode in asset.modes
                assert asset.family == family
                assert family == "ssd-1b" or asset.licence == recipe.licence
                assert not own.file or own.file in asset.files


# --- licences


def refused(model: str, mode: str, accelerator: str = "", others: Sequence[str] = ()) -> str:
    """What commercial=True says; "" is nothing."""
    about, recipe = modes.choose_mode(model, mode)
    try:
        used = mode_weights.licences_of_mode(about, recipe, choose_weights(about, recipe, accelerator))
        licences.check_commercial(used | {repr(other): "unknown" for other in others})
    except RequestError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("model", "mode"),
    [("tiny", "lcm"), ("tiny", "base"), ("tiny", "turbo"), ("tiny", "lcm-lora"), ("sdxl", "base"),
     ("sdxl", "lcm"), ("sdxl", "lcm-lora"), ("sdxl", "lightning"), ("sdxl", "tcd"), ("ssd-1b", "lcm-lora")],
)  # fmt: skip
def test_what_may_be_used_commercially(model: str, mode: str) -> None:
    assert refused(model, mode) == ""


@pytest.mark.parametrize(
    ("model", "mode", "says"),
    [
        ("sdxl", "turbo", "'stabilityai/sdxl-turbo' of mode='turbo' cannot be used: its licence is sai-nc"),
        ("sdxl", "dmd2", "its licence is cc-by-nc-4.0. With attribution, and not commercially"),
        ("sdxl", "flash", "its licence is cc-by-nc-nd-4.0"),
        ("sdxl", "hyper", "its licence is not known. No tag on the hub"),
        ("sdxl", "pcm", "its licence is not known"),
        ("owner/finetune", "lcm-lora", "model='owner/finetune' cannot be used: its licence is not known"),
    ],
)
def test_what_may_not(model: str, mode: str, says: str) -> None:
    said = refused(model, mode)
    assert said.startswith("commercial=True, but ")
    assert says in said
    assert "\n" not in said


def test_the_licence_of_the_weights_themselves_counts() -> None:
    """Not that of the mode's usual ones."""
    assert "'latent-consistency/lcm-ssd-1b' of mode='lcm' cannot be used" in refused("ssd-1b", "lcm")
    assert refused("sdxl", "lcm-lora", "latent-consistency/lcm-lora-sdxl") == ""
    assert "sai-nc-community" in refused("stabilityai/sdxl-turbo", "base")


def test_an_engine_stays_commercial(tmp_path: Path) -> None:
    style = write_header(tmp_path / "style.safetensors", adapter(modules("sdxl"), "unet.{}", 4, PEFT))
    picture = Image.new("RGB", (1024, 1024))
    with fake():
        orders: list[dict[str, Any]] = [{"loras": [style]}, {"control": [("owner/net", picture, 1.0)]}]
        for order in orders:
            fewstep.load("sdxl").generate("a fox", **order)
            engine = fewstep.load("sdxl", commercial=True)
            engine.generate("a fox")
            for call in (engine.generate, engine.stream):
                with pytest.raises(RequestError, match=r"commercial=True, but .* its licence is not known"):
                    call("a fox", **order)


def test_files_of_the_user_have_no_known_licence() -> None:
    assert "'owner/unet' of mode='lcm'" in refused("sdxl", "lcm", "owner/unet")
    assert "'style.safetensors' cannot be used" in refused("sdxl", "lcm", others=["style.safetensors"])


# --- the cache


def test_a_pinned_folder_is_taken_from_the_cache(cache: Path) -> None:
    """Without asking the network, which these tests do not have."""
    top = put(cache, "owner/name", FILES)
    assert hub.fetch_folder("owner/name", FILES, COMMIT) == top
    assert hub.fetch_file("owner/name", "config.json", COMMIT) == top / "config.json"
    assert hub.cached_file("owner/name", "config.json") == top / "config.json"
    assert hub.cached_file("owner/name", "other.json") is None
    assert hub.cached_file("./no id", "config.json") is None
    assert hub.revision_in_path(top / "config.json") == COMMIT
    assert hub.revision_in_path("models/snapshots/main") == ""


def test_the_catalogs_revision_is_the_default(cache: Path) -> None:
    asset = ASSETS["taesdxl"]
    put(cache, asset.repo, asset.files, OTHER)
    assert hub.cached_folder(asset.repo, asset.files) is None
    top = put(cache, asset.repo, asset.files, asset.revision)
    assert hub.cached_folder(asset.repo, asset.files) == top
    assert hub.fetch_folder(asset.repo, asset.files) == top


@pytest.mark.parametrize("lost", FILES)
def test_half_a_download_is_none(cache: Path, lost: str) -> None:
    put(cache, "owner/name", [name for name in (*FILES, "README.txt") if name != lost])
    assert hub.cached_folder("owner/name", ("config.json", "*.safetensors")) is None


def test_a_model_without_one_partss_weights_is_incomplete(cache: Path) -> None:
    names = [
        f"{part}/{file}"
        for part in (*SDXL.parts, "scheduler")
        for file in ("config.json", "model.safetensors")
    ]
    put(cache, "owner/name", [*names[:-1], "model_index.json"])
    assert hub.cached_folder("owner/name", assets.MODEL_FILES) is None
    put(cache, "owner/name", names)
    assert hub.cached_folder("owner/name", assets.MODEL_FILES) is not None


def test_local_ones_come_first(tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()
    assert hub.fetch_folder(str(tmp_path), FILES) == tmp_path
    assert hub.fetch_file(str(tmp_path), "config.json") == tmp_path / "config.json"
    with pytest.raises(ModelNotFoundError, match="is a file, where a folder is needed"):
        hub.fetch_folder(str(tmp_path / "config.json"), FILES)
    assert hub.fetch_file(str(tmp_path / "config.json"), "other.json") == tmp_path / "config.json"
    with pytest.raises(ModelNotFoundError, match=r"holds no other\.json"):
        hub.fetch_file(str(tmp_path), "other.json")


# --- the network


def test_fp16_is_preferred_where_there_is_one(online: dict[str, Any]) -> None:
    online["names"] = [
        "unet/config.json", "unet/diffusion_pytorch_model.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors", "unet/diffusion_pytorch_model.fp16.bin",
        "vae/config.json", "vae/diffusion_pytorch_model.safetensors", "vae/convert.py", "vae/model.onnx",
        "text_encoder/model-00001-of-00002.safetensors", "text_encoder/model.fp16-00001-of-00002.safetensors",
        "other/model.safetensors", "model_index.json",
    ]  # fmt: skip
    hub.fetch_folder("owner/name", assets.MODEL_FILES)
    assert online["asked"] == [
        (
            "owner/name",
            None,
            [
                "unet/config.json", "unet/diffusion_pytorch_model.fp16.safetensors", "vae/config.json",
                "vae/diffusion_pytorch_model.safetensors",
                "text_encoder/model.fp16-00001-of-00002.safetensors", "model_index.json",
            ],
        )
    ]  # fmt: skip


def test_a_file_is_downloaded_at_the_catalogs_revision(online: dict[str, Any]) -> None:
    asset = ASSETS["lightning-4"]
    online["names"] = [*asset.files, "sdxl_lightning_8step_unet.safetensors"]
    path = hub.fetch_file(asset.repo, asset.files[0])
    assert path.name == asset.files[0]
    assert hub.revision_in_path(path) == asset.revision
    assert online["asked"] == [(asset.repo, asset.revision, list(asset.files))]
    assert hub.fetch_file(asset.repo, asset.files[0]) == path
    assert len(online["asked"]) == 1  # once


def test_pickles_are_never_asked_for(online: dict[str, Any]) -> None:
    online["names"] = ["weights.bin", "config.json", "run.py"]
    with pytest.raises(ModelNotFoundError, match=r"has no weights.bin as safetensors"):
        hub.fetch_file("owner/name", "weights.bin")
    with pytest.raises(ModelNotFoundError, match=r"has no \*.bin, run.py as safetensors"):
        hub.fetch_folder("owner/name", ("*.bin", "run.py"))
    assert online["asked"] == []


@pytest.mark.parametrize(
    ("repo", "file", "says"),
    [
        (ASSETS["sdxl"].repo, "", "'stabilityai/stable-diffusion-xl-base-1.0' (6.9 GB) is not on this"),
        ("ByteDance/SDXL-Lightning", "sdxl_lightning_4step_lora.safetensors",
         "sdxl_lightning_4step_lora.safetensors of 'ByteDance/SDXL-Lightning' (394 MB)"),
        ("owner/name", "", "'owner/name' is not on this machine"),
    ],
)  # fmt: skip
def test_offline_says_what_to_type(
    repo: str, file: str, says: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    known = {
        "stabilityai/stable-diffusion-xl-base-1.0": "sdxl",
        "ByteDance/SDXL-Lightning": "lightning-lora-4",
    }
    with pytest.raises(ModelNotFoundError) as caught:
        hub.fetch_file(repo, file) if file else hub.fetch_folder(repo, assets.MODEL_FILES)
    said = str(caught.value)
    assert says in said
    assert "could not be downloaded (OfflineModeIsEnabled: " in said
    assert (f"type fewstep models pull {known.get(repo)}," in said) == (repo in known)
    assert said.endswith(", or give a local folder or file")
    assert "\n" not in said


def test_offline_the_newest_that_is_here_serves(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    top = put(cache, "owner/name", FILES)
    assert hub.fetch_folder("owner/name", FILES) == top
    assert hub.fetch_file("owner/name", FILES[0], "main") == top / FILES[0]


def test_whatever_the_network_does_is_one_line(cache: Path) -> None:
    """These tests have none: the socket itself is refused."""
    with pytest.raises(ModelNotFoundError) as caught:
        hub.fetch_file("owner/name", "model.safetensors")
    assert str(caught.value).startswith("model.safetensors of 'owner/name' is not on this machine and could")
    assert "\n" not in str(caught.value)


# --- adapters


def test_an_adapters_repository_is_asked_once(
    online: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    online["names"] = ["README.md", "adapter_model.safetensors", "other.safetensors"]
    peft = addons.fetch_addon("owner/peft")
    online["names"] = ["style.safetensors", "style.bin"]
    style = addons.fetch_addon("owner/style")
    word = addons.fetch_addon("owner/word", "embeddings")
    assert [peft.name, style.name, word.name] == ["adapter_model.safetensors", *2 * ["style.safetensors"]]
    monkeypatch.undo()  # the hub is away
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(peft.parents[3]))
    assert addons.fetch_addon("owner/peft") == peft
    assert addons.fetch_addon("owner/style") == style
    assert addons.fetch_addon("owner/word", "embeddings") == word


def test_one_of_several_that_is_here_by_chance_is_not_meant(online: dict[str, Any], cache: Path) -> None:
    put(cache, "ByteDance/SDXL-Lightning", ASSETS["lightning-lora-4"].files, ASSETS["lightning-4"].revision)
    online["names"] = [*ASSETS["lightning-lora-4"].files, *ASSETS["lightning-lora-8"].files]
    with pytest.raises(ModelNotFoundError, match="or several: download the file that is meant"):
        addons.fetch_addon("ByteDance/SDXL-Lightning")


class ConnectError(Exception):
    """httpx's, which is no OSError."""


@pytest.mark.parametrize("name", ["loras", "embeddings"])
def test_without_a_network_an_adapter_is_missed_in_one_line(
    name: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def away(self: object, repo: str, revision: str | None = None) -> None:
        asked.append(repo)
        raise ConnectError("no route to host")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", away)
    with pytest.raises(ModelNotFoundError) as caught:
        addons.fetch_addon("owner/name", name)
    said = str(caught.value)
    assert "could not be downloaded (ConnectError: no route to host): check the name and the network" in said
    assert "\n" not in said
    assert "lora" not in said
    assert asked == ["owner/name"]


# --- the command


def test_models_are_listed(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(cache, ASSETS["taesdxl"].repo, FILES, ASSETS["taesdxl"].revision)
    assert cli.main(["models"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert set(lines) >= set(ASSETS)
    for name, words in {
        "tiny": "47 MB  bundled          Apache-2.0",
        "sdxl": "6.9 GB  hub              openrail++",
        "lcm": "5.1 GB  hub, not pinned  openrail++",
        "taesdxl": "10 MB  here             MIT",
        "vae-tiny": "B  bundled          Apache-2.0",
        "fx": "B  bundled          Apache-2.0",
        "dmd2": "394 MB  hub              cc-by-nc-4.0",
    }.items():
        assert words in lines[name]
    assert lines["MIT:"] == "MIT: Free to use, also commercially."


def test_one_model_in_full(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models", "turbo", "lcm"]) == 0
    turbo, lcm = capsys.readouterr().out.split("\n\n")
    assert turbo.splitlines()[0] == "turbo"
    for words in (
        "stabilityai/sdxl-turbo on the hub",
        "71153311d3dbb46851df1931d3ca6e939de83304",
        "forbidden",
        "stability.ai/license",
        "no: type fewstep models pull turbo",
        "7.7 GB on a GPU",
    ):
        assert words in turbo  # fmt: skip
    assert "not known: the newest is taken" in lcm


def test_models_as_json(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models", "--json"]) == 0
    listed = {one["name"]: one for one in json.loads(capsys.readouterr().out)}
    assert [*listed] == [*ASSETS]
    assert listed["sdxl"] == {
        "name": "sdxl", "title": "Stable Diffusion XL base 1.0", "kind": "base",
        "repo": "stabilityai/stable-diffusion-xl-base-1.0", "files": list(assets.MODEL_FILES),
        "licence": "openrail++", "revision": "462165984030d82259a11f4367a4eed129e94a7b",
        "bytes": 6_940_000_000, "memory": 8.1, "size": 1024, "modes": ["base"], "family": "sdxl",
        "terms": licences.LICENCES["openrail++"].terms, "commercial": True, "path": "",
    }  # fmt: skip


def test_pull(online: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    online["names"] = FILES
    assert cli.main(["models", "pull", "taesdxl", "vae-fp16", "tiny", "fx"]) == 0
    out, err = capsys.readouterr()
    assert [repo for repo, _, _ in online["asked"]] == [
        "madebyollin/taesdxl",
        "madebyollin/sdxl-vae-fp16-fix",
    ]
    assert [Path(line).is_dir() for line in out.splitlines()] == [True, True, True, True]
    assert err.splitlines()[0] == "taesdxl: 10 MB; MIT: Free to use, also commercially."
