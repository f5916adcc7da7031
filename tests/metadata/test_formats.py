"""Pictures as PNG, JPEG and WebP: where they go, what stays of their story, and what may be left out."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from fewstep import Engine, OutputError, Result, metadata
from fewstep.files.checksums import UsedFile, combined_hash, sha256_of, tensors_hash, used_file
from fewstep.metadata import read_record
from fewstep.request.schema import fingerprint
from fewstep.testing import fake

Load = Callable[..., Engine]
ENDINGS = ("png", "jpg", "jpeg", "webp")


@pytest.fixture(scope="module")
def result(engine: Load) -> Result:
    made: Result = engine("turbo").generate("a red fox", 1, seed=7)
    return made


@pytest.fixture(scope="module")
def edited(engine: Load, drawing: Image.Image) -> Result:
    made: Result = engine("turbo").generate("a fox", 1, seed=1, image=drawing, mask=drawing.convert("L"))
    return made


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_ending_chooses_and_the_story_stays(ending: str, result: Result, tmp_path: Path) -> None:
    (path,) = result.save(tmp_path / f"fox.{ending}")
    record = read_record(path)
    assert record.facts == result.facts() == metadata.read(path)
    assert (record.changed, record.source_type) == ((), "trainedAlgorithmicMedia")
    with Image.open(path) as image:
        assert image.format == {"png": "PNG", "webp": "WEBP"}.get(ending, "JPEG")
        assert fingerprint(image.convert("RGB")) == result.facts()["pixels"] or ending != "png"


def test_an_open_file_and_bytes_have_the_same(result: Result) -> None:
    for name in ("png", "JPEG", "jpg", "webp"):
        file = io.BytesIO()
        assert result.save(file, format=name) == []
        assert file.getvalue() == result.bytes(0, name)
    assert result.bytes() == result.png() == result.bytes(0, "png")


def test_a_format_serves_any_ending(result: Result, tmp_path: Path) -> None:
    (path,) = result.save(tmp_path / "fox.picture", format="webp")
    with Image.open(path) as image:
        assert image.format == "WEBP"


def test_quality(result: Result) -> None:
    for name in ("jpeg", "webp"):
        rough, usual, fine = (len(result.bytes(0, name, quality=q)) for q in (20, None, 99))
        assert rough < usual < fine
    with Image.open(io.BytesIO(result.bytes(0, "webp", quality=100))) as image:
        assert image.convert("RGB").tobytes() == result[0].tobytes()
    for quality in (0, 101, 9.5, True, "best"):
        with pytest.raises(OutputError, match="give a whole number from 1 to 100"):
            result.bytes(0, "webp", quality=quality)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["png", "jpeg", "webp"])
def test_the_story_may_be_left_out_and_the_mark_stays(name: str, edited: Result, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(edited.bytes(0, name, metadata=False))
    record = read_record(path)
    assert (record.facts, record.embedded) == ({}, {})
    assert record.source_type == "compositeWithTrainedAlgorithmicMedia"
    assert b"fox" not in path.read_bytes()
    assert b"Steps" not in path.read_bytes().replace(b"\0", b"")


@pytest.mark.parametrize("name", ["png", "jpeg", "webp"])
def test_prompts_may_be_left_out(name: str, engine: Load, tmp_path: Path) -> None:
    engine_of_base = engine("base")
    first = engine_of_base.generate("a secret fox", 1, seed=1)
    made = engine_of_base.generate(
        "a secret <lora:secret:1>",
        1,
        seed=1,
        prompt_2="a secret owl",
        negative_prompt="a secret sun",
        image=first[0],
    )
    path = tmp_path / "x"
    path.write_bytes(made.bytes(0, name, prompts=False, embed=False))
    assert b"secret" not in path.read_bytes().replace(b"\0", b"")
    facts = metadata.read(path)
    assert {"prompts", "prompts_2", "negative_prompt", "warnings"}.isdisjoint(facts)
    assert (facts["steps"], facts["seeds"]) == (1, [1])
    assert read_record(path).changed == ()


@pytest.mark.parametrize("name", ["png", "jpeg", "webp"])
def test_pictures_from_memory_are_in_the_file(name: str, edited: Result, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(edited.bytes(0, name))
    given = read_record(path).embedded
    assert {option: len(files) for option, files in given.items()} == {"image": 1, "mask": 1}
    for option, pictures in edited.job.given_pictures().items():
        with Image.open(io.BytesIO(given[option][0])) as image:
            assert fingerprint(image) == fingerprint(pictures[0]) == edited.facts()["sources"][option][0]  # type: ignore[index]
    path.write_bytes(edited.bytes(0, name, embed=False))
    assert read_record(path).embedded == {}


def test_pictures_from_files_are_told_by_their_paths(
    engine: Load, drawing: Image.Image, tmp_path: Path
) -> None:
    drawing.save(tmp_path / "drawing.png")
    made = engine("turbo").generate("a fox", 1, image=tmp_path / "drawing.png", seed=1)
    assert made.facts()["pictures"] == {"image": [str(tmp_path / "drawing.png")]}
    path = made.save(tmp_path / "x.png")[0]
    assert read_record(path).embedded == {}
    made.save(path, overwrite=True, embed=True)
    assert [*read_record(path).embedded] == ["image"]


def test_large_pictures_from_memory_are_put_in_where_that_is_asked(
    edited: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fewstep.result.MAX_EMBEDDED", 200)
    assert read_given(edited.bytes(), tmp_path) == {}
    monkeypatch.setattr("fewstep.metadata.containers._PIECE", 1000)  # several segments of a JPEG
    for name in ("png", "jpeg", "webp"):
        given = read_given(edited.bytes(0, name, embed=True), tmp_path)["image"][0]
        with Image.open(io.BytesIO(given)) as image:
            assert image.tobytes() == edited.job.images[0].tobytes()


def read_given(content: bytes, folder: Path) -> Any:
    (folder / "given").write_bytes(content)
    return read_record(folder / "given").embedded


def test_names_sort() -> None:
    with fake():
        names = [path.name for path in _paths(12)]
    assert names == sorted(names)
    assert (names[0], names[-1]) == ("fox-00.png", "fox-11.png")
    assert [path.name for path in _paths(10)][-1] == "fox-9.png"


def _paths(count: int) -> list[Path]:
    return metadata.output_paths("fox.png", range(count), overwrite=True)


def test_a_file_that_was_changed_has_no_hash(tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    save_file({"a": torch.ones(3)}, path)
    file = used_file(path)
    assert len(file.sha256) == 64
    assert sha256_of(file) == file.sha256 != tensors_hash(file)
    save_file({"a": torch.zeros(3)}, path)
    assert (file.sha256, tensors_hash(file)) == ("", "")
    assert used_file(path).sha256 not in ("", sha256_of(file))


def test_hashes_of_the_hub_are_its_files_names(tmp_path: Path) -> None:
    blob = tmp_path / ("0123456789abcdef" * 4)
    blob.write_bytes(b"weights")
    link = tmp_path / "model.safetensors"
    link.symlink_to(blob)
    assert used_file(link).sha256 == blob.name


def test_hashes_of_large_files_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("fewstep.files.checksums.LARGE", 2)
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"weights")
    digest = used_file(path).sha256
    monkeypatch.setattr("fewstep.files.checksums._known", {})
    stat = path.stat()
    path.write_bytes(b"WEIGHTS")  # would not be seen by size and time alone
    stale = UsedFile(name="", path=path, bytes=stat.st_size, written=stat.st_mtime_ns)
    assert sha256_of(stale) == digest
    for broken in ("", "[5]", '[["a"]]', "{", "[" * 100_000):
        (tmp_path / "cache" / "hashes" / "sha256.json").write_text(broken)
        monkeypatch.setattr("fewstep.files.checksums._known", {})
        assert used_file(path).sha256 != digest


def test_one_hash_for_several_files() -> None:
    assert combined_hash({}) == combined_hash({"a": "1" * 64, "b": ""}) == ""
    assert combined_hash({"a": "1" * 64}) == "1" * 64
    assert combined_hash({"a": "1" * 64, "b": "2" * 64}) == combined_hash({"b": "2" * 64, "a": "1" * 64})


def test_facts_are_hashed_when_they_are_asked_for(engine: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fewstep.files.checksums._known", {})
    made = engine("turbo").generate("a red fox", 1, seed=7)
    from fewstep.files import checksums

    assert checksums._known == {}
    weights: Any = made.facts()["weights"]
    assert [entry["option"] for entry in weights] == ["model"]
    assert {"unet/config.json", "unet/diffusion_pytorch_model.safetensors"} <= weights[0]["files"].keys()
    assert all(len(digest) == 64 for digest in weights[0]["files"].values())
