"""Files made to be read badly: each is read within bounds, or is no picture; none raises another error."""

from __future__ import annotations

import contextlib
import io
import json
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from fewstep import metadata
from fewstep.errors import RequestError
from fewstep.metadata.containers import MAX_TEXT, Payload, read_container
from fewstep.metadata.story import pack_pictures, unpack_pictures
from fewstep.metadata.webui import read_parameters
from tests.metadata.test_texts import FACTS, FORMATS, encode

PICTURE = Image.new("RGB", (8, 8), "red")
INPUTS: dict[str, Any] = {"sampler_name": "euler", "steps": 4, "cfg": 1}


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def with_chunks(*chunks: bytes) -> bytes:
    buffer = io.BytesIO()
    PICTURE.save(buffer, "PNG")
    return buffer.getvalue()[:33] + b"".join(chunks) + buffer.getvalue()[33:]


def png(texts: dict[str, str]) -> bytes:
    info, buffer = PngInfo(), io.BytesIO()
    for key, text in texts.items():
        info.add_itxt(key, text)
    PICTURE.save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def workflow(**nodes: Any) -> bytes:
    return png({"prompt": json.dumps(nodes), "workflow": json.dumps({"links": []})})


def hostile_files() -> Iterator[tuple[str, bytes]]:
    bomb = zlib.compress(bytes(60_000_000), 1)
    yield "zTXt bomb", with_chunks(chunk(b"zTXt", b"fewstep\0\0" + bomb))
    yield "iTXt bomb", with_chunks(chunk(b"iTXt", b"parameters\0\1\0\0\0" + bomb))
    yield "broken zTXt", with_chunks(chunk(b"zTXt", b"fewstep\0\0junk"))
    yield "iTXt without fields", with_chunks(chunk(b"iTXt", b"fewstep\0\1"))
    yield "length beyond the file", with_chunks()[:33] + struct.pack(">I4s", 2**31 - 1, b"tEXt")
    yield "deep JSON", png({"fewstep": "[" * 200_000})
    yield "a number of many digits", png({"fewstep": '{"steps": ' + "9" * 100_000 + "}"})
    yield "facts of other types", png({"fewstep": '{"check": 5, "prompts": 7, "weights": {"a": []}}'})
    yield "a deep workflow", png({"prompt": '{"1":' * 50_000, "workflow": "{}"})
    yield (
        "a workflow of other types",
        png({"prompt": '{"1": 5, "2": [], "3": null}', "workflow": '{"links": 3}'}),
    )
    ring = {
        str(i): {"class_type": "KSampler", "inputs": {**INPUTS, "model": [str((i + 1) % 500), 0]}}
        for i in range(500)
    }
    links = [[0, str((i + 1) % 500), 0, str(i), 0, "MODEL"] for i in range(500)]
    yield "a workflow in a ring", png({"prompt": json.dumps(ring), "workflow": json.dumps({"links": links})})
    yield "many pairs", png({"parameters": "a\nSteps: 1, " + 'a: "' * 100_000})
    yield "words without an end", png({"parameters": "a\n" + "a" * 500_000})
    yield "spaces without an end", png({"parameters": "a\nSteps: 1, x: 1, y: " + " " * 500_000 + "{"})
    yield "hashes without an end", png({"parameters": "a\nSteps: 1, x: 1, y: 1, " + "Hashes: {" * 50_000})
    yield "LoRAs without an end", png({"parameters": "<lora:" * 100_000 + "\nSteps: 1, x: 1, y: 1"})
    for name in FORMATS:
        whole = encode(FACTS, name)
        for cut in range(12, 400, 37):
            yield f"{name} cut at {cut}", whole[:cut]
        yield f"{name} with zeros", whole[:60] + bytes(200) + whole[260:]
        yield f"{name} with ones", whole[:60] + b"\xff" * 200 + whole[260:]


def test_every_file_is_read_within_bounds(tmp_path: Path) -> None:
    for name, content in hostile_files():
        path, started = tmp_path / "x.png", time.process_time()
        path.write_bytes(content)
        with contextlib.suppress(RequestError):
            facts = metadata.read(path)
            assert isinstance(facts, dict), name
            assert sum(len(str(value)) for value in facts.values()) < 4 * MAX_TEXT, name
        assert time.process_time() - started < 2, name


def test_exif_that_points_anywhere_is_no_comment() -> None:
    head = b"MM\0*" + struct.pack(">I", 8)
    field = struct.Struct(">HHHII")
    for place in (0, 8, 2**32 - 1, 30):
        tiff = head + field.pack(1, 0x8769, 4, 1, place) + field.pack(1, 0x9286, 7, 2**32 - 1, place)
        data = b"\xff\xd8" + struct.pack(">BBH", 0xFF, 0xE1, len(tiff) + 8) + b"Exif\0\0" + tiff
        assert len(read_container(data).parameters) < 100


def test_a_container_of_no_format_says_nothing() -> None:
    for data in (b"", b"RIFF", b"\x89PNG", b"\xff\xd8\xff", b"GIF89a", b"RIFF\0\0\0\0WEBP" + bytes(40)):
        assert read_container(data) == Payload()


def test_given_pictures_are_unpacked_as_far_as_they_are_whole() -> None:
    block = pack_pictures({"image": [PICTURE], "control": [PICTURE, PICTURE]})
    assert {name: len(files) for name, files in unpack_pictures(block).items()} == {"image": 1, "control": 2}
    for cut in range(0, len(block), 7):
        assert sum(map(len, unpack_pictures(block[:cut]).values())) <= 3
    assert unpack_pictures(b"\0" * 10_000).keys() <= {""}
    assert unpack_pictures(b"image\0" + b"\xff" * 40) == {"image": [b"\xff" * 36]}


@pytest.mark.parametrize(
    "text", ["", "a fox", "Steps: 4", "a: 1, b: 2, c: 3", "\n" * 1000, "Steps: x, a: 1, b: 2"]
)
def test_a_text_of_another_kind(text: str) -> None:
    assert "steps" not in read_parameters(text)
