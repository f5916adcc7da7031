"""Hostile prompts come back as they were from ours, and do no harm in other programs' readers."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from sd_parsers import ParserManager

from fewstep import metadata
from fewstep.metadata import Encoding, exif
from fewstep.metadata.containers import read_container
from fewstep.metadata.formats import Format
from fewstep.metadata.webui import read_parameters, write_parameters
from tests.metadata.hostile import LINE, TEXTS

FORMATS: tuple[Format, ...] = ("png", "jpeg", "webp")
FACTS: dict[str, Any] = {
    "prompts": ["a fox"], "negative_prompt": "", "steps": 4, "sampler": "lcm", "scheduler": "lcm",
    "guidance": 1.5, "seeds": [7], "width": 16, "height": 8, "mode": "lcm-lora", "strength": 1.0,
    "model": "models/dream: shaper, 8.safetensors", "loras": [["styles/ink wash.safetensors", -0.5]],
    "sources": {}, "warnings": [],
    "weights": [
        {"option": "model", "source": "models/dream: shaper, 8.safetensors",
         "files": {"dream: shaper, 8.safetensors": "0123456789" * 6 + "abcd"}},
        {"option": "accelerator", "source": "owner/lcm-lora", "weight": 1.0, "tensors": "c" * 64,
         "files": {"pytorch_lora_weights.safetensors": "b" * 64}},
        {"option": "loras", "source": "styles/ink wash.safetensors", "tensors": "fedcba9876543210" * 4,
         "files": {"ink wash.safetensors": "a" * 64}},
    ],
}  # fmt: skip
PICTURE = Image.linear_gradient("L").resize((16, 8)).convert("RGB")


def encode(facts: dict[str, Any], name: Format, **more: Any) -> bytes:
    return metadata.encode(PICTURE, facts, edited=False, encoding=Encoding(format=name, **more))


def save(folder: Path, content: bytes, name: str) -> Path:
    path = folder / f"x.{name}"
    path.write_bytes(content)
    return path


def test_there_are_thirty_texts() -> None:
    assert len(set(TEXTS)) >= 30


@pytest.mark.parametrize("name", FORMATS)
def test_ours_come_back_as_they_were(name: Format, tmp_path: Path) -> None:
    for text in TEXTS:
        facts = {**FACTS, "prompts": [text], "negative_prompt": text[:20_000]}
        path = save(tmp_path, encode(facts, name), name)
        assert metadata.read(path) == facts
        assert metadata.read_record(path).changed == ()


@pytest.mark.parametrize("name", FORMATS)
def test_theirs_read_the_settings_whatever_the_prompt_is(name: Format, tmp_path: Path) -> None:
    """sd-parsers, which stands for those who read by its rules."""
    for text in TEXTS:
        content = encode({**FACTS, "prompts": [text], "negative_prompt": text[:9000]}, name)
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            info = ParserManager().parse(image)
        assert info is not None, text[:80]
        (sampler,) = info.samplers
        assert sampler.name == "LCM"
        assert sampler.parameters == {
            "scheduler": "SGM Uniform", "steps": "4", "seed": "7", "cfg_scale": "1.5",
        }  # fmt: skip
        assert sampler.model is not None
        assert (sampler.model.name, sampler.model.hash) == ("dream_ shaper_ 8", "0123456789")
        assert info.metadata["Hashes"] == {
            "model": "0123456789", "lora:lcm-lora": "c" * 12, "lora:ink_wash": "fedcba987654",
        }  # fmt: skip
        assert len(sampler.negative_prompts) <= 1


def a1111(text: str) -> tuple[str, str, dict[str, str]]:
    """Prompt, negative prompt and pairs by AUTOMATIC1111's rules (users.md names their source)."""
    *lines, last = text.strip().split("\n")
    pairs = re.findall(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)', last)
    if len(pairs) < 3:
        lines, pairs = [*lines, last], []
    prompt, negative, done = list[str](), list[str](), False
    for line in map(str.strip, lines):
        if line.startswith("Negative prompt:"):
            done, line = True, line[16:].strip()
        (negative if done else prompt).append(line)
    return "\n".join(prompt), "\n".join(negative), dict(pairs)


def comfyui(text: str) -> tuple[str, str, dict[str, str]] | None:
    """The same by ComfyUI's: nothing where either of the two line beginnings is missing."""
    steps = text.rfind("\nSteps:")
    negative = text.rfind("\nNegative prompt:", 0, max(steps, 0) + 1)
    if steps < 0 or negative < 0:
        return None
    pairs = (pair.split(":", 1) for pair in text[steps + 1 :].split("\n")[0].split(", ") if ":" in pair)
    return (
        text[:negative].strip(), text[negative + 17 : steps].strip(),
        {key.strip().lower(): value.strip() for key, value in pairs},
    )  # fmt: skip


def civitai(text: str) -> dict[str, str]:
    """What Civitai links: a model with name and hash, LoRAs of its names and no negative weight."""
    pairs = a1111(text)[2]
    linked = {}
    if "Model" in pairs and "Model hash" in pairs:
        linked["model"] = pairs["Model hash"]
    hashes = json.loads(re.search(r"Hashes: (\{.*\})", text.split("\n")[-1])[1])  # type: ignore[index]
    for name, _ in re.findall(r"<lora:([a-zA-Z0-9_.-]+):([0-9.]+)>", text):
        if f"lora:{name}" in hashes:
            linked[name] = hashes[f"lora:{name}"]
    return linked


def test_rules_of_web_uis_comfyui_and_civitai() -> None:
    for text in TEXTS:
        short = text[:2000]
        written = write_parameters({**FACTS, "prompts": [short]}, "1.0")
        expected = " ".join(short.split())
        prompt, negative, pairs = a1111(written)
        assert (negative, pairs["Steps"], pairs["RNG"], pairs["Seed"]) == ("", "4", "CPU", "7")
        assert pairs["Lora hashes"] == '"lcm-lora: cccccccccccc, ink_wash: fedcba987654"'
        other = comfyui(written)
        assert other is not None
        assert (other[1], other[2]["steps"], other[2]["sampler"]) == ("", "4", "LCM")
        assert civitai(written) == {"model": "0123456789", "lcm-lora": "c" * 12}
        if not set(short) & set("\x00\x1b\x07\x7f\u2028\u2029\ufeff") and "Negative" not in short:
            for read in (prompt, other[0]):
                words = " ".join(read.split())
                assert words == f"{expected} <lora:lcm-lora:1> <lora:ink_wash:-0.5>".strip()


def test_a_negative_prompt_is_its_own_line() -> None:
    written = write_parameters({**FACTS, "prompts": ["a fox"], "negative_prompt": f"an owl\n{LINE}"}, "1.0")
    assert a1111(written)[1] == f"an owl\n{LINE}"
    assert a1111(written)[2]["Steps"] == "4"


def test_a_text_of_ours_is_read_as_the_web_uis_would() -> None:
    facts = read_parameters(write_parameters({**FACTS, "negative_prompt": "an owl"}, "1.0"))
    assert facts["prompts"] == ["a fox"]
    assert facts["negative_prompt"] == "an owl"
    assert facts["loras"] == [["lcm-lora", 1.0], ["ink_wash", -0.5]]
    assert (facts["steps"], facts["seeds"], facts["guidance"]) == (4, [7], 1.5)
    assert (facts["width"], facts["height"], facts["sampler"]) == (16, 8, "lcm")
    assert (facts["mode"], facts["noise"], facts["tool"]) == ("lcm-lora", "CPU", "fewstep 1.0")


def test_a_comment_that_a_jpeg_cannot_hold_is_cut_before_its_settings() -> None:
    payload = read_container(encode({**FACTS, "prompts": ["狐🦊" * 60_000]}, "jpeg"))
    assert payload.parameters.startswith("狐🦊")
    assert " […]\nNegative prompt: \nSteps: 4, Sampler: LCM" in payload.parameters
    long = encode({**FACTS, "negative_prompt": "狐" * 60_000}, "jpeg")
    assert read_container(long).parameters.endswith("}")


@pytest.mark.parametrize("order", ["MM", "II"])
@pytest.mark.parametrize(
    ("code", "content"),
    [
        (b"UNICODE\0", "a fox\nSteps: 4".encode("utf-16-be")),
        (b"UNICODE\0", "a fox\nSteps: 4".encode("utf-16-le")),
        (b"UNICODE\0", "a fox\nSteps: 4".encode("utf-16")),
        (b"ASCII\0\0\0", b"a fox\nSteps: 4"),
        (bytes(8), b"a fox\nSteps: 4"),
    ],
)
def test_comments_of_others_are_read(order: str, code: bytes, content: bytes) -> None:
    """Of either byte order, both in the file and in the text."""
    end = Image.Exif()
    end.endian = ">" if order == "MM" else "<"
    end.get_ifd(0x8769)[0x9286] = code + content
    assert exif.user_comment(end.tobytes().removeprefix(exif.HEADER)) == "a fox\nSteps: 4"
